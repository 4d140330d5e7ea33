"""Tree logits against plain cacheless forwards of the unmodified model, for every architecture of tests/tiny.py.

Models are float64, but transformers' norms compute in float32 (and eager attention its softmax), so equal means equal to 1e-5
of the logits' scale; a wrong mask, position or KV entry moves them by a tenth and more.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from specbench.decoding.attention import attend
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.masks import ChainBias, align_mask
from specbench.decoding.tree import DraftTree
from specbench.errors import InputError
from tests.random_trees import random_tree, way
from tests.tiny import EXTRA, SHAPE, VOCABULARY, tiny_language_model, tiny_model

TOLERANCE = 1e-5
LAYERS = 3
LONG, SHORT = 40, 5  # committed tokens: beyond and below the windows of 16 and 24


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


every_architecture = pytest.mark.parametrize("architecture", list(EXTRA))


def plainly(target: LanguageModel, tokens: list[int]) -> Tensor:
    """(S, V): one forward of transformers' own attention over a whole sequence, without any cache."""
    with target.use_original_attention() as model:
        return cast(Tensor, model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0])


def forward(target: LanguageModel, store: KVStore, trees: list[DraftTree]) -> list[Tensor]:
    return [out.logits for out in target.forward(store, trees)]


def prefilled(target: LanguageModel, prompts: list[list[int]], capacity: int = 160) -> KVStore:
    """A store that holds the prompts; every logit of theirs is checked on the way."""
    store = target.create_store(capacity, len(prompts))
    outs = target.prefill(store, [torch.tensor(prompt) for prompt in prompts], all_logits=True)
    for prompt, out in zip(prompts, outs, strict=True):
        close(out.logits, plainly(target, prompt))
    return store


def close(found: Tensor, expected: Tensor) -> None:
    worst, scale = float((found - expected).abs().max()), float(expected.std())
    assert found.shape == expected.shape and worst < TOLERANCE * scale, f"{worst:.1e} off, logits' scale {scale:.1e}"


def check_nodes(target: LanguageModel, committed: list[int], tree: DraftTree, logits: Tensor) -> None:
    """Each node's logits are those behind the committed tokens and the node's own way from the root."""
    assert logits.shape == (len(tree), VOCABULARY)
    for node in range(len(tree)):
        close(logits[node], plainly(target, committed + tree.tokens[way(tree, node)].tolist())[-1])


def words(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(count)]


def chain(rng: random.Random, nodes: int) -> DraftTree:
    return DraftTree.chain(torch.tensor(words(rng, nodes)))


def tree(rng: random.Random, nodes: int) -> DraftTree:
    return random_tree(rng, nodes, VOCABULARY, scratch=0.2)


Shape = Callable[[random.Random, int], DraftTree]


def decode_randomly(target: LanguageModel, prompts: list[list[int]], shapes: list[Shape], seed: int) -> None:
    """Rounds of one random tree per row, then a path of it is committed: a branched one moves KV entries."""
    rng, store, committed = random.Random(seed), prefilled(target, prompts), [list(prompt) for prompt in prompts]
    for shape in shapes:
        trees = [shape(rng, rng.randint(1, 9)) for _ in prompts]
        for row, (made, logits) in enumerate(zip(trees, forward(target, store, trees), strict=True)):
            check_nodes(target, committed[row], made, logits)
            path = way(made, rng.randrange(len(made)) if made.linear else len(made) - 1)
            store.keep(row, path)
            committed[row] += made.tokens[path].tolist()


@every_architecture
@pytest.mark.parametrize("length", [SHORT, LONG])
def test_tree_logits_equal_sequential_ones(architecture: str, length: int) -> None:
    target = tiny_language_model(architecture, LAYERS)
    decode_randomly(target, [words(random.Random(1), length)], [tree, chain, tree, tree, chain], seed=length)


@every_architecture
def test_sequences_of_different_lengths_side_by_side(architecture: str) -> None:
    rng, target = random.Random(2), tiny_language_model(architecture, LAYERS)
    decode_randomly(target, [words(rng, n) for n in (SHORT, 23, LONG)], [tree, chain, tree], seed=3)


