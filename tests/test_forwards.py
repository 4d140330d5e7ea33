"""Which forward a model gets, with a compiler that does what a test wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from specbench.decoding.language_model import LanguageModel
from specbench.decoding.runner import Runner
from specbench.decoding.static import StaticPass
from specbench.engine.native import Native
from specbench.errors import InputError
from specbench.models import forwards
from specbench.models.forwards import Shape, choose_forward
from tests.methods_under_test import drafter_of
from tests.tiny import tiny_model

SHAPES = [Shape(), Shape(several=True), Shape((1,), several=True)]


def model() -> LanguageModel:
    return LanguageModel(tiny_model("llama", 2, dtype=torch.float32))


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwards, "SMALLEST", 0)
    monkeypatch.setattr(forwards, "CONTEXT", 30)


def plant(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits) -> list[Any]:
    """A compiler that returns the static forward, its logits changed. Returns what it was asked for."""
    asked: list[Any] = []

    def compile(compute: Any, inputs: Any, static: StaticPass, key: Any) -> Any:
        asked.append(key)

        def run(inputs: Any, slots: Any, masks: Any, layers: Any) -> tuple[torch.Tensor, torch.Tensor]:
            logits, hidden = compute(*inputs, StaticPass(layers, slots, masks))
            return change(logits), hidden

        return run

    monkeypatch.setattr("specbench.decoding.runner._compile", compile)
    return asked


def take(monkeypatch: pytest.MonkeyPatch, eager_ms: float, compiled_ms: float) -> None:
    monkeypatch.setattr(forwards, "time_both", lambda *_: ([eager_ms / 1e3] * 3, [compiled_ms / 1e3] * 3))


def test_a_faster_equal_forward_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, target = plant(monkeypatch), model()
    take(monkeypatch, 2.0, 1.0)
    choice = choose_forward(target, SHAPES)
    assert (choice.kind, choice.why, target.runner.kind) == ("compiled", "", "compiled")
    assert [(key.variant, key.one_node) for key in asked] == [((), True), ((), False), ((1,), False)]
    names = ["one node", "several nodes", "several nodes with hidden states 1"]
    assert target.runner.graphs == 3 and choice.times == dict.fromkeys(names, (2.0, 1.0))
    choose_forward(target, [*SHAPES, Shape((0,), several=True)])
    assert len(asked) == 4, "what is compiled stays"


def fail(*_: object) -> Any:
    raise RuntimeError("no g++")


@pytest.mark.parametrize(
    "change, times, why",
    [
        (lambda logits: logits + torch.linspace(0, 1, logits.shape[-1]), (2.0, 1.0), "it differs from eager by"),
        (
            lambda logits: logits * float("nan"),
            (2.0, 1.0),
            "from eager by inf of the output's spread; the bound is 0.001",
        ),
        (lambda logits: logits, (1.0, 2.0), "compiled, it is slower over one node and several nodes"),
        (fail, (2.0, 1.0), "it cannot be compiled: RuntimeError: no g++"),
    ],
)
def test_another_one_is_not_and_says_why(
    change: Any, times: tuple[float, float], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, change)
    take(monkeypatch, *times)
    target = model()
    choice = choose_forward(target, SHAPES)
    assert choice.kind == target.runner.kind == "eager" and why in choice.why and not choice.expected


def test_compiled_is_refused_where_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.decoding.runner._compile", fail)
    with pytest.raises(InputError, match=r"engine\.native\.forward=compiled: it cannot be compiled: RuntimeError: no g\+\+"):
        choose_forward(model(), SHAPES, "compiled")


def test_what_is_set_wins_over_what_was_measured_or_set_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, target = plant(monkeypatch), model()
    take(monkeypatch, 1.0, 2.0)
    kinds: list[Any] = ["compiled", "eager", "auto", "static", "compiled", "auto"]
    assert [choose_forward(target, SHAPES, kind).kind for kind in kinds] == [
        "compiled",
        "eager",
        "eager",
        "static",
        "compiled",
        "eager",
    ]
    assert len(asked) == 3, "compiled once"


def test_a_busy_machine_overturns_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    monkeypatch.setattr(forwards, "time_both", lambda *_: ([2.0, 2.0, 2.0], [1.0, 9.0, 1.0]))
    assert choose_forward(model(), SHAPES).kind == "compiled"


def test_a_compilers_first_complaint_is_the_reason() -> None:
    error = RuntimeError("g++ -O3 " + "x" * 600 + "\nOutput:\na.cpp:3: warning: this\na.cpp:4: internal compiler error: boom\n")
    assert forwards._find_cause(error) == "a.cpp:4: internal compiler error: boom"


@pytest.mark.parametrize("wanted", ["eager", "static"])
def test_what_is_set_needs_no_compiler(wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.decoding.runner._compile", lambda *_: pytest.fail("compiled"))
    target = model()
    assert choose_forward(target, SHAPES, wanted).kind == target.runner.kind == wanted


def test_a_small_model_stays_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwards, "SMALLEST", 1 << 40)
    assert choose_forward(model(), SHAPES).why == "the model is too small to gain"


def test_the_engine_compiles_what_its_methods_need_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plant(monkeypatch)
    engine, target = Native(profile=False, forward="compiled"), model()
    drafters = {label: drafter_of(label, "llama") for label in ("autoregressive", "pld")}
    engine.open(target, drafters)
    assert [key.one_node for key in asked] == [True, False]
    described = engine.describe_forwards()
    assert list(described) == ["target"] and described["target"]["kind"] == "compiled"
    assert target.runner.graphs == 2


def test_a_resumed_run_keeps_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.decoding.runner._compile", lambda *_: pytest.fail("compiled"))
    engine, target = Native(profile=False), model()
    engine.recall({"target": {"kind": "eager"}})
    engine.open(target, {"pld": drafter_of("pld", "llama")})
    assert target.runner.kind == "eager"
    monkeypatch.setattr(forwards, "find_compiler", lambda: None)
    engine.recall({"target": {"kind": "compiled"}})
    with pytest.raises(InputError, match=r"^the run began with compiled forwards; choose another out: no C\+\+ compiler"):
        engine.open(target, {"pld": drafter_of("pld", "llama")})


def test_forwards_over_many_nodes_run_eagerly() -> None:
    runner: Runner[None] = Runner(lambda *_: pytest.fail("ran"))
    assert not runner.is_static(9), "eager"
    runner.kind = "static"
    assert runner.is_static(9) and not runner.is_static(300)
