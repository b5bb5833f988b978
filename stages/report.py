"""Write one self-contained HTML page about a run, of whatever it has left so far."""

import platform

from pipeline.identity import CONFIG_FILE
from pipeline.report.record import read_record
from pipeline.report.report import render_report
from pipeline.runtime.files import write_text
from pipeline.runtime.fingerprint import source_version, versions
from pipeline.runtime.hardware import device_name, num_usable_cores
from pipeline.session import Session


def main(session: Session, round_index: int | None = None) -> None:
    """Write `report.html` about the rounds up to `round_index`, by default all that exist."""
    config = session.config
    if not session.context.is_main_process:
        return
    path = config.checkpoints / "report.html"
    write_text(path, render_report(read_record(config, session.pool, round_index, _facts(session))))
    print(f"report: {path}")


def _facts(session: Session) -> dict[str, str]:
    """What this process knows of how to repeat the run."""
    config, device = session.config, session.context.device
    return {
        "command": session.command or f"dreamdistill run --config {config.round_folder(0) / CONFIG_FILE}",
        "hardware": f"{device_name(device)}, {num_usable_cores()} cores",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "version": source_version(),
        "packages": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
