"""Recipes: what a trial is, which images it shares, when it is skipped, and what the table says of it."""

import json
from pathlib import Path

import pytest
import yaml
from tiny_run import write_config

from benchmarks import harness
from benchmarks.recipes import __main__ as recipes
from benchmarks.recipes import table as page
from benchmarks.recipes.table import BASE, Row, table
from pipeline.runtime.distributed import open_distributed
from pipeline.runtime.files import write_json

FILES = sorted((Path(__file__).parents[1] / "benchmarks" / "recipes").glob("*.yaml"))


@pytest.fixture
def trials(tmp_path):
    """The trials of three recipes of a tiny run: as it is, with another student's rate, and with other images."""
    content = {
        "config": str(write_config(tmp_path)),
        "budget": ["distill.steps=3"],
        "recipes": {
            "base": [],
            "slow": ["distill.lr=0.01"],
            "rate": ["synthesis.inversion.lr=0.2"],
            "rounds": ["synthesis.rounds=2"],
        },
    }
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return list(recipes.trials(recipes.read_recipes(tmp_path / "recipes.yaml"), [0, 1], ["distill.batch_size=4"]))


def test_recipes_that_differ_in_the_student_alone_share_images(trials):
    names = {(trial.recipe, trial.seed): trial.config.name for trial in trials}
    assert names["base", 0] == names["slow", 0]
    others = [names["base", 0], names["rate", 0], names["base", 1], names["rounds", 0], names["rounds", 1]]
    assert len(set(others)) == len(others)
    students = [trial.config.student_path(0) for trial in trials]
    assert len(set(students)) == len(trials) == 8


def test_seeds_are_tried_one_after_the_other_with_the_budget(trials):
    assert [trial.seed for trial in trials] == [0] * 4 + [1] * 4
    assert recipes.compute(trials[0].config)["views"] == 3 * 4


def test_a_trial_with_a_result_is_skipped_unless_its_config_has_changed(trials, tmp_path, monkeypatch):
    made = []

    def run_chain(config, context):
        made.append(config.distill.lr)
        return {"student_top1": 0.5}

    monkeypatch.setattr(recipes, "run_chain", run_chain)
    for module in (recipes, harness):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "measured_commit", lambda: "unknown")
    with open_distributed() as context:
        recipes.measure(trials[1], context)
        path = tmp_path / f"{trials[1].name}.json"
        result = json.loads(path.read_text())
        distill = result["config"]["distill"]
        assert distill.pop("feature_weight") == 0  # as before there was such a key
        distill["procedural_images"] = 0  # as while there was such a key
        distill["compile"] = not distill["compile"]  # as on another machine
        path.write_text(json.dumps(result))
        recipes.measure(trials[1], context)
        assert made == [0.01]
        changed = recipes.Trial(file="recipes", recipe="slow", overrides=[], seed=0, config=trials[0].config)
        recipes.measure(changed, context)
    assert len(made) == 2


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_recipe_is_a_config(file):
    assert {trial.recipe for trial in recipes.trials(recipes.read_recipes(file), [0], [])} > {BASE}


def test_no_two_recipes_share_a_student():
    trials = [trial for file in FILES for trial in recipes.trials(recipes.read_recipes(file), [0, 1], [])]
    assert len({trial.config.student_path(0) for trial in trials}) == len(trials)


def row(name: str, *accuracies: float) -> Row:
    facts = {
        "machine": {"accelerator": None, "processor": "CPU"},
        "processes": 2,
        "image_steps": 10,
        "views": 3,
        "overrides": [f"{name}=1"],
    }
    return Row(recipe=name, trials=[{**facts, "figures": {"student_top1": a, "distill_s": 7.0}} for a in accuracies])


def test_a_gain_counts_beyond_two_errors():
    rows = [
        row("good", 0.89, 0.91, 0.93),
        row("base", 0.69, 0.71, 0.73),
        row("same", 0.69, 0.71, 0.75),
        row("bad", 0.29, 0.31, 0.33),
        row("two", 0.8, 0.8),
    ]
    good, base, same, bad, two = table(rows).splitlines()[2:]
    assert "| `good=1` | 3 | 91.00 ± 1.15 | +20.00 | helps | 0, 7 | CPU, 2 processes |" in good
    assert "no difference" in same
    assert "hurts" in bad
    assert "| 71.00 ± 1.15 | +0.00 |  |" in base
    assert "| 80.00 ± 0.00 | +9.00 |  |" in two


def test_without_a_base_there_are_no_gains():
    assert "| `one=1` | 1 | 80.00 |  |  | 0, 7 |" in table([row("one", 0.8)])


def test_the_page_shows_all_results(tmp_path, monkeypatch):
    for name, path in (("RESULTS", tmp_path), ("PAGE", tmp_path / "recipes.md"), ("PLOT", tmp_path / "recipes.svg")):
        monkeypatch.setattr(page, name, path)
    (tmp_path / "recipes" / "small").mkdir(parents=True)
    for name in (BASE, "slow"):
        trial = {**row(name, 0.5).trials[0], "recipe": name}
        write_json(tmp_path / "recipes" / "small" / f"{name}-0.json", trial)
    page.main()
    assert "| slow | `slow=1` | 1 | 50.00 | +0.00 |" in (tmp_path / "recipes.md").read_text()
    assert "slow" in (tmp_path / "recipes.svg").read_text()