@every_architecture
def test_a_branched_tree_may_be_the_first_thing_a_store_sees(architecture: str) -> None:
    target, made = tiny_language_model(architecture, LAYERS), tree(random.Random(7), 8)
    check_nodes(target, [], made, forward(target, target.create_store(8), [made])[0])


def test_the_architectures_cover_what_differs_between_families() -> None:
    configs = {name: tiny_model(name, layers=1).config for name in EXTRA}
    assert configs["llama"].num_key_value_heads < configs["llama"].num_attention_heads, "grouped-query attention"
    assert configs["phi3"].num_key_value_heads == configs["phi3"].num_attention_heads, "ordinary multi-head attention"
    assert configs["qwen3"].tie_word_embeddings and not configs["llama"].tie_word_embeddings
    windows = {name for name, config in configs.items() if getattr(config, "sliding_window", None)}
    assert windows >= {"gemma2", "gemma3_text", "starcoder2", "mistral"} and max(24, 16) < LONG
    assert configs["gemma2"].attn_logit_softcapping and configs["gemma2"].final_logit_softcapping


@pytest.mark.parametrize("architecture", ["llama", "starcoder2"])
def test_long_pasts_and_large_trees_outgrow_the_mask_buffer(architecture: str) -> None:
    rng, target = random.Random(4), tiny_language_model(architecture, layers=1)
    past, store = words(rng, 1030), target.create_store(1300)
    target.prefill(store, [torch.tensor(past)])
    for made in (tree(rng, 70), chain(rng, 66), tree(rng, 5), tree(rng, 70)):
        logits = forward(target, store, [made])[0]
        for node in range(0, len(made), 8):
            close(logits[node], plainly(target, past + made.tokens[way(made, node)].tolist())[-1])
        store.keep(0, [0])
        past.append(int(made.tokens[0]))


def test_prefill_hands_over_the_last_logits_alone_unless_asked() -> None:
    rng, target = random.Random(5), tiny_language_model("llama", LAYERS)
    for prompts in ([words(rng, 7)], [words(rng, 7), words(rng, 12)]):
        store = target.create_store(20, len(prompts))
        for prompt, out in zip(prompts, target.prefill(store, [torch.tensor(p) for p in prompts]), strict=True):
            assert out.logits.shape == (1, VOCABULARY) and out.hidden.shape == (len(prompt), 0)
            close(out.logits[0], plainly(target, prompt)[-1])
        assert store.lengths == [len(prompt) for prompt in prompts]


def hidden_states(target: LanguageModel, tokens: list[int], layers: tuple[int, ...]) -> Tensor:
    """(layers * H,): transformers' own hidden states of the last token, side by side."""
    with target.use_original_attention() as model:
        states = model(input_ids=torch.tensor([tokens]), use_cache=False, output_hidden_states=True).hidden_states
    return torch.cat([states[layer][0, -1] for layer in layers])


@every_architecture
def test_taps_are_transformers_hidden_states(architecture: str) -> None:
    rng, target = random.Random(6), tiny_language_model(architecture, LAYERS)
    for taps in [(0, 2, LAYERS), (LAYERS,), (2, 1)]:
        committed = [words(rng, LONG), words(rng, SHORT)]
        store, trees = prefilled(target, committed), [tree(rng, 8), tree(rng, 5)]
        target.tap(taps)
        outs = target.forward(store, trees)
        for past, made, out in zip(committed, trees, outs, strict=True):
            assert out.hidden.shape == (len(made), len(taps) * 32)
            for node in (0, len(made) - 1):
                close(out.hidden[node], hidden_states(target, past + made.tokens[way(made, node)].tolist(), taps))


def test_untapped_models_carry_no_hidden_states() -> None:
    target = tiny_language_model("llama", LAYERS)
    target.tap((1, 2))
    target.tap(())
    assert target.forward(target.create_store(8), [DraftTree.chain(torch.tensor([3, 4]))])[0].hidden.shape == (2, 0)
    assert not target._tapped, "the hooks are gone"


