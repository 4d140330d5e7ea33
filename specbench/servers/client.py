"""A client of one server: one request at a time per thread, timed by the clock here, tried again if the server is busy."""

from __future__ import annotations

import json
import logging
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter, sleep
from typing import Any

import httpx2

from specbench.errors import InputError
from specbench.servers.protocol import Answer, Protocol, ServerError

CONNECT = 10.0  # seconds
RETRIES = 3  # of a request that a server turns away
BUSY = (429, 500, 502, 503, 504)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds before a request is sent again, doubled each time
QUOTED = 200  # characters of a reply that a message quotes
DONE = b"[DONE]"
WAITED = 5e-4  # seconds; a piece that took longer had not arrived yet


@dataclass(frozen=True)
class Timed:
    """An answer, and the seconds by the clock here from its request to its first and to its last token.

    turned_away: how often the server was too busy before, whose time is not counted unless several requests are sent at a time.
    """

    answer: Answer
    first_s: float
    last_s: float
    turned_away: int = 0


@dataclass(frozen=True)
class Access:
    """How servers are reached. patience_s: limit for a whole answer, from its request.

    key: the environment variable that holds a key; None: no key. certificates: a file of certificates to trust instead of the
    system's. check_certificates: whether servers' certificates are checked at all.
    """

    patience_s: float
    key: str | None = None
    certificates: str | None = None
    check_certificates: bool = True

    def get_secret(self) -> str | None:
        """Return the key. Raises InputError if its environment variable is not set, or its value cannot be sent in a header."""
        if self.key is None:
            return None
        secret = os.environ.get(self.key, "").strip()
        if not secret:
            raise InputError(f"key={self.key}: this environment variable is not set")
        if not (secret.isascii() and secret.isprintable()):
            raise InputError(f"key={self.key}: this environment variable holds characters other than printable ASCII")
        return secret

    def open_client(self) -> httpx2.Client:
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line per request otherwise, where Hydra shows logs
        secret = self.get_secret()
        headers = {"Accept-Encoding": "identity"} | ({} if secret is None else {"Authorization": f"Bearer {secret}"})
        timeout = httpx2.Timeout(self.patience_s, connect=min(CONNECT, self.patience_s), pool=None)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)  # servers close idle ones when they like
        return httpx2.Client(headers=headers, timeout=timeout, limits=limits, verify=self._trust(), trust_env=False)

    def _trust(self) -> ssl.SSLContext | bool:
        if not self.check_certificates or self.certificates is None:
            return self.check_certificates
        try:
            return ssl.create_default_context(cafile=self.certificates)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"certificates={self.certificates}: {error}") from None


class Client:
    """Asks one server. Threads may share it. name: of the server, in messages.

    pause_s: between readings of an answer, once its first token has come. Each reading wakes this process, which costs a server
    on the same cores a part of its speed; what it sends meanwhile waits in the system's buffers. The last token may be
    noted up to that much late. alone: it sends one request at a time.
    """

    def __init__(self, name: str, url: str, protocol: Protocol, access: Access, pause_s: float = 0.0, alone: bool = True) -> None:
        self.name, self.url, self.protocol, self._pause, self._alone = name, url, protocol, pause_s, alone
        self._patience, self._secret = access.patience_s, access.get_secret()
        self._http = access.open_client()

    def close(self) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        """Return one of the server's pages: parsed JSON, or else text; None if there is no such page. Raises ServerError."""
        try:
            response = self._http.get(self.url + path, timeout=min(CONNECT, self._patience))
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise self.blame(_describe(error)) from None
        if response.status_code != 200:
            return None
        try:
            return response.json()
        except ValueError:
            return response.text

    def ask(self, body: Mapping[str, Any]) -> Timed:
        """Return the answer to a request, after as many attempts as a busy server needs. Raises ServerError."""
        first = perf_counter()
        for turned_away in range(RETRIES + 1):
            began = perf_counter() if self._alone else first
            with self._open_stream(body) as response:
                if response.status_code == 200:
                    return replace(self._read(response, began), turned_away=turned_away)
                said = self._quote_status(response)
                wait = response.headers.get("retry-after", "")
            if response.status_code not in BUSY:
                break
            sleep(min(float(wait) if wait.isdecimal() else FIRST_PAUSE * 2**turned_away, LONGEST_PAUSE))
        raise self.blame(said)

    @contextmanager
    def _open_stream(self, body: Mapping[str, Any]) -> Iterator[httpx2.Response]:
        try:
            with self._http.stream("POST", self.url + self.protocol.path, json=body) as response:
                yield response
        except (httpx2.HTTPError, OSError) as error:
            raise self.blame(_describe(error)) from None

    def _read(self, response: httpx2.Response, began: float) -> Timed:
        """Read the whole stream before it is parsed, which takes processor time that the server may need for its next token."""
        pieces: list[tuple[float, bytes]] = []
        before = 0.0
        for piece in response.iter_raw():
            seconds = perf_counter() - began
            pieces.append((seconds, piece))
            if seconds > self._patience:
                raise self.blame(f"its answer was not complete after {self._patience:g} s")
            if self._pause and seconds - before > WAITED:  # nothing more is in a buffer
                sleep(self._pause)
                seconds = perf_counter() - began
            before = seconds
        answer, first, last = Answer(), 0.0, 0.0
        for seconds, event in _iter_events(pieces):
            known = answer.size
            self._take_in(event, answer)
            if answer.size != known:
                first, last = first or seconds, seconds
        return Timed(answer, first, last)

    def _take_in(self, event: bytes, answer: Answer) -> None:
        try:
            self.protocol.read(json.loads(event), answer)
        except ServerError as error:
            raise self.blame(str(error)) from None
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            said = self._shorten(event.decode(errors="replace"))
            raise self.blame(f"it sent something that its protocol does not define ({error!r}): {said}") from None

    def blame(self, what: str) -> ServerError:
        """Return an error that names the server, and no key."""
        return ServerError(_hide(f"the server of {self.name} at {self.url}: {what}", self._secret))

    def _quote_status(self, response: httpx2.Response) -> str:
        response.read()
        return f"it answered {response.status_code}: {self._shorten(response.text)}"

    def _shorten(self, text: str) -> str:
        return " ".join(_hide(text, self._secret).split())[:QUOTED]


def _iter_events(pieces: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Yield the data of server-sent events, each with the time of the piece that completed it."""
    rest = b""
    for seconds, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (data := line[5:].strip()) != DONE:
                yield seconds, data


def _hide(text: str, secret: str | None) -> str:
    return text.replace(secret, "[key]") if secret else text


def _describe(error: Exception) -> str:
    known: dict[type, str] = {httpx2.ConnectTimeout: "no connection in time", httpx2.ReadTimeout: "no data within the time limit"}
    said = known.get(type(error), str(error))
    return f"{said} ({type(error).__name__})" if said else type(error).__name__
