"""Trials of a campaign: each is one fault and what came of it, kept in a file so that a campaign can be continued."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Failures that a result lists in words; the others are counted.
LISTED_FAILURES = 20


@dataclass(frozen=True)
class Outcome:
    """What came of a fault: a word such as `same bytes`, and what there is to say about it."""

    word: str
    detail: str = ""


FAILED, SKIPPED = "failed", "skipped"


@dataclass(frozen=True)
class Trial:
    """A fault: its name, unique in the campaign, the kind under which it is counted, and how it is tried."""

    name: str
    kind: str
    run: Callable[[], Outcome]


@dataclass(frozen=True)
class Tried:
    """A trial that was made."""

    name: str
    kind: str
    word: str
    detail: str


def try_all(trials: Iterable[Trial], path: Path) -> list[Tried]:
    """Make the trials that are not in the file yet, one line for each; returns all of them.

    Paths in the folder of the file are told from there, since results do not name a machine's.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    tried = [Tried(**json.loads(line)) for line in lines]
    known = {one.name for one in tried}
    with path.open("a") as file:
        for trial in trials:
            if trial.name not in known:
                outcome = trial.run()
                detail = outcome.detail.replace(f"{path.parent}/", "")
                tried.append(Tried(trial.name, trial.kind, outcome.word, detail))
                print(f"{trial.name}: {outcome.word} {detail}".rstrip(), flush=True)
                print(json.dumps(asdict(tried[-1])), file=file, flush=True)
    return tried


def summary(tried: list[Tried]) -> dict[str, Any]:
    """Counts of the outcomes, in all and by kind, and the failures and skips in words."""
    by_kind = {kind: Counter(one.word for one in tried if one.kind == kind) for kind in sorted({t.kind for t in tried})}
    return {
        "trials": len(tried),
        "outcomes": dict(Counter(one.word for one in tried)),
        "by_kind": {kind: dict(counts) for kind, counts in by_kind.items()},
        **{
            word: [f"{t.name}: {t.detail}" for t in tried if t.word == word][:LISTED_FAILURES]
            for word in (FAILED, SKIPPED)
        },
    }
