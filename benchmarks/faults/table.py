"""The results of all campaigns as a Markdown table, for docs/reliability.md: `python -m benchmarks.faults.table`."""

import json

from benchmarks.harness import RESULTS


def main() -> None:
    """Print a row for each result."""
    print("| campaign | trials | what came of them | commit |\n|---|---|---|---|")
    for path in sorted((RESULTS / "faults").glob("*.json")):
        result = json.loads(path.read_text())
        outcomes = ", ".join(f"{count} {word}" for word, count in sorted(result["outcomes"].items()))
        print(f"| {path.stem} | {result['trials']} | {outcomes} | {result['machine']['commit']} |")


if __name__ == "__main__":
    main()
