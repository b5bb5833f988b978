"""`RunSummary`: a run as it is compared with others, read from what it has left."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.remote import folder_of_given
from pipeline.data.shards import CONFIG_FILE, MANIFEST, is_packed, read_manifest
from pipeline.runtime.config import nearest
from pipeline.runtime.config_files import load_yaml
from pipeline.runtime.files import read_json
from pipeline.runtime.fingerprint import flatten
from pipeline.runtime.form import check_form
from pipeline.runtime.recorder import read_metrics, seconds_of_stages

# What is read of the configuration of a run, beside its values for the comparison.
CONFIG_FORM = {"name": str, "shards_dir": str, "checkpoints_dir": str, "distill": dict}
Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run as it is compared: its configuration by dotted key, its figures, its metric lines, and what it lacks."""

    name: str
    config: Mapping[str, Any]
    figures: Figures
    lines: Sequence[Mapping[str, Any]]
    notes: Sequence[str]


def read_summary(name: str, checkpoints_dir: Path, shards_dir: Path | None = None) -> RunSummary:
    """The summary of a run, named by its folder in `checkpoints_dir` or by the path of that folder.

    Its images are where the config of its evaluation says. Those of a run without one are in `shards_dir`, by default
    `shards` beside `checkpoints_dir`; if it is given, also those that have moved. Raises ValueError for a run that does
    not exist, that has neither images nor an evaluation with its config, or whose evaluation another version wrote.
    """
    folder = Path(name) if "/" in name else checkpoints_dir / name
    shards = (shards_dir or folder.parent.parent / "shards") / folder.name
    if not folder.is_dir() and not shards.is_dir():
        known = sorted(path.name for path in checkpoints_dir.glob("*") if path.is_dir())
        raise ValueError(
            f"there is no run {name}: no folder {folder}{nearest(name, known)} (runs: {', '.join(known) or 'none'})"
        )
    evaluation = _last_evaluation(folder)
    stated = (evaluation or {}).get("config")
    config = stated or _config_of_images(shards)
    if config is None:
        lack = "an evaluation without its config" if evaluation else "no evaluation"
        raise ValueError(
            f"{folder} has {lack}, and {shards} no images; run the stage `evaluate`, or name the folder that holds "
            "the folder of its images: --shards-dir FOLDER"
        )
    if stated and (shards_dir is None or _stated_shards(folder, stated).is_dir()):
        shards = _stated_shards(folder, stated)
    folders = _given_folders(folder, config) or [path.parent for path in sorted(shards.glob(f"*/{MANIFEST}"))]
    manifests = [read_manifest(path) for path in folders if is_packed(path)]
    lines = [line for path in sorted(folder.glob("metrics*.jsonl")) for line in read_metrics(path)]
    times = {f"{stage}_s": seconds for stage, seconds in seconds_of_stages(lines).items()}
    notes = [] if evaluation else ["not evaluated: run the stage `evaluate`"]
    notes += [f"no images in {path}" for path in (folders or [shards]) if not is_packed(path)]
    return RunSummary(
        name=name,
        config=dict(flatten(config)),
        figures={**_evaluation_figures(evaluation), **_image_figures(manifests), **times},
        lines=lines,
        notes=notes,
    )


def _stated_shards(folder: Path, config: Mapping[str, Any]) -> Path:
    """Where the images of a run lie by its config."""
    return Path(_root(folder, config), config["shards_dir"], config["name"])


def _given_folders(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The folders of the sets that `distill.shards` names; a config of an earlier version has no such key."""
    root, names = _root(folder, config), config["distill"].get("shards", ())
    return [root / folder_of_given(name, config["shards_dir"]) for name in names]


def _root(folder: Path, config: Mapping[str, Any]) -> Path:
    """The folder that relative paths of a run start from, since that of its checkpoints lies in `checkpoints_dir`."""
    checkpoints_dir = Path(config["checkpoints_dir"])
    if checkpoints_dir.is_absolute() or ".." in checkpoints_dir.parts:
        return Path()
    return Path(os.path.normpath(folder.parent.joinpath(*(".." for _ in checkpoints_dir.parts))))


def _last_evaluation(folder: Path) -> Mapping[str, Any] | None:
    """The evaluation of the last round that has one; raises ValueError when another version wrote it."""
    files = {path.stem.removeprefix("eval-"): path for path in folder.glob("eval-*.json")}
    rounds = {int(number): path for number, path in files.items() if number.isdecimal()}  # the user may have others
    if not rounds:
        return None
    path = rounds[max(rounds)]
    evaluation = read_json(path)
    missing = {"student", "teacher", "accuracy_retention"} - evaluation.keys()
    if missing:
        raise ValueError(
            f"another version wrote {path} (it has no {', '.join(sorted(missing))}); run the stage `evaluate` again"
        )
    return read_json(path, _check_evaluation)


def _check_evaluation(evaluation: Any) -> None:
    """Raise ValueError unless the figures of an evaluation, and its config if it has one, can be read."""
    check_form(evaluation, {"student": dict, "teacher": dict, "accuracy_retention": float})
    if evaluation.get("config"):
        _check_config(evaluation["config"])
    for figures in (evaluation, evaluation["student"], evaluation["teacher"]):
        check_form(figures, {name: float for name, value in figures.items() if isinstance(value, int | float)})


def _check_config(config: Any) -> None:
    check_form(config, CONFIG_FORM)
    if "shards" in config["distill"]:  # earlier versions have no such key
        check_form(config["distill"]["shards"], [str], "distill.shards")


def _config_of_images(shards: Path) -> Mapping[str, Any] | None:
    paths = sorted(shards.glob(f"*/{CONFIG_FILE}"))
    if not paths:
        return None
    try:
        config: Mapping[str, Any] = load_yaml(paths[-1])
        _check_config(config)
    except ValueError as error:
        raise ValueError(
            f"{paths[-1]} is damaged ({error}); run the stage `evaluate`, which keeps the config, too"
        ) from error
    return config


def _evaluation_figures(evaluation: Mapping[str, Any] | None) -> Figures:
    """The numbers of an evaluation under the names of its CSV file."""
    figures: Figures = {}
    for name, value in (evaluation or {}).items():
        if name in ("student", "teacher"):
            figures |= {f"{name}_{k}": v for k, v in value.items() if isinstance(v, int | float)}
        elif isinstance(value, int | float) and name != "timed_batch":
            figures[name] = value
    return figures


def _image_figures(manifests: Sequence[Mapping[str, Any]]) -> Figures:
    """The number of images of all sets, and the mean of each score over the images that have it."""
    figures: Figures = {"images": sum(manifest["num_images"] for manifest in manifests)} if manifests else {}
    for name in dict.fromkeys(name for manifest in manifests for name in manifest["scores"]):
        scored = [manifest for manifest in manifests if name in manifest["scores"]]
        total = sum(manifest["num_images"] * manifest["scores"][name] for manifest in scored)
        figures[f"images_{name}"] = total / sum(manifest["num_images"] for manifest in scored)
    return figures
