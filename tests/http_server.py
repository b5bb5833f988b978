"""A local web server of a folder, with faults that a test can set."""

import functools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock


class FolderServer(ThreadingHTTPServer):
    """Serves a folder; `requests` lists the paths, `status` gives the next answers of a path, `delay_s` waits.

    The next `num_cut` answers of a path break off in the middle.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.requests: list[str] = []
        self.status: dict[str, list[int]] = {}
        self.num_cut: dict[str, int] = {}
        self.delay_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(SimpleHTTPRequestHandler):
    server: FolderServer

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        time.sleep(self.server.delay_s)
        if answers := self.server.status.get(self.path):
            self.send_error(answers.pop(0))
        elif self.server.num_cut.get(self.path):
            self.server.num_cut[self.path] -= 1
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def serve(folder: Path) -> Iterator[FolderServer]:
    """A server that runs until the block ends, and that no proxy of this machine hides."""
    with FolderServer(folder) as server, mock.patch.dict(os.environ, no_proxy="127.0.0.1"):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
