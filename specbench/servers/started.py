"""Servers that are started here: each gets a free port and a log beside the run, and is always ended."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from time import monotonic, sleep

import httpx2
import psutil

from specbench.errors import InputError
from specbench.servers import keeper
from specbench.servers.addresses import find_listeners

HOST = "127.0.0.1"
GRACE = 15  # seconds for an end
PAUSE = 0.1  # seconds between checks whether it is up
PATIENCE = 2.0  # seconds for the reply to a check
LAST = 300  # characters of a log that a message quotes
SETTINGS = "LLAMA_ARG_"  # variables that would change a server's options unseen


class StartedServer:
    """A process with one server. command: with {port} where its port goes, and other names of `values`."""

    def __init__(self, label: str, command: str, values: Mapping[str, object], log: Path, secret: str | None) -> None:
        self.label, self._log, self._secret = label, log, secret
        port = _find_port()
        self.url = f"http://{HOST}:{port}"
        try:
            words = [_fill(word, {**values, "port": port}, label) for word in shlex.split(command)]
        except ValueError as error:
            raise InputError(f"the command of {label}: {error}") from None
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, keeper.__file__, *words],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                start_new_session=True,  # without the terminal's Ctrl-C
                env={name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)},
            )

    def await_health(self, path: str, patience: float) -> None:
        """Wait until the server answers. Raises InputError if it ends before, or takes longer than that many seconds."""
        deadline = monotonic() + patience
        while self._process.poll() is None and monotonic() < deadline:
            if self._is_healthy(path):
                return
            sleep(PAUSE)
        why = f"it did not answer within {patience:g} s" if self._process.poll() is None else "it ended"
        raise InputError(f"the server of {self.label} did not start: {why}; {self._log} ends: {self._quote_log()}")

    def list_processes(self) -> frozenset[int]:
        """Return the numbers of all processes that serve."""
        try:
            process = psutil.Process(self._process.pid)
            return frozenset(one.pid for one in (process, *process.children(recursive=True)))
        except psutil.NoSuchProcess:
            return frozenset()

    def read_log(self) -> str:
        return self._hide(self._log.read_text(encoding="utf-8", errors="replace"))

    def _is_healthy(self, path: str) -> bool:
        try:
            key = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
            healthy = httpx2.get(self.url + path, headers=key, timeout=PATIENCE, trust_env=False).status_code == 200
        except (httpx2.HTTPError, OSError):
            return False
        return healthy and self._has_port()

    def _has_port(self) -> bool:
        """Return whether it was this server that answered, as far as the system can tell."""
        listeners = find_listeners(self.url)
        return listeners is None or bool(listeners & self.list_processes())

    def _quote_log(self) -> str:
        return " ".join(self.read_log().split())[-LAST:]

    def _hide(self, text: str) -> str:
        return text.replace(self._secret, "[key]") if self._secret else text

    def end(self) -> None:
        """End the server with all its processes, and take the key out of its log."""
        assert self._process.stdin
        self._process.stdin.close()  # the keeper waits for this
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._secret:
            self._log.write_text(self.read_log(), encoding="utf-8")


def _find_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
    return port


def _fill(word: str, values: Mapping[str, object], label: str) -> str:
    """Fill values into a word of a command. Raises InputError for a name without a value."""
    try:
        return word.format_map({name: value for name, value in values.items() if value is not None})
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"the command of {label}: {word}: no value for {error}") from None
