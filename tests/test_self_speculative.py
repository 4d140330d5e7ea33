"""Self-speculative decoding: the thinned target, what it drafts, its threshold, its skip sets.

Slow references: a loop over the layers' kept layers_of, written out and without cache, in both; so a wrong mask, a KV entry left
over from a draft or a skipped norm that still counts shows as another number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn

from methods.self_speculative import SelfDraftState, SelfSpeculative
from specbench.decoding.drafter import DraftWork, SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import GREEDY, Verification
from specbench.drafters.skip_sets import draw_skip_set, load_skip_set, write_skip_set
from specbench.drafters.skipping import SkipSet, count_layers, skip_sublayers
from specbench.errors import InputError
from specbench.models.packed import PackedLinear, can_pack
from specbench.models.products import pack
from tests.tiny import EXTRA, prompts, tiny_language_model, tiny_model

LAYERS = 4
SKIPPED = SkipSet(attention=(1, 2), mlp=(0, 2))  # one layer of each kind: MLP gone, attention gone, both, neither


def reference(model: nn.Module, skipped: SkipSet, ids: Tensor) -> Tensor:
    """(V,) logits behind ids (T,): transformers' own attention, skipped sublayers and their norms left out by hand."""
    decoder = model.get_decoder()  # type: ignore[operator]
    originals = [layer.forward for layer in decoder.layers]
    for number, layer in enumerate(decoder.layers):
        layer.forward = by_hand(layer, number in skipped.attention, number in skipped.mlp)
    try:
        return cast(Tensor, model(input_ids=ids[None], use_cache=False).logits[0, -1])
    finally:
        for layer, original in zip(decoder.layers, originals, strict=True):
            layer.forward = original


UNSKIPPABLE = {"llama4_text": "only layers made of", "gpt_oss": "parts of its layers cannot be skipped"}


@pytest.mark.parametrize("architecture", UNSKIPPABLE)
def test_layers_that_cannot_do_without_a_part_are_refused(architecture: str) -> None:
    with pytest.raises(InputError, match=UNSKIPPABLE[architecture]):
        skip_sublayers(tiny_language_model(architecture, LAYERS), SKIPPED)


def by_hand(layer: nn.Module, attention: bool, mlp: bool):  # type: ignore[no-untyped-def]
    """The layer's forward, spelled out for all families: norms before (most), behind (OLMo-2) or both (Gemma 2 and 3)."""
    parts = dict(layer.named_children())
    both = "pre_feedforward_layernorm" in parts
    behind = "post_feedforward_layernorm" in parts
    none = nn.Identity()
    before_attention = parts.get("input_layernorm", none)
    behind_attention = parts["post_attention_layernorm"] if behind else none
    before_mlp = parts["pre_feedforward_layernorm"] if both else none if behind else parts["post_attention_layernorm"]
    behind_mlp = parts["post_feedforward_layernorm"] if behind else none

    def forward(hidden_states: Tensor, **given: object) -> Tensor:
        if not attention:
            hidden_states = hidden_states + behind_attention(
                parts["self_attn"](hidden_states=before_attention(hidden_states), **given)[0]
            )
        if not mlp:
            hidden_states = hidden_states + behind_mlp(parts["mlp"](before_mlp(hidden_states)))
        return hidden_states

    return forward


@pytest.mark.parametrize("architecture", [name for name in EXTRA if name not in UNSKIPPABLE])
@torch.inference_mode()
def test_the_thinned_model_is_the_kept_sublayers_alone(architecture: str) -> None:
    target = tiny_language_model(architecture, LAYERS)
    thin = skip_sublayers(target, SKIPPED)
    for ids in prompts(4):
        store = thin.create_store(len(ids))
        found = thin.prefill(store, [ids])[0].logits[-1]
        with target.use_original_attention() as model:
            assert torch.allclose(reference(model, SKIPPED, ids), found, atol=1e-5), (
                "softmax is float32 in some of transformers' own"
            )
            assert not torch.allclose(model(input_ids=ids[None], use_cache=False).logits[0, -1], found, atol=1e-3)
        assert len(store.layers) == LAYERS - len(SKIPPED.attention), "skipped attention writes no KV"


@torch.inference_mode()
def test_the_target_is_left_as_it_was() -> None:
    target, (ids,) = tiny_language_model("gemma3_text", LAYERS), prompts(1)
    before = target.prefill(target.create_store(len(ids)), [ids])[0].logits
    skip_sublayers(target, SKIPPED)
    assert torch.equal(target.prefill(target.create_store(len(ids)), [ids])[0].logits, before)


