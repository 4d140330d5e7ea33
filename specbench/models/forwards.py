"""Choose how a model's forwards run: compiled where a compiler is there and measuring says that it pays, else eager.

The compiled forward is compared with the eager one before it is used, in logits and in time, on random tokens in the shapes that
the run's methods verify. Its difference may be as large as the self-test allows between ours and transformers'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler

from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.runner import Kind
from specbench.decoding.tree import DraftTree
from specbench.errors import InputError, format_error, is_out_of_memory
from specbench.models.logits import is_finite, measure_distance
from specbench.models.products import prepare_for_graphs

Wanted = Literal["auto", "eager", "static", "compiled"]
CONTEXT = 128  # tokens before the nodes of a trial
NODES = 9  # of a trial of several
ROUNDS, FORWARDS = 5, 6  # of a timing: eager and compiled in turns, so many forwards each
SMALLEST = 4_000_000  # weights of a target whose forward takes long enough to be worth a compiler's minute
BOUND = {torch.float64: 1e-5, torch.float32: 1e-3}  # of a model without a self-test, as a share of the logits' spread
BOUND_IN_16_BITS = 0.1
KINDS: tuple[Kind, Kind] = ("eager", "compiled")


@dataclass(frozen=True)
class Shape:
    """Forwards of one kind: the hidden states they return, and whether over one node or several."""

    taps: tuple[int, ...] = ()
    several: bool = False


@dataclass
class Choice:
    """What run.json says of a model's forwards. why: they are not compiled, or empty.

    products: of its linear layers, see products.py. difference: of logits, relative to their spread. times: milliseconds, eager
    then compiled, by shape.
    """

    kind: Kind
    why: str = ""
    seconds: float = 0.0  # of compiling and trying out
    difference: float = 0.0
    times: dict[str, tuple[float, float]] = field(default_factory=dict)
    products: dict[str, int | None] = field(default_factory=dict)


_choices: WeakKeyDictionary[LanguageModel, Choice] = WeakKeyDictionary()


@torch.inference_mode()
def choose_forward(
    model: LanguageModel,
    shapes: Sequence[Shape],
    wanted: Wanted = "auto",
    compiling: Callable[[], None] = lambda: None,
    small: bool = False,
) -> Choice:
    """Set the kind of the model's forwards and return why.

    compiling: called before that starts. small: also compile a model of few weights (a draft model). A second call for the same
    model compiles what is new and keeps the kind. Raises InputError where `compiled` is wanted and cannot be had.
    """
    known = _choices.get(model)
    shapes = [shape for shape in dict.fromkeys(shapes) if not model.runner.has_graph(shape.taps, shape.several)]
    if known and wanted == "auto" and (known.kind != "compiled" or not shapes):
        return known
    if reason := "" if known and known.kind == "compiled" else _find_obstacle(model, wanted, small):
        choice = Choice("static" if wanted == "static" else "eager", reason)
    else:
        compiling()
        choice = _try_compiled(model, shapes, known or Choice("compiled"), timed=wanted == "auto")
    if wanted == "compiled" and choice.kind != "compiled":
        raise InputError(f"engine.native.forward=compiled: {choice.why}")
    model.runner.kind, choice.products = choice.kind, model.products
    _choices[model] = choice
    return choice


def _find_obstacle(model: LanguageModel, wanted: Wanted, small: bool) -> str:
    """Return why the forward is not even tried compiled; empty if it is."""
    if wanted in ("eager", "static"):
        return f"{wanted} is set"
    weights = list(model.model.parameters())
    if len({weight.device for weight in weights}) > 1 or model.device.type != "cpu":
        return "it does not lie on the CPU"
    if wanted == "auto" and not small and sum(weight.numel() for weight in weights) < SMALLEST:
        return "the model is too small to gain"
    if find_compiler() is None:
        return "no C++ compiler is found"
    if model.context < CONTEXT + NODES:
        return "its context is too short to try it out"
    return ""


def find_compiler() -> str | None:
    """Return the C++ compiler that torch.compile would call, if there is one."""
    try:
        return str(get_cpp_compiler())
    except Exception:  # of any type, by version of torch
        return None


def _try_compiled(model: LanguageModel, shapes: Sequence[Shape], before: Choice, timed: bool) -> Choice:
    """Return the choice once these shapes are compiled, too. before: the choice so far."""
    started = perf_counter()
    choice = replace(before, times=dict(before.times))
    try:
        prepare_for_graphs(model.model)
        _compare(model, shapes, choice, timed)
    except Exception as error:  # of any type: a compiler's, or that none is there
        if is_out_of_memory(error):
            raise
        choice.kind, choice.why = "eager", f"it cannot be compiled: {format_error(error)}"
    finally:
        model.tap(())
    choice.seconds = round(before.seconds + perf_counter() - started, 2)
    return choice


def _compare(model: LanguageModel, shapes: Sequence[Shape], choice: Choice, timed: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    store = model.create_store(CONTEXT + NODES)
    tokens = torch.randint(model.vocabulary, (CONTEXT + NODES,), generator=draw).to(model.device)
    model.prefill(store, [tokens[:CONTEXT]])
    bound = model.self_test.get("bound") or get_bound(model.dtype)
    for shape in shapes:
        tree = DraftTree.chain(tokens[CONTEXT:] if shape.several else tokens[CONTEXT : CONTEXT + 1])
        model.tap(shape.taps)
        expected = _run(model, store, tree, "eager")
        model.compile(store, [tree])
        found = _run(model, store, tree, "compiled")
        difference = float(measure_distance(found.float(), expected.float()).max()) if is_finite(found) else float("inf")
        choice.difference = max(choice.difference, difference)
        if not difference <= bound:
            choice.kind, choice.why = "eager", f"compiled logits leave eager's by {difference:.2g} of their spread"
        elif timed and not shape.taps:
            eager, compiled = (partial(_run, model, store, tree, kind) for kind in KINDS)
            choice.times["several nodes" if shape.several else "one node"] = time_both(eager, compiled)
    slower = [name for name, (eager, compiled) in choice.times.items() if compiled > eager]
    if slower and not choice.why:
        choice.kind, choice.why = "eager", f"compiled is slower over {' and '.join(slower)}"


def get_bound(dtype: torch.dtype) -> float:
    """Return how far a compiled output may be from the eager one, as a share of its spread, where no self-test says it."""
    return BOUND.get(dtype, BOUND_IN_16_BITS)


def _run(model: LanguageModel, store: KVStore, tree: DraftTree, kind: Kind) -> Tensor:
    model.runner.kind = kind
    return model.forward(store, [tree])[0].logits


def time_both(eager: Callable[[], object], compiled: Callable[[], object]) -> tuple[float, float]:
    """Return the milliseconds of an eager and of a compiled forward: medians of rounds in which they take turns."""
    seconds: dict[Callable[[], object], list[float]] = {eager: [], compiled: []}
    for _ in range(ROUNDS):
        for forward, taken in seconds.items():
            forward()
            started = perf_counter()
            for _ in range(FORWARDS):
                forward()
            taken.append((perf_counter() - started) / FORWARDS)
    first, second = (round(1e3 * median(taken), 4) for taken in seconds.values())
    return first, second
