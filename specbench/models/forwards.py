"""Choose how a model's forwards run: compiled, on CUDA as graphs, where that works and measuring says that it pays; else eager.

The faster forward is compared with the eager one before it is used, in logits and in time, on random tokens in the shapes that
the run's methods verify. Its difference may be as large as the self-test allows between ours and transformers'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._inductor.cpp_builder import get_cpp_compiler

from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.runner import Kind
from specbench.decoding.tree import DraftTree
from specbench.errors import InputError, format_error, is_out_of_memory
from specbench.machine.devices import synchronize
from specbench.models.logits import is_finite, measure_distance
from specbench.models.products import is_faster, prepare_for_graphs

Wanted = Literal["auto", "eager", "static", "compiled", "graph"]
CONTEXT = 128  # tokens before the nodes of a trial
NODES = 9  # of a trial of several
SHORTER = 5  # rows of a batch are shorter by up to this many tokens
ROUNDS, FORWARDS = 5, 6  # of a timing: eager and compiled in turns, this many forwards each
SMALLEST = 4_000_000  # weights of a target whose forward takes long enough to be worth a minute of compiling
BOUND = {torch.float64: 1e-5, torch.float32: 1e-3}  # of a model without a self-test, as a share of the logits' spread
BOUND_IN_16_BITS = 0.1
CHOSEN = "another kind was chosen"
SETTING = "engine.native.forward"


@dataclass(frozen=True)
class Shape:
    """Forwards of one kind: the hidden states they return, whether over one node or several, and of how many sequences."""

    taps: tuple[int, ...] = ()
    several: bool = False
    batch: int = 1

    @property
    def name(self) -> str:
        tapped = f" with hidden states {', '.join(map(str, self.taps))}" if self.taps else ""
        beside = f" of {self.batch} sequences" if self.batch > 1 else ""
        return ("several nodes" if self.several else "one node") + beside + tapped


@dataclass
class Choice:
    """What run.json says about a model's forwards. why: the reason that they are eager, or empty; expected: it needs no notice.

    products, sums: of its linear layers, see products.py. seconds: of compiling and trying out. difference: of logits, relative
    to their spread. times: milliseconds, eager then compiled or as a graph, by shape.
    """

    kind: Kind
    why: str = ""
    expected: bool = True
    products: dict[str, int | None] = field(default_factory=dict)
    sums: bool | None = None
    seconds: float = 0.0
    difference: float = 0.0
    times: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A faster forward and the eager one. bound: how far their outputs may differ, as a share of the eager one's spread."""

    name: str
    eager: Callable[[], Tensor]
    faster: Callable[[], Tensor]
    bound: float


