"""Compiled forwards: every method writes the target's text, one sequence and three side by side."""

from __future__ import annotations

import random
from functools import lru_cache

import pytest
import torch

from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.tree import DraftTree
from specbench.drafters import compiled_layers
from specbench.drafters.compiled_layers import choose_layers
from specbench.engine.native import Native
from specbench.models import forwards, products
from specbench.models.forwards import Shape, choose_forward
from specbench.models.packed import Product, can_pack
from tests.methods_under_test import drafter_of, each_preset, target_of
from tests.random_trees import random_tree
from tests.test_lossless import PROMPTS, SAMPLING, expected
from tests.test_static import list_layered
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow
SOME = 6


@lru_cache
def compiled(model: LanguageModel, taps: tuple[int, ...]) -> LanguageModel:
    choose_forward(model, [Shape(), Shape(several=True), Shape(taps, several=True)], "compiled", small=True)
    assert model.runner.kind == "compiled"
    return model


@pytest.fixture(autouse=True)
def short_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwards, "CONTEXT", 30)
    monkeypatch.setattr(compiled_layers, "CONTEXT", 30)


@each_preset
def test_every_method_writes_the_targets_text(label: str) -> None:
    target, drafter = target_of("llama"), drafter_of(label, "llama")
    drafter.bind(target)
    target.tap(())
    models = [compiled(target, drafter.taps), *(compiled(model, ()) for model in drafter.list_models())]
    for model in models:
        model.runner.kind = "compiled"
    for part in list_layered(drafter):
        choice = choose_layers(part, 1, "compiled", "the test")
        assert choice is None or choice.kind == "compiled", choice
    outs = [generate(target, drafter, [prompt], SAMPLING)[0] for prompt in PROMPTS[:SOME]]
    beside = generate(target, drafter, PROMPTS[:3], SAMPLING)
    for model in models:
        model.runner.kind = "eager"
    assert [out.output_ids for out in outs] == expected("llama")[:SOME]
    assert [out.output_ids for out in beside] == expected("llama")[:3]


BATCHED = [("medusa", 3), ("hydra_heads", 3), ("eagle", 3), ("eagle3", 6), ("sps", 9), ("pld", 9)]


@pytest.mark.parametrize(("label", "batch"), BATCHED)
def test_a_batch_writes_the_targets_text_through_graphs_of_its_own(label: str, batch: int) -> None:
    """Also with as many sequences as a trial usually has nodes, 6 or 9: they are two sizes, not one."""
    target, drafter = target_of("llama"), drafter_of(label, "llama")
    engine = Native(profile=False, forward="compiled")
    engine.open(target, {label: drafter}, batch=batch)
    before = {model: model.runner.graphs for model in (target, *drafter.list_models())}
    chosen = [number % len(PROMPTS) for number in range(batch)]
    outs = engine.generate_group(label, [PROMPTS[number].tolist() for number in chosen], [SAMPLING] * batch)
    for model, graphs in before.items():
        model.runner.kind = "eager"
        assert model.runner.graphs == graphs, "all were compiled before the clock starts"
    assert [out.output_ids for out in outs] == [expected("llama")[number] for number in chosen]


@torch.inference_mode()
def test_one_graph_serves_every_bucket_and_number_of_nodes() -> None:
    target, rng = compiled(target_of("llama"), ()), random.Random(4)
    before = target.runner.graphs
    for past in (20, 63, 64, 200):
        store = target.create_store(300)
        target.prefill(store, [torch.randint(2, 90, (past,))])
        for nodes in (1, 2, 3, 9, 40):
            tree: DraftTree = random_tree(rng, nodes, 90)
            target.runner.kind = "eager"
            eager = target.forward(store, [tree])[0].logits
            target.runner.kind = "compiled"
            assert torch.allclose(target.forward(store, [tree])[0].logits, eager, atol=1e-4), f"{nodes} nodes after {past}"
    target.runner.kind = "eager"
    assert target.runner.graphs == before


@pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.float32), reason="this torch has no oneDNN to pack weights with")
@torch.inference_mode()
def test_one_row_takes_sums_and_several_the_packed_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SMALLEST", 0)
    monkeypatch.setattr(products, "measure_first_row", lambda layers: 1)
    monkeypatch.setattr(products.PRODUCTS, "first_rows", {})
    monkeypatch.setattr(products.PRODUCTS, "sums", {})
    hf = tiny_model("llama", layers=2, dtype=torch.float32)
    products.pack(hf)
    model = compiled(LanguageModel(hf), ())
    rows: list[int] = []
    multiply = Product.multiply

    def count(product: Product, x: torch.Tensor) -> torch.Tensor:
        rows.append(x.shape[1])
        return multiply(product, x)

    monkeypatch.setattr(Product, "multiply", count)
    for nodes in (1, 3):
        store = model.create_store(64)
        model.prefill(store, [torch.arange(2, 12)])
        tree = [DraftTree.chain(torch.arange(5, 5 + nodes))]
        model.runner.kind = "eager"
        expected = model.forward(store, tree)[0].logits
        model.runner.kind = "compiled"
        rows.clear()
        assert torch.allclose(model.forward(store, tree)[0].logits, expected, atol=1e-4)
        assert set(rows) == ({3} if nodes == 3 else set()), f"{nodes} nodes"
