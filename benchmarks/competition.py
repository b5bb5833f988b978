"""What the competition of Adaptive DeepInversion does to images: how they look to the student, and to other networks.

    python -m benchmarks.competition FILE FILE --set teacher.weights=FILE verifier.weights=FILE data.test=npz:FILE

One batch is inverted for each weight, from the same noise, against the first of two trained students. The second, of
another seed, takes no part. Where it disagrees with the teacher, too, students lack what the images show; where the
verifier disagrees, the images show nothing that another network knows. Real images are scored alike. Shares of one
batch of 256 have a standard error of up to 3 points. Writes results/competition-DEVICE.json.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import PIXELS, REPOSITORY, add_overrides, make_parser, open_benchmark, print_result
from pipeline.data.image_sets import ArrayImages, ImageSet, load_images
from pipeline.evaluation.evaluate import evaluate
from pipeline.models.checkpoint import load_classifier
from pipeline.models.classifier import Classifier
from pipeline.run import load_run
from pipeline.runtime.seeds import make_generator
from pipeline.session import Session, open_session
from pipeline.synthesis.invert import invert
from pipeline.synthesis.objective import Networks, open_objective

CONFIG = REPOSITORY / "configs" / "cifar10_resnet20.yaml"
STEPS = "synthesis.inversion.phases.0.steps=100"
WEIGHTS = (0.0, 0.01, 0.03, 0.1, 1.0)


def make_images(session: Session, weight: float, student: Classifier) -> ArrayImages:
    """One batch of the config with this weight of the competition against `student`."""
    config, device = session.config, session.context.device
    inversion = config.synthesis.inversion
    inversion = replace(inversion, terms=replace(inversion.terms, competition=weight))
    labels = torch.arange(config.synthesis.batch_size, device=device) % config.images.num_classes
    networks = Networks(teacher=session.teacher, student=student if weight else None)
    with open_objective(networks, inversion, config.images.size) as objective:
        result = invert(objective, labels, inversion, make_generator(config.seed, "competition"))
    return ArrayImages(result.images, result.labels)


def scores(session: Session, images: ImageSet, students: list[Classifier]) -> dict[str, float]:
    """Accuracies of teacher and verifier, and the share of images on which each student agrees with the teacher."""
    teacher, verifier = session.teacher, session.scorers.verifier
    assert verifier is not None, "the config names one"
    against_verifier, *against_students = (
        evaluate(network, teacher, images, session.config.evaluation) for network in (verifier, *students)
    )
    return {
        "teacher_top1": against_verifier.teacher["top1"],
        "verifier_top1": against_verifier.student["top1"],
        **{f"agreement_{i}": report.agreement for i, report in enumerate(against_students)},
    }


def measure(session: Session, paths: list[Path]) -> dict[str, Any]:
    """The scores of real images, and of the images of each weight."""
    config = session.config
    students = [load_classifier(path, config.student.source).to(session.context.device).freeze() for path in paths]
    real = load_images(config.data, "test", config.images, config.class_labels)
    rows = {"real images": scores(session, real, students)}
    for weight in WEIGHTS:
        rows[str(weight)] = scores(session, make_images(session, weight, students[0]), students)
        print(weight, rows[str(weight)], flush=True)
    return rows


def main() -> None:
    """Measure with the students of the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("students", nargs=2, type=Path, help="students of two seeds of the config")
    add_overrides(parser)
    arguments = parser.parse_args()
    config = load_run(CONFIG, [*PIXELS, STEPS, *arguments.set])
    with open_benchmark() as context, open_session(config, context) as session:
        rows = measure(session, arguments.students)
        inversion, batch = session.config.synthesis.inversion, session.config.synthesis.batch_size
        facts = {"config": CONFIG.stem, "images": batch, "steps": inversion.num_steps}
        print_result(f"competition-{context.device.type}", {**facts, "rows": rows}, context)


if __name__ == "__main__":
    main()