class Trials:
    """What became of the faster forwards of one model, or of a drafter's own layers: compiled, or graphs on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.failure = ""
        self.slower: list[str] = []
        self.measured = Choice(get_fast_kind(device))
        self._how = "as a graph" if self.measured.kind == "graph" else "compiled"

    def run(self, trials: Iterator[Trial], module: nn.Module) -> None:
        """Compare forwards, which `trials` makes one by one. module: what they belong to."""
        started = perf_counter()
        try:
            if self.measured.kind == "compiled":
                self.measured.sums = prepare_for_graphs(module)
            for trial in trials:
                self._compare(trial)
                if self.failure:
                    break
        except Exception as error:  # of any type: a compiler's, or that none is there
            if is_out_of_memory(error):
                raise
            self.failure = f"it cannot be {'captured' if self.measured.kind == 'graph' else 'compiled'}: {_find_cause(error)}"
        self.measured.seconds = round(self.measured.seconds + perf_counter() - started, 2)

    def _compare(self, trial: Trial) -> None:
        expected, found = trial.eager(), trial.faster()
        difference = float(measure_distance(found.float(), expected.float()).max()) if is_finite(found) else float("inf")
        self.measured.difference = max(self.measured.difference, difference)
        if not difference <= trial.bound:
            allowed = f"the bound is {trial.bound:.2g}"
            self.failure = f"{self._how}, it differs from eager by {difference:.2g} of the output's spread; {allowed}"
            return
        eager_s, faster_s = time_both(trial.eager, trial.faster)
        self.measured.times[trial.name] = (round(1e3 * min(eager_s), 4), round(1e3 * min(faster_s), 4))
        if is_faster(eager_s, faster_s, margin=1.0):
            self.slower.append(trial.name)

    def choose(self, wanted: Wanted, asked: str) -> Choice:
        """Return the choice. asked: who wants the faster kind. Raises InputError if that is impossible."""
        why = self.failure
        if wanted == "auto" and self.slower and not why:
            why = f"{self._how}, it is slower over {' and '.join(self.slower)}"
        if wanted == self.measured.kind and why:
            raise InputError(f"{asked}: {why}")
        return replace(self.measured, kind="eager" if why else self.measured.kind, why=why, expected=not why)


_trials: WeakKeyDictionary[LanguageModel, Trials] = WeakKeyDictionary()


@torch.inference_mode()
def choose_forward(
    model: LanguageModel,
    shapes: Sequence[Shape],
    wanted: Wanted = "auto",
    asked: str = "",
    compiling: Callable[[], None] = lambda: None,
    small: bool = False,
) -> Choice:
    """Set the kind of the model's forwards and return why. What was compiled and measured before is not compiled again.

    asked: who wants the kind, for a message. compiling: called before that starts. small: also compile a model of few weights (a
    draft model). Raises InputError if that kind is impossible.
    """
    asked = asked or f"{SETTING}={wanted}"
    trials = _trials.setdefault(model, Trials(model.device))
    obstacle, expected = _find_obstacle(model, wanted, small)
    if obstacle:
        choice = _do_without(wanted, asked, obstacle, expected)
    else:
        new = [shape for shape in dict.fromkeys(shapes) if shape.name not in trials.measured.times]
        if new and not trials.failure:
            compiling()
            trials.run(_list_trials(model, new), model.model)
            model.tap(())
        choice = trials.choose(wanted, asked)
    model.runner.kind, choice.products = choice.kind, model.products
    return choice


def _do_without(wanted: Wanted, asked: str, obstacle: str, expected: bool) -> Choice:
    if wanted in ("compiled", "graph") or (wanted == "static" and obstacle != CHOSEN):
        raise InputError(f"{asked}: {obstacle}")
    return Choice("static" if wanted == "static" else "eager", obstacle, expected)


def _find_obstacle(model: LanguageModel, wanted: Wanted, small: bool) -> tuple[str, bool]:
    """Return why no faster forward is even tried (empty if one is), and whether that needs no notice."""
    weights = list(model.model.parameters())
    devices = {weight.device for weight in weights}
    if wanted == "eager" or (wanted == "static" and len(devices) == 1):
        return CHOSEN, True
    if len(devices) > 1:
        return "the model is spread over devices", True
    device = model.device.type
    if device not in ("cpu", "cuda") or (wanted in ("compiled", "graph") and wanted != get_fast_kind(model.device)):
        return f"the model is on {device}", True
    if wanted == "auto" and not small and sum(weight.numel() for weight in weights) < SMALLEST:
        return "the model is too small to gain", True
    if device == "cpu" and find_compiler() is None:
        return "no C++ compiler was found", False
    if model.context < CONTEXT + NODES + 1:
        return "its context is too short to try it out", False
    return "", True


def get_fast_kind(device: torch.device) -> Literal["compiled", "graph"]:
    return "graph" if device.type == "cuda" else "compiled"


def find_compiler() -> str | None:
    """Return the C++ compiler that torch.compile would call, if there is one."""
    try:
        return str(get_cpp_compiler())
    except Exception:  # of any type, by version of torch
        return None


def _find_cause(error: Exception) -> str:
    """Return a compiler's first complaint, or else the error's own message."""
    complaints = [line.strip() for line in str(error).splitlines() if "error:" in line]
    return complaints[0] if complaints else format_error(error)


def _list_trials(model: LanguageModel, shapes: Sequence[Shape]) -> Iterator[Trial]:
    draw = torch.Generator().manual_seed(0)
    stores: dict[int, KVStore] = {}  # by batch
    tokens = torch.randint(model.vocabulary, (CONTEXT + NODES + 1,), generator=draw).to(model.device)
    bound, fast = model.self_test.get("bound") or get_bound(model.dtype), get_fast_kind(model.device)
    for shape in shapes:
        count = choose_nodes(NODES, shape.batch) if shape.several else 1
        trees, others = (_draw_chains(tokens, start, count, shape.batch) for start in (CONTEXT, CONTEXT - count))
        if shape.batch not in stores:
            stores[shape.batch] = model.create_store(CONTEXT + NODES + 1, shape.batch)
            model.tap(())
            model.prefill(stores[shape.batch], [tokens[: CONTEXT - row % SHORTER] for row in range(shape.batch)])
        store = stores[shape.batch]
        model.tap(shape.taps)
        if fast == "compiled":
            model.compile(store, trees)
        else:
            _run(model, store, others, fast)  # recorded with other tokens than the compared ones: no trace of these may remain
        yield Trial(shape.name, partial(_run, model, store, trees, "eager"), partial(_run, model, store, trees, fast), bound)


def choose_nodes(nodes: int, batch: int) -> int:
    """Return a number of nodes that is not the batch: a graph traced over equal sizes would take them for one."""
    return nodes + (nodes == batch)


def _draw_chains(tokens: Tensor, start: int, count: int, batch: int) -> list[DraftTree]:
    """Return a chain per row, each of different tokens."""
    return [DraftTree.chain(tokens.roll(row)[start : start + count]) for row in range(batch)]


def get_bound(dtype: torch.dtype) -> float:
    """Return how far a compiled output may be from the eager one, as a share of its spread, where no self-test gives a bound."""
    return BOUND.get(dtype, BOUND_IN_16_BITS)


def _run(model: LanguageModel, store: KVStore, trees: list[DraftTree], kind: Kind) -> Tensor:
    model.runner.kind = kind
    return torch.cat([out.logits for out in model.forward(store, trees)])


def time_both(eager: Callable[[], Tensor], faster: Callable[[], Tensor]) -> tuple[list[float], list[float]]:
    """Return the seconds of an eager and of a faster forward, by round; in a round they take turns."""
    seconds: dict[Callable[[], Tensor], list[float]] = {eager: [], faster: []}
    for _ in range(ROUNDS):
        for forward, taken in seconds.items():
            synchronize(forward().device)
            started = perf_counter()
            for _ in range(FORWARDS):
                out = forward()
            synchronize(out.device)
            taken.append((perf_counter() - started) / FORWARDS)
    return seconds[eager], seconds[faster]