def test_no_weight_exists_twice() -> None:
    target = tiny_language_model("llama", LAYERS)
    thin = skip_sublayers(target, SKIPPED)
    there = {parameter.data_ptr() for parameter in target.model.parameters()}
    kept = [parameter.data_ptr() for parameter in thin.model.parameters()]
    assert set(kept) < there and len(kept) == len(set(kept))
    assert {id(p) for p in thin.model.parameters()} < {id(p) for p in target.model.parameters()}


def test_packed_weights_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_pack(torch.device("cpu"), torch.float32):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr("specbench.models.products.SMALLEST", 1)
    monkeypatch.setattr("specbench.models.products.PRODUCTS.choose", lambda layers: 1)
    model = tiny_model("llama", LAYERS, dtype=torch.float32)
    pack(model)
    target = LanguageModel(model)
    packed = [
        {id(m.product) for m in of.model.modules() if isinstance(m, PackedLinear)}
        for of in (target, skip_sublayers(target, SKIPPED))
    ]
    assert packed[1] and packed[1] < packed[0]


@torch.inference_mode()
def test_a_model_spread_over_devices_is_thinned_as_well() -> None:
    """accelerate's hooks keep a bound forward on every module, which a copy must not take over."""
    plain, spread, (ids,) = tiny_language_model("llama", LAYERS), tiny_model("llama", LAYERS), prompts(1)
    for module in list(spread.modules()):
        add_hook_to_module(module, AlignDevicesHook("cpu", io_same_device=True))
    found = [
        (thin := skip_sublayers(of, SKIPPED)).prefill(thin.create_store(99), [ids])[0].logits
        for of in (plain, LanguageModel(spread))
    ]
    assert torch.equal(*found)


def test_an_architecture_of_other_layers_is_refused_by_name() -> None:
    target = tiny_language_model("llama", 2)
    del target.decoder.layers[1].mlp  # type: ignore[index, union-attr]
    with pytest.raises(InputError, match="llama: only layers made of self_attn and mlp can be skipped"):
        count_layers(target)


class Watched(SelfSpeculative):
    """Notes the committed tokens and the draft of each step, of one sequence."""

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> SelfDraftState:
        self.committed = list(prompt)
        self.steps: list[Any] = []
        return super().start(prompt, out, context)

    def draft(self, state: SelfDraftState, budget: int) -> DraftTree:
        tree = super().draft(state, budget)
        assert int(tree.tokens[0]) == self.committed[-1]
        self.steps.append((list(self.committed), budget, state.threshold, tree.tokens[1:].tolist()))
        return tree

    def observe(self, state: SelfDraftState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        super().observe(state, tree, out, verified)
        self.committed += verified.tokens


def drafter(draft_tokens: int = 4, threshold: float = 0.0, adaptive: bool = False, carry: bool = False) -> Watched:
    return Watched("random", draft_tokens, threshold, adaptive, 0.9, carry)


def decoded(method: SelfSpeculative, target: LanguageModel, count: int = 4) -> list[Generation]:
    sampling = Sampling(max_new_tokens=20, stop_token_ids=(1, 7))
    return [generate(target, method, [prompt], sampling)[0] for prompt in prompts(count)]


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "mistral"])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
@torch.inference_mode()
def test_drafts_are_the_thinned_models_own_over_the_targets_kv(architecture: str, threshold: float) -> None:
    """Without sharing: the whole model reads what is committed, the thinned one goes on from a copy of that KV."""
    target, method, skipped = tiny_language_model(architecture, LAYERS), drafter(threshold=threshold), SkipSet((1,), (3,))
    method.bind(target)
    method.skip(skipped)
    fresh = LanguageModel(tiny_model(architecture, LAYERS))
    thin = skip_sublayers(fresh, skipped)
    shorter = 0
    for prompt in prompts(4):
        (out,) = generate(target, method, [prompt], Sampling(max_new_tokens=16))
        assert out.draft_forwards == sum(out.drafted)
        for committed, budget, _, drafted in method.steps:
            expected = slowly_drafted(fresh, thin, committed, min(4, budget), threshold)
            assert drafted == expected, f"behind {committed}"
            shorter += len(expected) < min(4, budget)
    assert bool(shorter) == bool(threshold), "an unsure token ends a draft"


