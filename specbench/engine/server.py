"""Servers as an engine: each method has its own server, already running or started here (docs/servers.md).

Steps are reconstructed from what a server reports; what it does not report is null in the record.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from specbench.bounds import Within
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import CapacityError
from specbench.decoding.sampling import Sampling
from specbench.engine.base import Engine
from specbench.engine.served import ServedGeneration
from specbench.errors import InputError, show_value
from specbench.machine.devices import get_free_memory
from specbench.records.trial import BASELINE
from specbench.servers.addresses import check_url, find_family, is_here, resolve
from specbench.servers.client import Access, Client, Timed
from specbench.servers.llama_cpp import LlamaCpp
from specbench.servers.openai import OpenAI
from specbench.servers.protocol import NO_IDS, Answer, Counts, Protocol, ServerError, count_drafts
from specbench.servers.sglang import Sglang
from specbench.servers.started import StartedServer
from specbench.servers.vllm import Vllm

PROTOCOLS: Mapping[str, type[Protocol]] = {"llama_cpp": LlamaCpp, "vllm": Vllm, "sglang": Sglang, "openai": OpenAI}
PROBE_TOKENS = 8
APART = 1.7  # times as many weights make it another model
PAUSE = 0.02  # seconds by which the last token may be read late
Seconds = Annotated[float, Within(0.001, 86_400)]


class Server(Engine):
    """protocol: what the servers speak. urls: by label, the address of a running server; if there are any, none is started.

    commands: by label, how to start one. values: what fills the names in braces in commands. model: the target's name on the
    servers; None: they have one alone. prompts: sent as token ids, or as text. patience_s: for an answer; start_s: for a start.
    key, certificates, check_certificates: see servers.client.Access. concurrency: requests at a time, {slots} in commands.
    """

    in_process = False
    loads_target = False
    serves = True

    def __init__(
        self,
        protocol: Literal["llama_cpp", "vllm", "sglang", "openai"],
        urls: Mapping[str, str] | None,
        commands: Mapping[str, str],
        values: Mapping[str, Any],
        model: str | None,
        prompts: Literal["ids", "text"],
        patience_s: Seconds,
        start_s: Seconds,
        key: str | None,
        certificates: str | None,
        check_certificates: bool,
        concurrency: Annotated[int, Within(1, 4096)],
    ) -> None:
        self.protocol = PROTOCOLS[protocol]()
        self.honours = self.protocol.honours  # type: ignore[misc]
        self.returns_ids = self.protocol.returns_ids  # type: ignore[misc]
        if urls is not None and BASELINE not in urls:
            raise InputError(f"urls has no {BASELINE}, the server without speculation")
        if prompts == "text" and self.protocol.returns_ids:
            raise InputError("prompts=text: expected ids, which this kind of server takes")
        self.urls = {label: check_url(label, url) for label, url in (urls or {}).items()}
        self.commands = {} if urls else dict(commands)
        for name in ("context", "threads"):
            if (value := values.get(name)) is not None and (type(value) is not int or value < 1):
                raise InputError(f"values.{name}={show_value(value)}: expected a whole number above 0, or null")
        context = values.get("context") or 0
        own = {"slots": concurrency, "total_context": context * concurrency, "python": sys.executable}
        self.values = {**own, **values, "threads": values.get("threads") or torch.get_num_threads()}
        self.model, self.prompts, self.start_s, self.concurrency = model, prompts, start_s, concurrency
        self._access = Access(patience_s, key, certificates, check_certificates)
        self._access.get_secret()
        self._clients: dict[str, Client] = {}
        self._started: dict[str, StartedServer] = {}
        self._counting: set[str] = set()  # whose drafts only their counters tell
        self._here: dict[str, bool] = {}  # whether a server is on this machine
        self._clocks: dict[str, bool] = {}  # whether a server tells its own times
        self._about: dict[str, Any] = {}
        self._stack = ExitStack()

    def has(self, label: str) -> bool:
        return label in self.urls or label in self.commands

    def list_wanted(self, labels: Collection[str]) -> list[str]:
        commands = " ".join(self.commands.get(label, "") for label in labels) if self.protocol.reads_gguf else ""
        return [name for name in ("model", "draft") if f"{{{name}}}" in commands and not self.values.get(name)]

    def take(self, name: str, path: Path) -> None:
        self.values[name] = path

    def open(self, target: LanguageModel, drafters: Mapping[str, Drafter], batch: int = 1) -> None:
        self.target = target
        labels = [label for label in drafters if self.has(label)]
        if unknown := [label for label in self.urls if label not in drafters]:
            raise InputError(f"urls.{unknown[0]}: the run has no such method; it has {', '.join(drafters)}")
        self._check_shared(labels)
        self._check_files(labels)
        self._check_room(labels)
        for label in labels:
            self._open_server(label)
            try:
                self._look_at(label)
            except ServerError as error:
                raise InputError(str(error)) from None
            except (TypeError, AttributeError, KeyError) as error:
                blamed = self._clients[label].blame(f"its pages are not those of this kind of server ({error!r})")
                raise InputError(str(blamed)) from None

    def _open_server(self, label: str) -> None:
        if label not in self.urls:
            self.say(f"starting the server of {label}")
            server = StartedServer(
                label, self.commands[label], self.values, self.logs / f"{label}.log", self._access.get_secret()
            )
            self._stack.callback(server.end)
            server.await_health(self.protocol.health, self.start_s)
            self._started[label] = server
        pause = PAUSE if self.protocol.tells_times and self.concurrency == 1 else 0.0  # under load, the clock here counts
        url = self.urls.get(label) or self._started[label].url
        client = Client(label, url, self.protocol, self._access, pause, alone=self.concurrency == 1)
        self._stack.callback(client.close)
        self._clients[label] = client
        self._here[label] = is_here(client.url)

    def _check_files(self, labels: Collection[str]) -> None:
        """Raise InputError for a GGUF file that does not exist."""
        commands = " ".join(self.commands.get(label, "") for label in labels) if self.protocol.reads_gguf else ""
        for name in ("model", "draft"):
            value = self.values.get(name)
            if value and f"{{{name}}}" in commands and not Path(str(value)).is_file():
                raise InputError(f"values.{name}={show_value(value)}: no such file")

    def _list_files(self, labels: Collection[str]) -> set[Path]:
        commands = " ".join(self.commands.get(label, "") for label in labels)
        named = {Path(str(value)) for name, value in self.values.items() if value and f"{{{name}}}" in commands}
        return {path.resolve() for path in named if path.is_file()}

    def _check_room(self, labels: Collection[str]) -> None:
        """Raise InputError if the files that servers read do not fit the memory at once. A file that two read counts once."""
        size, free = sum(path.stat().st_size for path in self._list_files(labels)), get_free_memory(self.target.device)
        if size > free:
            raise InputError(f"the servers read {size / 1e9:.1f} GB of weights at once; {free / 1e9:.1f} GB of memory are free")

    def _check_shared(self, labels: Collection[str]) -> None:
        """Raise InputError if two methods have one server: speculation cannot be switched by request."""
        places: dict[frozenset[tuple[str, int]], str] = {}
        for label in (label for label in labels if label in self.urls):
            other = places.setdefault(resolve(self.urls[label]), label)
            if other != label:
                url = self.urls[label]
                raise InputError(f"{other} and {label} share the server at {url}; each method needs its own")

    def _look_at(self, label: str) -> None:
        """Read a server's pages. Raises InputError for a baseline that drafts, and for a method without speculation."""
        client = self._clients[label]
        self._about[label] = {"url": client.url, **self.protocol.describe(client.get)}
        self._check_model(client)
        told = self.protocol.speculates(client.get)
        if told is not None and told != (label != BASELINE):
            what = "it drafts" if told else "it was started without speculation"
            raise InputError(f"the server of {label} at {client.url}: {what}")

    def _check_model(self, client: Client) -> None:
        """Raise ServerError for a model far from the target's size. Models of one size can be told apart only by their texts."""
        own, told = sum(weight.numel() for weight in self.target.model.parameters()), self.protocol.count_weights(client.get)
        if told is not None and own and not 1 / APART < told / own < APART:  # output weights may count twice, or not at all
            raise client.blame(f"its model has {told / 1e6:,.1f} M weights, the target {own / 1e6:,.1f} M")

    def probe(self, label: str, prompt: list[int], sampling: Sampling) -> None:
        """Ask for a few tokens, twice. Raises InputError for a server that refuses, remembers the prompt, or returns no ids.

        Also raises it for one that gives a prompt two different answers at temperature 0.
        """
        short = replace(sampling, max_new_tokens=min(PROBE_TOKENS, sampling.max_new_tokens), min_new_tokens=0)
        try:
            first, answer = (self._ask(label, prompt, short).answer for _ in range(2))
            if sampling.temperature == 0 and (first.ids, first.text) != (answer.ids, answer.text):
                what = "it gives a prompt two different answers at temperature 0: does it override the temperature?"
                raise self._clients[label].blame(what)
            self._check_told(label, answer)
        except ServerError as error:
            raise InputError(str(error)) from None

    def _check_told(self, label: str, answer: Answer) -> None:
        """Find out how a method's drafts are counted.

        Raises ServerError if they are not, or if servers time by different clocks.
        """
        client = self._clients[label]
        self._clocks[label] = answer.prefill_s is not None and answer.decode_s is not None
        if len(set(self._clocks.values())) > 1:
            other = next(name for name, tells in self._clocks.items() if tells != self._clocks[label])
            raise client.blame(f"only one of it and the server of {other} reports its own times: start both alike")
        if label == BASELINE or not self.returns_ids or answer.drafted is not None or answer.counts is not None:
            return
        if self.protocol.counters is None:
            raise client.blame("it does not report drafted tokens: is it too old, or was it started without speculation?")
        self._count_drafts(client)
        self._counting.add(label)

    def close(self) -> None:
        self._stack.close()

    def describe_servers(self) -> dict[str, Any]:
        return self._about

    def find_processes(self, label: str) -> Collection[int] | None:
        if label in self._started:
            return ()
        return find_family(self._clients[label].url) if self._here[label] else None

    def generate(self, label: str, prompt: list[int], sampling: Sampling) -> ServedGeneration:
        before = self._read_counters(label)
        timed = self._ask(label, prompt, sampling)
        if before is not None and timed.answer.counts is None:
            drafted, accepted = (now - then for now, then in zip(self._read_counters(label) or before, before, strict=True))
            timed.answer.counts = Counts(drafted, accepted)
        out = build_generation(timed)
        if out.finish_reason == "length" and self.target.context - len(prompt) < sampling.max_new_tokens:
            out.finish_reason = "capacity"
        return out

    def _read_counters(self, label: str) -> tuple[int, int] | None:
        """Return the totals of drafted and accepted tokens of a server that tells them no other way, and has one client."""
        return self._count_drafts(self._clients[label]) if label in self._counting and self.concurrency == 1 else None

    def _count_drafts(self, client: Client) -> tuple[int, int]:
        """Return a server's totals of drafted and accepted tokens. Raises ServerError."""
        try:
            return count_drafts(client.get("/metrics"), self.protocol.counters or ("", ""))
        except ServerError as error:
            raise client.blame(str(error)) from None

    def _ask(self, label: str, prompt: list[int], sampling: Sampling) -> Timed:
        room = self.target.context - len(prompt)
        if room < 1:
            raise CapacityError(f"a prompt of {len(prompt)} tokens does not fit a context of {self.target.context}")
        short = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        text = self.decode(prompt) if self.prompts == "text" else None
        client = self._clients[label]
        timed = client.ask(self.protocol.build_request(prompt, short, self.model, text))
        try:
            if self.returns_ids and timed.answer.ids is None:
                raise ServerError(NO_IDS)
            timed.answer.check(prompt, short.max_new_tokens, self.target.vocabulary, sampling.stop_token_ids)
        except ServerError as error:
            raise client.blame(str(error)) from None
        return timed


def build_generation(timed: Timed) -> ServedGeneration:
    """Convert a server's generation to that of any engine."""
    answer = timed.answer
    assert answer.reason is not None
    out = ServedGeneration(output_ids=answer.ids or [], finish_reason=answer.reason, sees_steps=answer.drafted is not None)
    out.prefill_s, out.decode_s = timed.first_s, timed.last_s - timed.first_s
    if answer.prefill_s is not None and answer.decode_s is not None:
        out.prefill_s, out.decode_s = answer.prefill_s, answer.decode_s
    out.client_first_s, out.client_last_s, out.turned_away = timed.first_s, timed.last_s, timed.turned_away
    if answer.ids is None:
        out.text, out.tokens = answer.text, answer.tokens or 0
    if answer.drafted is not None:
        out.drafted, out.accepted, out.committed = answer.drafted, answer.accepted or [], answer.committed or []
        out.depth, out.nodes = list(out.drafted), [drafted + 1 for drafted in out.drafted]
    elif answer.counts is not None:
        out.sums = answer.counts.to_sums()
    return out
