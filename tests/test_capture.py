"""Forwards as graphs, on a fake graph: every method decodes as it does eagerly, from fixed addresses, and asks for no number."""

from collections.abc import Callable, Iterator
from time import perf_counter, sleep
from typing import Any

import pytest
import torch

from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import Generation, generate
from specbench.decoding.runner import Kind
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.drafters.network_drafter import LayerDrafter
from specbench.engine.native import Native
from specbench.errors import InputError
from specbench.models import forwards
from specbench.models.forwards import Choice, Shape, choose_forward
from tests import fake_graph
from tests.methods_under_test import LAYERS, drafter_of, each_preset
from tests.tiny import VOCABULARY, prompts, tiny_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("specbench.decoding.capture.record", fake_graph.record)
    fake_graph.recorded.clear()
    yield
    fake_graph.recorded.clear()


def list_runners(drafter: Drafter) -> list[object]:
    layers = [part.runner for part in drafter.iter_family() if isinstance(part, LayerDrafter)]
    return [drafter.target.runner, *(model.runner for model in drafter.list_models()), *layers]


def decode(label: str, architecture: str, kind: Kind, sampling: Sampling) -> list[Generation]:
    """Decode two prompts over one store."""
    target = LanguageModel(tiny_model(architecture, LAYERS))
    drafter = drafter_of(label, architecture)
    drafter.bind(target)
    before = [runner.kind for runner in list_runners(drafter)]  # type: ignore[attr-defined]
    for runner in list_runners(drafter):
        runner.kind = kind  # type: ignore[attr-defined]
    store = target.create_store(160)
    outs = [generate(target, drafter, [prompt], sampling, store)[0] for prompt in prompts(2, seed=11, longest=60)]
    for runner, was in zip(list_runners(drafter), before, strict=True):
        runner.kind = was  # type: ignore[attr-defined]
    return outs


@pytest.mark.full
@each_preset
def test_graphs_decode_as_eager_forwards(label: str) -> None:
    sampling = Sampling(max_new_tokens=24)
    expected, found = (decode(label, "llama", kind, sampling) for kind in ("eager", "graph"))
    for eager, graph in zip(expected, found, strict=True):
        assert graph.output_ids == eager.output_ids
        assert (graph.drafted, graph.accepted) == (eager.drafted, eager.accepted)
    assert fake_graph.recorded["index_copy_"]  # something was captured


@pytest.mark.parametrize("architecture", ["qwen3", "mistral", "gemma2"])
def test_graphs_of_other_architectures(architecture: str) -> None:
    sampling = Sampling(max_new_tokens=40)
    for label in ("autoregressive", "medusa"):
        expected, found = (decode(label, architecture, kind, sampling) for kind in ("eager", "graph"))
        assert [out.output_ids for out in found] == [out.output_ids for out in expected]


def test_a_graph_is_recorded_once_per_shape_over_the_latest_store() -> None:
    target = LanguageModel(tiny_model("llama", LAYERS))
    target.runner.kind = "graph"
    drafter = drafter_of("autoregressive", "llama")
    drafter.bind(target)
    store = target.create_store(160)
    prompt = torch.arange(2, 30)
    for _ in range(2):
        generate(target, drafter, [prompt], Sampling(max_new_tokens=50), store)
    buckets = {64, 128}  # 28 + 50 tokens
    assert len(target.runner.captures) == len(buckets)
    generate(target, drafter, [prompt], Sampling(max_new_tokens=3), target.create_store(160))
    assert len(target.runner.captures) == 1, "graphs over a former store are dropped, and it with them"


def test_graphs_used_least_recently_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.decoding.capture.MOST_GRAPHS", 2)
    target = LanguageModel(tiny_model("llama", LAYERS))
    target.runner.kind = "graph"
    store = target.create_store(64)
    with torch.inference_mode():
        target.prefill(store, [torch.arange(2, 12)])
        logits = [target.forward(store, [DraftTree.chain(torch.arange(5, 5 + n))])[0].logits[0] for n in (1, 2, 3, 1)]
    assert len(target.runner.captures) == 2
    assert all(torch.allclose(logits[0], other) for other in logits)