def slowly_drafted(fresh: LanguageModel, thin: LanguageModel, committed: list[int], most: int, threshold: float) -> list[int]:
    drafted: list[int] = []
    store = fresh.create_store(len(committed) + most)
    fresh.prefill(store, [torch.tensor(committed[:-1])])
    while len(drafted) < most:
        chain = DraftTree.chain(torch.tensor([committed[-1], *drafted]))  # nothing of a draft is kept: all of it again
        probabilities = thin.forward(store, [chain])[0].logits[-1].softmax(dim=-1)
        drafted.append(int(probabilities.argmax()))
        if probabilities.max() < threshold:
            break
    return drafted


def test_the_threshold_moves_as_the_paper_says() -> None:
    method = drafter(draft_tokens=4, threshold=0.6, adaptive=True)
    state = SelfDraftState(None, GREEDY, DraftWork(), 0, torch.zeros(1), 0.6)  # type: ignore[arg-type]
    method._adapt(state, accepted=4, drafted=4)
    assert state.acceptance == 0.5 and state.threshold == pytest.approx(0.9 * 0.6 + 0.1 * 0.61), "0.5 * 0 + 0.5 * 4/4 < 0.9"
    method._adapt(state, accepted=1, drafted=2)
    assert state.acceptance == 0.5 and state.threshold == pytest.approx(0.602)
    state.acceptance = 1.0
    method._adapt(state, accepted=4, drafted=4)
    assert state.acceptance == 1.0 and state.threshold == pytest.approx(0.602), "a draft of full length lowers nothing"
    method._adapt(state, accepted=3, drafted=3)
    assert state.threshold == pytest.approx(0.9 * 0.602 + 0.1 * 0.592)
    assert method.carried == 0.6, "nothing is carried over unless asked for"


def test_the_threshold_is_carried_over_and_forgotten() -> None:
    target, method = tiny_language_model("llama", LAYERS), drafter(threshold=0.3, adaptive=True, carry=True)
    method.bind(target)
    assert method.warm and not drafter().warm
    first = [(out.drafted, out.accepted) for out in decoded(method, target)]
    assert method.carried != 0.3 and method.steps[0][2] != 0.3, "the next prompt goes on from the last one's"
    method.reset()
    assert method.carried == 0.3
    assert [(out.drafted, out.accepted) for out in decoded(method, target)] == first


def test_a_random_set_is_the_same_each_time_and_skips_few() -> None:
    for layers in (1, 2, 8, 40):
        one = draw_skip_set(layers)
        assert one == draw_skip_set(layers) == load_skip_set("random", layers)
        assert len(one.attention) + len(one.mlp) == max(1, layers // 2)


def test_a_skip_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_skip_set(SKIPPED, tmp_path)
    assert load_skip_set(str(tmp_path), 4) == load_skip_set(str(tmp_path / "skip.yaml"), 4) == SKIPPED
    assert SkipSet.of(SKIPPED.to_switches(4)) == SKIPPED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("attention: [4]\nmlp: []", "attention: the target has no layer 4; expected 0 to 3"),
        ("attention: []\nmlp: [-1]", "mlp: the target has no layer -1; expected 0 to 3"),
        ("attention: [1, 1]\nmlp: []", "attention: layer 1 is given twice"),
        ("attention: [0, 1, 2, 3]\nmlp: [0, 1, 2, 3]", "skips all 8 sublayers; expected at least one to remain"),
        ("attention: [0]", "expected two lists of layer numbers, attention: [...] and mlp: [...]"),
        ("attention: [a]\nmlp: []", "expected two lists of layer numbers"),
        ("attention: 3\nmlp: []", "expected two lists of layer numbers"),
        ("attention: [", "cannot be read: "),
    ],
)
def test_a_file_that_is_no_skip_set(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "skip.yaml").write_text(text)
    with pytest.raises(InputError) as refused:
        load_skip_set(str(tmp_path), 4)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("name", "layers", "skipped"),
    [
        ("llama2_13b", 40, (24, 10)),
        ("llama2_13b_chat", 40, (24, 10)),
        ("codellama_13b", 40, (22, 12)),
        ("llama2_70b", 80, (47, 37)),
    ],
)
def test_the_published_sets_skip_as_many_as_the_paper_says(name: str, layers: int, skipped: tuple[int, int]) -> None:
    found = load_skip_set(f"conf/skip/{name}.yaml", layers)
    assert (len(found.attention), len(found.mlp)) == skipped
