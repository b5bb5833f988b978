"""How much each part of the inversion contributes to the accuracy of a student on CIFAR-10, all with one budget.

    python -m benchmarks.cifar10 --set teacher.weights=FILE verifier.weights=FILE data.test=npz:FILE
    torchrun --nproc-per-node 2 -m benchmarks.cifar10 --set ...      in two processes

Each variant is a run with its own folders under shards/ and checkpoints/, so an interrupted benchmark continues where
it was. Writes results/cifar10.json.
"""

from benchmarks.harness import (
    PIXELS,
    REPOSITORY,
    WHITE,
    add_overrides,
    distill_and_evaluate,
    make_parser,
    noise_images,
    open_benchmark,
    run_chain,
    summary,
    write_result,
)
from pipeline.run import RunConfig, load_run
from pipeline.runtime.distributed import DistributedContext

CONFIG = REPOSITORY / "configs" / "cifar10_resnet20.yaml"
BUDGET = (
    *PIXELS,
    "distill.feature_weight=0",
    "synthesis.num_images=2048",
    "synthesis.inversion.phases.0.steps=100",
    "distill.steps=3000",
    "distill.optimizer=sgd",
    "distill.lr=0.1",
    "distill.weight_decay=5e-4",
)
TERMS = "synthesis.inversion.terms"
WHITE_NOISE = ("synthesis.inversion.init_noise={}",)
# The published weight of the total variation is for the norm of a whole batch of 256: 16 times that of one image.
PUBLISHED_TERMS = (f"{TERMS}.feature_divergence=0", f"{TERMS}.feature_norm=10", f"{TERMS}.tv_l2={16 * 2.5e-5}")
VARIANTS = {
    "scale-free feature term": (),
    "published feature term, white start": (*PUBLISHED_TERMS, *WHITE_NOISE),
    "no feature term": (f"{TERMS}.feature_divergence=0",),
    "adaptive, 4 rounds": ("synthesis.rounds=4", f"{TERMS}.competition=1"),
    "adaptive, 4 rounds, weight 10": ("synthesis.rounds=4", f"{TERMS}.competition=10"),
    "adaptive, a round a batch": ("synthesis.rounds=8", f"{TERMS}.competition=1"),
    "scale-free feature term, white start": WHITE_NOISE,
    "published feature term": PUBLISHED_TERMS,
}
NOISE = "Gaussian noise"


def load(variant: str, seed: int, overrides: list[str]) -> RunConfig:
    """The config of one variant with one seed."""
    name = f"ablation-{variant.replace(', ', '-').replace(' ', '-')}-{seed}"
    return load_run(CONFIG, [*BUDGET, *overrides, f"name={name}", f"seed={seed}", *VARIANTS.get(variant, ())])


def measure(variant: str, seed: int, overrides: list[str], context: DistributedContext) -> dict[str, float]:
    """The figures of one run; for noise, only the accuracy of the student."""
    config = load(variant, seed, overrides)
    if variant == NOISE:
        return {"student_top1": distill_and_evaluate(config, noise_images(config, WHITE), context).student["top1"]}
    return run_chain(config, context)


def main() -> None:
    """Measure every variant with every seed; write and print the table."""
    parser = make_parser(__doc__)
    add_overrides(parser)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    arguments = parser.parse_args()
    table = {}
    with open_benchmark() as context:
        for variant in (NOISE, *VARIANTS):
            table[variant] = summary([measure(variant, seed, arguments.set, context) for seed in arguments.seeds])
            if context.is_main_process:
                figures = {name: f"{f['mean']:.4f} +- {f['deviation']:.4f}" for name, f in table[variant].items()}
                print(variant, figures, flush=True)
                head = {"command": "python -m benchmarks.cifar10", "budget": BUDGET, "processes": context.size}
                write_result("cifar10", {**head, "seeds": arguments.seeds, "variants": table}, context)


if __name__ == "__main__":
    main()