def test_outputs_are_the_callers_own() -> None:
    """A later forward does not change what an earlier one returned."""
    target = LanguageModel(tiny_model("llama", LAYERS))
    target.runner.kind = "graph"
    store = target.create_store(64)
    with torch.inference_mode():
        target.prefill(store, [torch.arange(2, 12)])
        first = target.forward(store, [DraftTree.chain(torch.tensor([5]))])[0].logits
        kept = first.clone()
        target.forward(store, [DraftTree.chain(torch.tensor([9]))])
    assert torch.equal(first, kept)


@pytest.mark.parametrize("label", ["medusa", "token_recycling_warm", "sps"])
def test_no_recording_belongs_to_a_turns_time(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def record_slowly(*arguments: Any) -> Any:
        sleep(0.5)
        return fake_graph.record(*arguments)

    monkeypatch.setattr("specbench.decoding.capture.record", record_slowly)
    target, drafter = LanguageModel(tiny_model("llama", LAYERS)), drafter_of(label, "llama")
    engine = Native(profile=False, forward="eager")
    engine.open(target, {label: drafter})
    models = [target, *drafter.list_models()]
    for model in models:
        model.runner.kind = "graph"
    prompt = torch.randint(VOCABULARY, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    started = perf_counter()
    out = engine.generate(label, prompt, Sampling(max_new_tokens=12))
    recorded = 0.5 * sum(len(model.runner.captures) for model in models)
    assert recorded and 0 < out.decode_s <= perf_counter() - started - recorded
    for model in models:
        model.runner.kind = "eager"


def test_a_captured_region_may_not_ask_the_device() -> None:
    with pytest.raises(RuntimeError, match="_local_scalar_dense in a captured region"):
        fake_graph.record(lambda: torch.ones(3).sum().item(), CPU, None)
    with pytest.raises(RuntimeError, match="index"):
        fake_graph.record(lambda: torch.ones(3)[torch.ones(3) > 0], CPU, None)
    with pytest.raises(RuntimeError, match="lift_fresh"):
        fake_graph.record(lambda: torch.tensor([1]) + 1, CPU, None)


def choose(monkeypatch: pytest.MonkeyPatch, eager_s: float, graph_s: float) -> tuple[Choice, LanguageModel]:
    """Choose as on CUDA, with given times."""
    monkeypatch.setattr(forwards, "SMALLEST", 0)
    monkeypatch.setattr(forwards, "get_fast_kind", lambda device: "graph")
    monkeypatch.setattr(forwards, "time_both", lambda *_: ([eager_s] * 3, [graph_s] * 3))
    target = LanguageModel(tiny_model("llama", LAYERS))
    return choose_forward(target, [Shape(), Shape((1,), several=True)]), target


def test_a_faster_equal_graph_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    choice, target = choose(monkeypatch, 2.0, 1.0)
    assert (choice.kind, choice.why, target.runner.kind) == ("graph", "", "graph")
    assert set(choice.times) == {"one node", "several nodes with hidden states 1"}
    assert choice.difference < 1e-9


def test_a_graph_that_is_slower_or_fails_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    choice, target = choose(monkeypatch, 1.0, 2.0)
    assert (choice.kind, target.runner.kind) == ("eager", "eager")
    assert choice.why.startswith("as a graph, it is slower over one node")

    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("specbench.decoding.capture.record", fail)
    choice, _ = choose(monkeypatch, 2.0, 1.0)
    assert choice.why.startswith("it cannot be captured: RuntimeError: operation not permitted")


def test_a_graph_that_keeps_a_number_of_its_recording_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def record_once(forward: Callable[[], Any], device: torch.device, pool: object) -> Any:
        output = forward()
        return lambda: None, output, pool  # replays nothing

    monkeypatch.setattr("specbench.decoding.capture.record", record_once)
    choice, _ = choose(monkeypatch, 2.0, 1.0)
    assert choice.why.startswith("as a graph, it differs from eager by")


def test_graphs_need_cuda() -> None:
    with pytest.raises(InputError, match="engine.native.forward=graph: the model is on cpu"):
        choose_forward(LanguageModel(tiny_model("llama", LAYERS)), [Shape()], "graph")
