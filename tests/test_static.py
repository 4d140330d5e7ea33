"""Forwards of fixed shape, without a compiler: every method writes what transformers writes, whatever else the bucket holds."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from specbench.decoding import kv_store
from specbench.decoding.drafter import Drafter
from specbench.decoding.kv_store import KVStore, round_up
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.runner import Kind
from specbench.decoding.tree import DraftTree
from specbench.drafters.network_drafter import LayerDrafter
from tests.methods_under_test import drafter_of, each_preset, target_of
from tests.random_trees import random_tree
from tests.test_lossless import PROMPTS, SAMPLING, expected, on_architectures
from tests.tiny import ARCHITECTURES, tiny_language_model

SOME = 4


def list_layered(drafter: Drafter) -> list[LayerDrafter]:
    """The parts with layers of their own."""
    return [part for part in drafter.iter_family() if isinstance(part, LayerDrafter)]


@contextmanager
def running(models: Sequence[LanguageModel | LayerDrafter], kind: Kind) -> Iterator[None]:
    for model in models:
        model.runner.kind = kind
    yield
    for model in models:
        model.runner.kind = "eager"


@each_preset
@on_architectures(pytest.mark.slow)
def test_every_method_writes_the_targets_text(architecture: str, label: str) -> None:
    target, drafter = target_of(architecture), drafter_of(label, architecture)
    drafter.bind(target)
    with running([target, *drafter.list_models(), *list_layered(drafter)], "static"):
        alone = [generate(target, drafter, [prompt], SAMPLING)[0].output_ids for prompt in PROMPTS[:SOME]]
        beside = [out.output_ids for out in generate(target, drafter, PROMPTS[:3], SAMPLING)]
    assert alone == expected(architecture)[:SOME] and beside == expected(architecture)[:3]


def prefilled(target: LanguageModel, lengths: list[int], capacity: int = 300) -> KVStore:
    store = target.create_store(capacity, len(lengths))
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 90, (length,), generator=draw) for length in lengths]
    target.prefill(store, prompts)
    return store


def both(target: LanguageModel, store: KVStore, trees: list[DraftTree]) -> list[list[torch.Tensor]]:
    """The logits of eager and static forwards over the same trees."""
    logits = []
    for kind in ("eager", "static"):
        with running([target], kind), torch.inference_mode():
            logits.append([out.logits for out in target.forward(store, trees)])
    return logits


@torch.inference_mode()
def test_padding_beyond_the_stores_end_runs_eagerly() -> None:
    target = target_of("llama")
    store = prefilled(target, [63, 10], capacity=64)
    trees = [DraftTree.chain(torch.arange(5, 5 + nodes)) for nodes in (1, 10)]
    eager, static = both(target, store, trees)
    assert all(torch.equal(*pair) for pair in zip(eager, static, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_a_bucket_of_any_filling_equals_what_is_filled(architecture: str) -> None:
    """At every edge: full, one over, one under; in float64."""
    target = target_of(architecture)
    rng = random.Random(1)
    for past in (55, 62, 63, 64, 65, 120, 127, 128):
        store = prefilled(target, [past])
        for nodes in (1, 2, 8):
            tree = random_tree(rng, nodes, 90)
            (eager,), (static,) = both(target, store, [tree])
            assert torch.allclose(eager, static, atol=1e-9), f"{nodes} nodes after {past} tokens, bucket {store.bucket}"


@torch.inference_mode()
def test_rows_of_a_batch_have_their_own_lengths_and_trees() -> None:
    target, rng = target_of("llama"), random.Random(2)
    store = prefilled(target, [61, 9, 30])
    trees = [random_tree(rng, nodes, 90) for nodes in (3, 1, 7)]
    for eager, static in zip(*both(target, store, trees), strict=True):
        assert torch.allclose(eager, static, atol=1e-9)


@torch.inference_mode()
def test_what_a_rejected_branch_or_an_earlier_turn_left_is_never_seen() -> None:
    target = target_of("llama")
    clean, used = (prefilled(target, [20]) for _ in range(2))
    for keys, values in used.layers.values():
        keys[:, :, 20:] = 1e30
        values[:, :, 20:] = -1e30
    tree = random_tree(random.Random(3), 6, 90)
    with running([target], "static"):
        assert torch.equal(target.forward(used, [tree])[0].logits, target.forward(clean, [tree])[0].logits)


@torch.inference_mode()
def test_a_nan_of_an_earlier_turn_does_not_stay() -> None:
    target = target_of("llama")
    store = prefilled(target, [70])
    for keys, values in store.layers.values():
        keys.fill_(float("nan"))
        values.fill_(float("nan"))
    store.clear()
    target.prefill(store, [torch.arange(2, 40)])
    with running([target], "static"):
        assert target.forward(store, [DraftTree.chain(torch.tensor([3, 4]))])[0].logits.isfinite().all()


@torch.inference_mode()
def test_memory_is_allocated_once_for_all_steps_and_questions() -> None:
    target = tiny_language_model("llama", 2)
    store = target.create_store(400)
    places: set[tuple[int, ...]] = set()
    with running([target], "static"):
        for _ in range(2):
            store.clear()
            target.prefill(store, [torch.arange(2, 60)])
            for _ in range(50):
                target.forward(store, [DraftTree.chain(torch.tensor([3, 4, 5, 6]))])
                store.keep(0, range(4))
                places.add(tuple(tensor.data_ptr() for pair in store.layers.values() for tensor in pair))
    assert len(places) == 1


def test_a_bucket_is_at_most_a_sixteenth_larger_or_64_entries() -> None:
    for entries in range(1, 5000):
        bucket = round_up(entries)
        assert entries <= bucket < entries + max(kv_store.STEP, entries / 16 + 1)
        assert round_up(bucket) == bucket
