"""The page of a run in progress, on this machine alone: rendered anew when it is asked for, at most every SECONDS."""

from __future__ import annotations

import os
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from specbench.errors import InputError, warn
from specbench.report.live import is_finished, render_live

HOST = "127.0.0.1"
SECONDS = 20  # between two renderings


class LiveServer(HTTPServer):
    """Serves one page, which is rendered within the request for it."""

    allow_reuse_address = os.name != "nt"  # on Windows it would share a port that is in use

    def __init__(self, path: Path, port: int):
        super().__init__((HOST, port), _Handler)
        self.timeout = 1
        self._path = path
        self._page = b""
        self._rendered = float("-inf")

    def get_page(self) -> bytes:
        """Return the page, rendered at most SECONDS ago, or the last one of a finished run."""
        if is_finished(self._path) or time.monotonic() - self._rendered > SECONDS:
            self._page = render_live(self._path, SECONDS).encode()
            self._rendered = time.monotonic()
        return self._page


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    timeout = 5  # of a connection that sends nothing

    def do_GET(self) -> None:
        if self.path != "/":
            self.send_error(404)
            return
        page = self.server.get_page()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def serve_run(path: Path, port: int) -> None:
    """Serve a run's page until the run is finished and open pages have loaded the last one. The process becomes a nice one.

    port: 0 chooses a free one. Raises InputError if there is no folder, or the port cannot be used.
    """
    if not path.is_dir():  # a run makes its folder first, and writes to it once the models are loaded
        raise InputError(f"--serve: there is no folder {path}; start the run first")
    try:
        server = LiveServer(path, port)
    except (OSError, OverflowError) as error:
        raise InputError(f"--serve {port}: {error}; choose another port") from None
    if hasattr(os, "nice"):
        os.nice(19)
    with server:
        warn(f"http://{HOST}:{server.server_port}/ shows the run until it is finished; rendering may disturb a turn")
        while not is_finished(path):
            server.handle_request()
        end = time.monotonic() + 2 * SECONDS
        while time.monotonic() < end:
            server.handle_request()
