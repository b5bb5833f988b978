"""One parser under atheris, a coverage-guided fuzzer; started by the campaign `fuzz`.

    python -m benchmarks.faults.fuzzer PARSER FINDINGS CORPUS SECONDS SEED

Every new way to end other than a parser may is a line in the file FINDINGS, with the input.
"""

import json
import random
import sys
import traceback
import warnings
from pathlib import Path

# A parser may take so much memory beyond that of the interpreter with its packages.
MAX_BYTES = 2 << 30
MAX_INPUT_BYTES = 1 << 16
MAX_SECONDS_PER_INPUT = 20
# How often a value of a manifest is changed, not its bytes.
VALUES_SHARE = 0.7


def main() -> None:
    """Fuzz until the time is over; atheris then ends the process."""
    try:
        import atheris
    except ImportError:
        sys.exit("error: fuzzing needs the package atheris; pip install atheris")
    import torch  # noqa: F401, before the others, so that it is not instrumented

    with atheris.instrument_imports(include=["pipeline", "yaml", "tarfile", "json"]):
        from benchmarks.faults.parsers import install_guard, require_clean_end, with_other_value
    from benchmarks.faults.child import limit_memory

    name, findings, corpus, seconds, seed = sys.argv[1:]
    warnings.simplefilter("ignore")
    install_guard()
    limit_memory(MAX_BYTES)
    folder, known = Path(corpus).parent / f"{name}-input", set[str]()
    folder.mkdir(exist_ok=True)

    def parse(data: bytes) -> None:
        try:
            require_clean_end(name, data, folder)
        except Exception as error:
            place = _place(error)
            if place not in known:
                known.add(place)
                line = {"error": f"{type(error).__name__}: {error}"[:300], "place": place, "input": data.hex()}
                with Path(findings).open("a") as file:
                    print(json.dumps(line), file=file)

    def mutate(data: bytes, max_size: int, input_seed: int) -> bytes:
        """Of a manifest, also one of its values: other bytes are hardly ever JSON."""
        draw = random.Random(input_seed)
        other = with_other_value(data, draw) if name == "manifest" and draw.random() < VALUES_SHARE else None
        return atheris.Mutate(data, max_size) if other is None or len(other) > max_size else other

    limits = [f"-max_len={MAX_INPUT_BYTES}", f"-timeout={MAX_SECONDS_PER_INPUT}", "-rss_limit_mb=0"]
    times = [f"-max_total_time={seconds}", f"-seed={int(seed) + 1}"]
    atheris.Setup([sys.argv[0], corpus, *times, *limits], parse, custom_mutator=mutate)
    atheris.Fuzz()


def _place(error: Exception) -> str:
    """The last line of our own code, or else of any, that an error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/pipeline/" in frame.filename] or frames
    return f"{type(error).__name__} {Path(own[-1].filename).name}:{own[-1].lineno}"


if __name__ == "__main__":
    main()
