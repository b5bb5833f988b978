"""Recipes at one budget: each is a list of overrides of a config, tried with several seeds; a result file for each.

    python -m benchmarks.recipes benchmarks/recipes/small.yaml --seeds 0 1 2 --set teacher.weights=FILE ...
    torchrun --nproc-per-node 2 -m benchmarks.recipes ...                    in two processes
    python -m benchmarks.recipes.table                                       the results as docs/recipes.md

A trial is skipped if results/recipes/FILE/NAME-SEED.json has its config; one that was interrupted continues
where it was. Recipes that differ only in the distillation share their images.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import RESULTS, add_overrides, make_parser, open_benchmark, run_chain, write_result
from pipeline.identity import without_execution, without_keys
from pipeline.resolve import resolve
from pipeline.run import RunConfig, load_run
from pipeline.runtime.config import to_plain
from pipeline.runtime.distributed import DistributedContext

# Sections whose keys change no image of a run of one round.
AFTER_SYNTHESIS = ("distill", "student", "evaluation", "checkpoints_dir", "name", "shards_dir")
# Keys of `distill` that older results lack, with the values that change nothing.
ADDED_TO_DISTILL = {"feature_weight": 0.0}
# Keys that older results have, with the values that changed nothing.
REMOVED_FROM_DISTILL = [("procedural_images", 0)]
# Keys whose `auto` is another value on another machine.
RESOLVED_BY_THE_MACHINE = ("precision", "compile")
# Keys that name files and processors, not the recipe.
OF_THE_MACHINE = ("name", "checkpoints_dir", "shards_dir", "data")


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """A recipe file: its name, a config, the overrides of all recipes, and those of each recipe by name."""

    name: str
    config: Path
    budget: Sequence[str]
    recipes: dict[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A recipe, its overrides, and a seed."""

    file: str
    recipe: str
    overrides: Sequence[str]
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """The name of its result."""
        return f"recipes/{self.file}/{self.recipe}-{self.seed}"

    def is_done(self, config: dict[str, Any]) -> bool:
        """Whether its result is there, of this resolved config; on which machine does not matter."""
        path = RESULTS / f"{self.name}.json"
        return path.exists() and _recipe(json.loads(path.read_text())["config"]) == _recipe(config)


def read_recipes(path: Path) -> Recipes:
    """The recipes in a YAML file; raises TypeError for other keys than those of `Recipes`."""
    content = yaml.safe_load(path.read_text())
    return Recipes(name=path.stem, config=Path(content.pop("config")), **content)


def trials(recipes: Recipes, seeds: Sequence[int], overrides: Sequence[str]) -> Iterator[Trial]:
    """All recipes with the first seed, then with the next."""
    for seed in seeds:
        for recipe, own in recipes.recipes.items():
            keys = [*recipes.budget, *overrides, *own, f"seed={seed}"]
            folders = _folders(load_run(recipes.config, keys), f"{recipes.name}/{recipe}", seed)
            config = load_run(recipes.config, [*keys, *folders])
            yield Trial(file=recipes.name, recipe=recipe, overrides=own, seed=seed, config=config)


def _folders(config: RunConfig, recipe: str, seed: int) -> list[str]:
    """Overrides for folders of its own; runs of one round with the same images share their folder."""
    images = {k: v for k, v in without_execution(to_plain(config)).items() if k not in AFTER_SYNTHESIS}
    digest = hashlib.sha256(json.dumps(images, default=str).encode()).hexdigest()[:12]
    name = f"images-{digest}" if config.synthesis.rounds == 1 else f"{recipe.replace('/', '-')}-{seed}"
    return [f"name={name}", "shards_dir=shards/recipes", f"checkpoints_dir=checkpoints/recipes/{recipe}"]


def _recipe(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved config without what follows from the machine, with the keys that an older one lacks."""
    plain = without_keys(without_execution(resolved), RESOLVED_BY_THE_MACHINE)
    distill = dict(item for item in plain["distill"].items() if item not in REMOVED_FROM_DISTILL)
    return {**plain, "distill": {**ADDED_TO_DISTILL, **distill}}


def compute(config: RunConfig) -> dict[str, int]:
    """What a trial may spend: images times steps of inversion, and views of distillation."""
    synthesis, distill = config.synthesis, config.distill
    return {
        "image_steps": synthesis.num_images * synthesis.inversion.num_steps,
        "views": distill.steps * distill.batch_size,
    }


def measure(trial: Trial, context: DistributedContext) -> None:
    """Make a trial and write its result, unless it is there."""
    resolved = without_execution(to_plain(resolve(trial.config, context.device)))
    config = json.loads(json.dumps({k: v for k, v in resolved.items() if k not in OF_THE_MACHINE}, default=str))
    if trial.is_done(config):
        return
    figures = run_chain(trial.config, context)
    if context.is_main_process:
        facts = {"recipe": trial.recipe, "overrides": trial.overrides, "seed": trial.seed, "processes": context.size}
        write_result(trial.name, {**facts, **compute(trial.config), "figures": figures, "config": config}, context)
        print(f"{trial.name}: student {100 * figures['student_top1']:.2f} %", flush=True)


def main() -> None:
    """Make all trials of the command line."""
    parser: argparse.ArgumentParser = make_parser(__doc__)
    parser.add_argument("recipes", type=Path, help="a file of recipes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--only", nargs="*", default=None, help="names of recipes; default: all")
    add_overrides(parser)
    arguments = parser.parse_args()
    with open_benchmark() as context:
        for trial in trials(read_recipes(arguments.recipes), arguments.seeds, arguments.set):
            if arguments.only is None or trial.recipe in arguments.only:
                measure(trial, context)


if __name__ == "__main__":
    main()
