"""The Python API: functions of modules that live in a notebook or a program, without a configuration file.

Keywords have the names of the configuration's keys. A plain `nn.Module` gets pixels normalized by `mean` and `std`, by
default pixels in [0, 1] as they are; a `Classifier`, which `load_student` and `distill` return, has its own
normalization. Networks are copied and stay as they were, except for the student that `distill` trains. The default of
`device` is that of the network that is inverted, trained or scored: of the model, the teacher or the student.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import torch
import yaml
from torch import Tensor, nn

from pipeline.arguments import (
    Images,
    Labels,
    Size,
    Steps,
    check_labels,
    image_set,
    image_size,
    label_tensor,
    module,
    path_of,
    whole_number,
)
from pipeline.data.loader import cache_limit_bytes, num_bytes, preload
from pipeline.data.shard_set import ShardSet
from pipeline.data.shards import is_packed, pack, remove_parts
from pipeline.distillation.state import TrainState
from pipeline.distillation.task import open_distillation
from pipeline.distillation.train import train
from pipeline.evaluation.evaluate import EvalReport, EvaluationConfig
from pipeline.evaluation.evaluate import evaluate as evaluate_classifiers
from pipeline.evaluation.scores import Scorers
from pipeline.identity import module_images_identity
from pipeline.keywords import (
    BATCH_SIZE,
    DistillKeywords,
    InvertKeywords,
    NetworkKeywords,
    Shared,
    SynthesisKeywords,
    distill_config,
    inversion_callback,
    inversion_config,
    read_keywords,
    synthesis_config,
)
from pipeline.models.checkpoint import load_classifier
from pipeline.models.classifier import Classifier, try_image
from pipeline.models.config import ImageConfig
from pipeline.models.inheritance import inherit_weights
from pipeline.models.modules import as_classifier, require_same_classes
from pipeline.runtime.config import to_plain
from pipeline.runtime.distributed import DistributedContext
from pipeline.runtime.fingerprint import fingerprint, require_same_identity
from pipeline.runtime.ranges import batch_ranges
from pipeline.runtime.recorder import Progress, open_recorder
from pipeline.runtime.seeds import derive_seed
from pipeline.sets import stored_identity, write_identity
from pipeline.synthesis.batches import Monitor, invert_batch, make_batches
from pipeline.synthesis.config import InversionConfig
from pipeline.synthesis.invert import Callbacks
from pipeline.synthesis.objective import Networks, Objective, open_objective
from pipeline.synthesis.plan import BatchSpec, plan_batches
from pipeline.synthesis.store import BatchStore, manifest_facts, missing_batches, remove_damaged_parts

__all__ = ["ShardSet", "distill", "evaluate", "invert", "load_student", "synthesize"]

# What to do about a folder of another identity.
FIX = "Repeat the former call, name another folder, or remove this one"


def invert(
    model: nn.Module,
    labels: Labels,
    *,
    size: Size,
    steps: Steps,
    **keywords: Unpack[InvertKeywords],
) -> Tensor:
    """Images uint8 (N, C, H, W), on the CPU, that `model` classifies as `labels` (N,), by inversion.

    `model` maps normalized pixels (N, C, H, W) to logits (N, K). `size` is H = W or (H, W); C is the length of `mean`,
    by default 3. `steps` is the number of optimization steps, or (scale, steps) of each phase.

    Keywords: `mean`, `std`, `device`; `seed`, from which all randomness is derived (0); `batch_size`, how many images
    are optimized together (128); `ensemble`, further modules that `classification` averages over; `on_step`, called
    every `log_every` steps of a batch with the step and the weighted terms; and the keys of `synthesis.inversion`
    (docs/configuration.md). Raises ValueError when the model has no BatchNorm or something does not fit,
    FloatingPointError when a term is not finite.
    """
    labels, keywords = label_tensor(labels), read_keywords(keywords, InvertKeywords)
    shared = Shared.of(module("model", model), image_size(size), keywords)
    config = inversion_config(steps, keywords, len(labels) * shared.num_pixels, shared.device)
    seed, batch_size = keywords.get("seed", 0), keywords.get("batch_size", BATCH_SIZE)
    on_step, images = inversion_callback(keywords), []
    with _open_objective(model, keywords.get("ensemble", ()), shared, config) as objective:
        check_labels(labels, objective.networks.teacher)
        for i, batch in enumerate(batch_ranges(len(labels), batch_size)):
            chosen = tuple(labels[batch.start : batch.stop].tolist())
            spec = BatchSpec(index=i, first_image=batch.start, labels=chosen, seed=derive_seed(seed, "batch", i))
            images.append(invert_batch(objective, spec, config, Callbacks(on_step=on_step)).images)
    return torch.cat(images)


def synthesize(
    teacher: nn.Module, folder: Path | str, *, num_images: int, size: Size, **keywords: Unpack[SynthesisKeywords]
) -> ShardSet:
    """A synthetic dataset in `folder`: `num_images` inversions of `teacher`, spread evenly over its K classes.

    The folder has the layout of a round of `make synthesize` (docs/data_format.md). Each batch is written when it is
    finished: the same call continues what was interrupted, or returns the set that exists.

    Keywords are `steps` and those of `invert` but for `on_step`; `verifier`, an independent network that scores the
    images beside the teacher; `class_titles`, a title for each class; and `image_format`, `jpeg_quality` and
    `images_per_shard` of `synthesis`. Raises what `invert` raises, and ConfigError when the folder holds images of
    another teacher or of other keywords.
    """
    folder, keywords = path_of("folder", folder), read_keywords(keywords, SynthesisKeywords)
    seed, shared = keywords.get("seed", 0), Shared.of(module("teacher", teacher), image_size(size), keywords)
    config = synthesis_config(num_images, keywords, shared)
    verifier, ensemble = keywords.get("verifier"), keywords.get("ensemble", ())
    scorers = Scorers(teacher=shared.frozen(teacher), verifier=None if verifier is None else shared.frozen(verifier))
    require_same_classes(scorers.teacher, {} if scorers.verifier is None else {"verifier": scorers.verifier})
    channels, height, width = shared.shape
    images = ImageConfig(channels=channels, height=height, width=width, num_classes=scorers.teacher.num_classes)
    identity = module_images_identity(config, images, seed, scorers, map(shared.frozen, ensemble))
    facts = manifest_facts(config, images) | {"round": 0, "teacher": identity["teacher"]["network"]}
    facts |= _classes(scorers.teacher, keywords.get("class_titles"))
    if (existing := stored_identity(folder, identity)) is not None:
        require_same_identity(str(folder), existing, identity, FIX)
    specs = plan_batches(config, images.num_classes, seed, 0)
    remove_damaged_parts(folder, specs)
    if missing := missing_batches(folder, specs):
        with _open_objective(teacher, ensemble, shared, config.inversion) as objective:
            plain = to_plain({"seed": seed, "images": images, "synthesis": config})
            write_identity(folder, identity, yaml.safe_dump(plain, sort_keys=False))
            num_steps = len(missing) * config.inversion.num_steps
            progress = Progress(stage="synthesize", total=num_steps, unit="steps", round_index=0)
            store = BatchStore(folder=folder, fingerprint=fingerprint(identity), config=config, scorers=scorers)
            context = DistributedContext(device=shared.device)
            with open_recorder(folder / "metrics.jsonl", progress, context) as recorder:
                make_batches(objective, missing, store, Monitor(recorder, config.inversion.num_steps), context)
    if not is_packed(folder):
        pack(folder, [spec.index for spec in specs], identity, facts)
    remove_parts(folder)
    return ShardSet([folder])


def distill(
    teacher: nn.Module,
    student: nn.Module,
    images: Images,
    *,
    steps: int,
    **keywords: Unpack[DistillKeywords],
) -> Classifier:
    """`student`, trained in place on the teacher's outputs for `images`; in evaluation mode, with its normalization.

    `images` is a set such as a ShardSet, or pixels uint8 (N, C, H, W) with labels (N,). A plain student is trained with
    the teacher's normalization.

    Keywords: `mean`, `std`, `device` (default: the student's); `seed` (0); `on_step`, called every `log_every` steps
    with the step, the loss and the learning rate; and the keys of `distill` (docs/configuration.md). Raises ValueError
    when something does not fit, TypeError for other `images`, FloatingPointError when the loss is not finite.
    """
    pool, keywords = image_set(images), read_keywords(keywords, DistillKeywords)
    shared = Shared.of(module("student", student), pool.batch([0]).shape[1:], keywords)
    config = distill_config(steps, keywords, shared)
    frozen, seed = shared.frozen(module("teacher", teacher)), keywords.get("seed", 0)
    learner = as_classifier(student, shared.shape, frozen.normalization, shared.device)
    check_labels(pool.labels, frozen, learner)
    if config.init == "teacher":
        inherit_weights(learner.network, frozen.network, shared.shape, frozen.classes)
    if num_bytes(pool) <= cache_limit_bytes(config.memory_gib, shared.device):
        pool = preload(pool, shared.device)
    with (
        TemporaryDirectory() as folder,  # for a state that an interrupt leaves
        open_distillation(learner, frozen, config, config.view_shape(shared.shape), seed) as task,
    ):
        state = TrainState.open(learner, config, Path(folder) / "student.state", {})
        train(state, task, pool, DistributedContext(device=shared.device), keywords.get("on_step"))
    return learner.eval()


def evaluate(
    student: nn.Module,
    teacher: nn.Module,
    images: Images,
    *,
    batch_size: int = 500,
    **keywords: Unpack[NetworkKeywords],
) -> EvalReport:
    """The metrics of `student` and `teacher` on real images: accuracy, calibration, agreement, time of a pass.

    `images` is a set, or pixels uint8 (N, C, H, W) with labels (N,). `print(report.line())` shows the main metrics.
    Keywords: `mean`, `std`, `device` (default: the student's). Raises ValueError when something does not fit, TypeError
    for other `images`, FloatingPointError when a logit is not finite.
    """
    pool, batch_size = image_set(images), whole_number("batch_size", batch_size, 1)
    keywords, shape = read_keywords(keywords, NetworkKeywords), pool.batch([0]).shape[1:]
    shared = Shared.of(module("student", student), shape, keywords)
    networks = shared.frozen(student), shared.frozen(module("teacher", teacher))
    check_labels(pool.labels, *reversed(networks))
    return evaluate_classifiers(*networks, pool, EvaluationConfig(batch_size=batch_size))


def load_student(path: Path | str, source: str | None = None) -> Classifier:
    """The network in a file that a run wrote, student or teacher, in evaluation mode on the CPU.

    It maps pixels in [0, 1] (N, C, H, W) to logits (N, K); `class_titles` are the titles of the K classes. `source`
    takes the place of the source in the file. It must be given for a network of `python:`: a file of weights does not
    choose the code that runs. Raises ValueError when it is not, and when the network is not available.
    """
    return load_classifier(path_of("path", path), source)


@contextmanager
def _open_objective(
    model: nn.Module, ensemble: Sequence[nn.Module], shared: Shared, config: InversionConfig
) -> Iterator[Objective]:
    """The objective of images; its networks are copies, since its hooks stay as long as the block."""
    teacher, *others = map(shared.frozen, (model, *ensemble))
    for height, width in config.view_sizes((shared.shape[1], shared.shape[2])):
        for network in (teacher, *others):
            try_image(network, type(network.network).__name__, (shared.shape[0], height, width))
    require_same_classes(teacher, {f"ensemble.{i}": network for i, network in enumerate(others)})
    classes = teacher.classes
    for network in (teacher, *others):
        network.classes = None  # all: an image of one class is also none of those that a classifier leaves out
    networks = Networks(teacher=teacher, ensemble=others, classes=classes)
    with open_objective(networks, config, (shared.shape[1], shared.shape[2])) as objective:
        yield objective


def _classes(teacher: Classifier, class_titles: Sequence[str] | None) -> dict[str, Any]:
    """For each label of the images, the teacher's label and the title of the class."""
    labels = teacher.class_labels
    titles = list(class_titles or teacher.class_titles or map(str, labels))
    if len(titles) != len(labels):
        raise ValueError(f"class_titles: {len(titles)} titles, the teacher has {len(labels)} classes")
    return {"classes": labels, "class_titles": titles}
