"""Write one self-contained HTML page about a run, of whatever it has left so far."""

import platform

from pipeline.data.shards import CONFIG_FILE
from pipeline.report.record import read_record
from pipeline.report.report import render_report, versions_text
from pipeline.runtime.digests import seal_text
from pipeline.runtime.files import write_text
from pipeline.runtime.fingerprint import versions
from pipeline.runtime.hardware import device_name, num_usable_cores
from pipeline.session import Session


def main(session: Session, round_index: int | None = None) -> None:
    """Write `report.html` about the rounds up to `round_index`, by default all that exist."""
    config = session.config
    if not session.context.is_main_process:
        return
    path = config.checkpoints / "report.html"
    page = seal_text(render_report(read_record(config, session.pool, round_index, _facts(session))), path.suffix)
    is_current = path.is_file() and path.read_bytes() == page.encode()
    if not is_current:  # else a finished run may lie on a read-only file system
        write_text(path, page)
    print(f"report: {path}{' is up to date' if is_current else ''}")


def _facts(session: Session) -> dict[str, str]:
    """The command that repeats the run; and this process, which need not be one that made the outputs."""
    config, device = session.config, device_name(session.context.device)
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    return {
        "command": session.command or f"dreamdistill run --config {config.round_folder(0) / CONFIG_FILE}",
        "this page written on": f"{device}, {num_usable_cores()} cores, {system}",
        "this page written with": versions_text(versions()),
    }