def test_a_lent_model_comes_back_after_an_error() -> None:
    target = tiny_language_model("llama", layers=1)
    with pytest.raises(KeyError), target.use_original_attention() as model:
        assert model.config._attn_implementation == "sdpa"
        raise KeyError
    close(prefilled_last(target, [5, 6, 7]), plainly(target, [5, 6, 7])[-1])


def prefilled_last(target: LanguageModel, prompt: list[int]) -> Tensor:
    return target.prefill(target.create_store(len(prompt)), [torch.tensor(prompt)])[0].logits[0]


@pytest.mark.parametrize("given, expected", [(7, (7,)), ([7, 9], (7, 9)), (None, (1,))])
def test_eos_ids_are_the_generation_configs_else_the_configs(given: object, expected: tuple[int, ...]) -> None:
    model = tiny_model("llama", layers=1)
    model.generation_config = GenerationConfig(eos_token_id=given)  # type: ignore[no-untyped-call]
    assert LanguageModel(model).eos_ids == expected


def test_masks_for_cuda_are_aligned() -> None:
    bias = ChainBias(torch.float32, torch.device("cpu"))
    for past in range(20):
        mask = bias.build_tree_mask(DraftTree.chain(torch.arange(5)), past)
        copy = align_mask(mask)
        assert torch.equal(copy, mask) and copy.data_ptr() % 16 == 0 and copy.stride(0) % 8 == 0


def test_what_attends_outside_the_interface_is_refused() -> None:
    model = tiny_language_model("llama")
    model.check_attention()
    model.config.num_hidden_layers += 1
    with pytest.raises(InputError, match="3 of 4 layers attend"):
        model.check_attention()


@pytest.mark.parametrize(
    "asked, named",
    [
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"indices": torch.zeros(1)}, "indices"),
        ({}, "its own attention mask"),
    ],
)
def test_what_a_model_asks_of_its_attention_beyond_ours_is_refused(asked: dict[str, Any], named: str) -> None:
    zeros: Any = torch.zeros(1, 1, 1, 4)
    nothing: Any = object()
    with pytest.raises(InputError, match=named):
        attend(nothing, zeros, zeros, zeros, None if asked else zeros, forward_pass=nothing, **asked)
    with pytest.raises(InputError, match="does not pass its keyword arguments"):
        attend(nothing, zeros, zeros, zeros, None)


def test_contexts_end_where_an_entry_would_depend_on_more_than_its_position() -> None:
    factors = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    phi = {**SHAPE, "num_key_value_heads": 4, "rope_parameters": factors, "original_max_position_embeddings": 64}
    assert random_language_model("phi3", phi).context == 64
    assert random_language_model("llama4_text", {**SHAPE, **EXTRA["llama4_text"], "floor_scale": 100}).context == 99
    assert random_language_model("phi3", {**SHAPE, "num_key_value_heads": 4}).context == 256


def random_language_model(architecture: str, config: dict[str, Any]) -> LanguageModel:
    made = AutoConfig.for_model(architecture, **config, num_hidden_layers=1)
    return LanguageModel(AutoModelForCausalLM.from_config(made))  # type: ignore[no-untyped-call]


def test_a_model_without_a_longest_sequence_is_refused() -> None:
    config = AutoConfig.for_model("bloom", hidden_size=8, n_head=1, n_layer=1, vocab_size=16)
    with pytest.raises(InputError, match="bloom: its config has no max_position_embeddings"):
        LanguageModel(AutoModelForCausalLM.from_config(config))  # type: ignore[no-untyped-call]


@torch.inference_mode()
def test_a_batched_prefill_computes_no_logits_but_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_language_model("llama", 2)
    prompts = [torch.arange(2, 2 + length) for length in (5, 9, 5, 7)]
    alone = [target.prefill(target.create_store(20), [prompt])[0].logits for prompt in prompts]
    computed: list[int] = []
    target.head.register_forward_hook(lambda _, inputs, out: computed.append(out.shape[1]))
    outs = target.prefill(target.create_store(20, len(prompts)), prompts)
    assert computed == [1], "of three different lengths"
    assert all(torch.allclose(out.logits, logits, atol=1e-9) for out, logits in zip(outs, alone, strict=True))
