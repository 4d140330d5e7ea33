"""What a run needs before it is made: bytes and minutes, of the target and by method; what cannot fit is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from specbench.errors import InputError, abbreviate
from specbench.machine.devices import DTYPES
from specbench.models.load import estimate_memory
from specbench.records.trial import BASELINE
from specbench.running.baseline import choose_dtypes

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
LEAST_TOKENS = 16  # of an answer worth timing
LONG = 5  # minutes from which a run says how to stop and resume it
ASSUMED = "for answers of full length and no accepted draft; loading and compiling come on top"


@dataclass(frozen=True)
class Need:
    """Bytes. weights, packed (their copies in a CPU's block layout) and kv stay for the run, working only for a turn.

    A method's own; `working` is of a whole turn with it, the target's forwards included.
    """

    weights: int
    packed: int
    kv: int
    working: int

    @property
    def lasting(self) -> int:
        return self.weights + self.packed + self.kv


@dataclass(frozen=True)
class RunNeed:
    """The need of the target, whose turn is autoregressive decoding's, and by label of the methods; None where it is not known.

    parameters: of the target. active: the share of them that a token takes. prompt: tokens of the longest one. dtypes: in which
    the baseline is checked besides its own.
    """

    target: Need
    methods: Mapping[str, Need | None]
    parameters: int
    dtype: torch.dtype
    device: torch.device
    prompt: int
    active: float = 1.0
    dtypes: tuple[str, ...] = field(default=())

    @property
    def lasting(self) -> int:
        return self.target.lasting + sum(need.lasting for need in self.methods.values() if need)

    @property
    def total(self) -> int:
        """Bytes while the run measures: everything is loaded, and one turn is decoded at a time."""
        return self.lasting + max([self.target.working, *(need.working for need in self.methods.values() if need)])

    @property
    def copy(self) -> int:
        """Bytes of the float32 copy on which a model in 16 bits is tested at load, if there is room for it."""
        return self.parameters * torch.float32.itemsize if self.dtype in SIXTEEN_BITS else 0

    @property
    def others(self) -> int:
        """Bytes of the target in other dtypes, for the check of the baseline."""
        return sum(estimate_memory(self.parameters, DTYPES[dtype], self.device) for dtype in self.dtypes)

    def without(self, label: str) -> RunNeed:
        return replace(self, methods={name: need for name, need in self.methods.items() if name != label})

    def limit(self, free: int, check_baseline: bool, plain: bool) -> RunNeed:
        """Return the need with the baseline's dtypes that so many free bytes have room for. plain: the model is on one device."""
        chosen = choose_dtypes(self.parameters, self.dtype, self.device, max(0, free - self.lasting))
        return replace(self, dtypes=tuple(chosen) if check_baseline and plain else ())


def check_need(need: RunNeed, free: int, max_new_tokens: int) -> None:
    """Raise InputError, with a setting that would fit, for a run that needs more than the free bytes."""
    missing = need.total - free
    if missing <= 0:
        return
    sizes = [f"the target {format_bytes(need.target.lasting)}"]
    sizes += [f"{label} {format_bytes(method.lasting)}" for label, method in need.methods.items() if method and method.lasting]
    needed = f"the run needs {format_bytes(need.total)} on {need.device} ({', '.join(sizes)})"
    raise InputError(f"{_advise(need, missing, max_new_tokens)}: {needed}, where {format_bytes(free)} are free")


def _advise(need: RunNeed, missing: int, max_new_tokens: int) -> str:
    """Return the setting to change and what would fit: a shorter answer, fewer methods, a smaller dtype, another model."""
    kv = need.target.kv + sum(method.kv for method in need.methods.values() if method)
    room = max_new_tokens - -(-missing * (need.prompt + max_new_tokens) // max(1, kv))
    if room >= LEAST_TOKENS:
        return f"sampling.max_new_tokens={max_new_tokens}: expected at most about {room}"
    left, dropped = need, list[str]()
    for label in sorted(need.methods, key=lambda label: need.total - need.without(label).total, reverse=True):
        left, dropped = left.without(label), [*dropped, label]
        if left.total <= need.total - missing:
            return f"method=[{','.join(need.methods)}]: expected fewer, such as without {abbreviate(dropped)}"
    smaller = "bfloat16" if need.dtype.itemsize > 2 else ""
    half = need.target.lasting * 2 // need.dtype.itemsize
    if smaller and half <= need.total - missing:
        return f"target.dtype={str(need.dtype)[6:]}: expected {smaller}"
    return "target: expected a smaller model or another device"


def format_bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@dataclass(frozen=True)
class Minutes:
    """Estimated minutes of a run by method, as `ASSUMED` says."""

    by_method: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.by_method.values())


def format_need(need: RunNeed, free: int) -> list[str]:
    """Return what a run says of its memory at its start."""
    parts = [f"target {_describe(need.target)}"]
    parts += [f"{label} {_describe(method)}" for label, method in need.methods.items() if method and method.lasting]
    unknown = [label for label, method in need.methods.items() if method is None]
    beside = f"; {abbreviate(unknown)}: not known" if unknown else ""
    lines = [f"memory: {format_bytes(need.total)} of {format_bytes(free)} free: {'; '.join(parts)}{beside}"]
    return [*lines, *_format_copies(need)]


def format_time(minutes: float, stopping: str) -> list[str]:
    """Return what a run says of its time at its start; of a long one, what Ctrl-C does."""
    remedy = f"; {stopping}" if stopping and minutes > LONG else ""
    return [f"time: at most about {_format_minutes(minutes)}{remedy}", f"estimated {ASSUMED}"]


def _describe(need: Need) -> str:
    named = {"weights": need.weights, "packed": need.packed, "KV": need.kv}
    return ", ".join(f"{format_bytes(size)} {name}" for name, size in named.items() if size)


def _format_copies(need: RunNeed) -> list[str]:
    """Return the line of what is there for a while only."""
    copies = [f"{format_bytes(need.copy)} for a float32 copy at load"] if need.copy else []
    copies += [f"{format_bytes(need.others)} for the target in {', '.join(need.dtypes)} (check_baseline)"] if need.dtypes else []
    return [f"for a while, if as much is free: {'; '.join(copies)}"] if copies else []


def _format_minutes(minutes: float) -> str:
    if minutes >= 120:
        return f"{minutes / 60:.1f} hours"
    return f"{minutes:.0f} minutes" if minutes >= 10 else f"{max(minutes, 0.1):.1f} minutes"


def build_need_table(need: RunNeed, minutes: Minutes, free: int) -> Table:
    """Return the table of a run's memory and minutes for the terminal."""
    table = Table(title=f"Needed by the run, in MB on {need.device}", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("weights", "packed", "KV", "in a turn", "minutes"):
        table.add_column(name, justify="right")
    rows = {BASELINE: need.target, **need.methods}
    for label, method in rows.items():
        sizes = (method.weights, method.packed, method.kv, method.working) if method else None
        cells = [f"{size / 1e6:,.0f}" for size in sizes] if sizes else ["?"] * 4
        time = minutes.by_method.get(label)
        table.add_row("target" if label == BASELINE else label, *cells, "?" if time is None else f"{time:.1f}")
    memory = f"{format_bytes(need.total)} at once, of {format_bytes(free)} free"
    table.caption = "\n".join([memory, *_format_copies(need), f"about {_format_minutes(minutes.total)}, estimated {ASSUMED}"])
    return table
