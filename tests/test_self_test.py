"""The self-test at load: what it refuses, planted one at a time, and what it lets pass; architectures of transformers.

Every model here is random and tiny. One that passes must also write what transformers' own `generate` writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from methods.lookahead import Lookahead
from specbench.decoding import attention, language_model, masks
from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.drafter import Drafter
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.engine.hf import TransformersGenerate
from specbench.errors import InputError
from specbench.models.logits import measure_distance
from specbench.models.self_test import check_float32_copy, check_forward
from specbench.records.trial import BASELINE
from tests.tiny import EXTRA, SHAPE, VOCABULARY

NEW_TOKENS = 24
SMALL_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MULTI_HEAD = {"num_key_value_heads": 4}
PLAIN = (
    *("apertus", "arcee", "cohere", "cwm", "ernie4_5", "exaone4", "glm", "glm4", "granite", "helium", "hunyuan_v1_dense"),
    *("nanochat", "olmo", "olmo3", "phi", "seed_oss", "smollm3", "vaultgemma"),
)
RUN: dict[str, dict[str, Any]] = {  # the forward is transformers', token for token
    **EXTRA,
    **{name: {} for name in PLAIN},
    **dict.fromkeys(("gpt2", "gpt_neox", "opt", "persimmon"), MULTI_HEAD),
    **dict.fromkeys(("ernie4_5_moe", "granitemoe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "phimoe"), SMALL_EXPERTS),
    "afmoe": SMALL_EXPERTS,
    "cohere2": {"sliding_window": 16},
    "gemma4_text": {"sliding_window": 8, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "ministral3": {},
    "modernbert-decoder": {"sliding_window": 16},
}
REFUSED: dict[str, str] = {  # and the word that says why
    "bailing_hybrid": "layers attend",
    "bart": "layers attend",
    "bloom": "layers attend",
    "deepseek_v4": "DeepseekV4Attention",
    "diffllama": "DiffLlamaAttention",
    "doge": "attention mask",
    "falcon_h1": "FalconH1Mixer",
    "gptj": "gptj",
    "inkling2_text": "position_bias",
    "jamba": "layers attend",
    "kimi_linear": "layers attend",
    "mamba": "layers attend",
    "minimax": "layers attend",
    "mpt": "mpt",
    "nemotron": "keyword arguments",
    "nemotron_h": "layers attend",
    "olmo_hybrid": "layers attend",
    "qwen3_next": "layers attend",
    "recurrent_gemma": "layers attend",
    "stablelm": "keyword arguments",
    "zaya": "ZayaAttention",
}


SMALLER: dict[str, dict[str, Any]] = {
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16}
}


def build(architecture: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(architecture, **{**SHAPE, "num_hidden_layers": 4, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return cast(PreTrainedModel, model.to(dtype).eval())


def decode(target: LanguageModel, drafter: Drafter, prompt: list[int]) -> list[int]:
    drafter.bind(target)
    return generate(target, drafter, [torch.tensor(prompt)], Sampling(max_new_tokens=NEW_TOKENS))[0].output_ids


def decode_by_transformers(target: LanguageModel, prompt: list[int]) -> list[int]:
    engine = TransformersGenerate({BASELINE: {}}, draft=None, device="cpu", weights="random")
    engine.open(target, {})
    return engine.generate(BASELINE, prompt, Sampling(max_new_tokens=NEW_TOKENS)).output_ids


def lookahead() -> Lookahead:
    return Lookahead(level=4, window=4, guesses=4, text_pool=True, whole=True, prefill_row=False, seed=0)


@pytest.mark.full
@pytest.mark.parametrize("architecture", RUN)
def test_an_architecture_that_passes_writes_what_generate_writes(architecture: str) -> None:
    target = LanguageModel(build(architecture, **RUN[architecture]))
    check_forward(target)
    generator = torch.Generator().manual_seed(1)
    for length in (7, 40):
        prompt = torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() * 2
        expected = decode_by_transformers(target, prompt)
        assert decode(target, Autoregressive(), prompt) == expected
        assert decode(target, lookahead(), prompt) == expected


NOT_CAUSAL: dict[str, dict[str, Any]] = {
    "llama": {"is_causal": False},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8, "use_bidirectional_attention": True},
}


@pytest.mark.parametrize("architecture", NOT_CAUSAL)
def test_a_decoder_that_sees_later_tokens_is_refused(architecture: str) -> None:
    with pytest.raises(InputError, match=f"{architecture}: cannot be run: transformers' own cache changes its logits"):
        check_forward(LanguageModel(build(architecture, **NOT_CAUSAL[architecture])))


@pytest.mark.full
@pytest.mark.parametrize("architecture", REFUSED)
def test_an_architecture_that_our_forward_cannot_compute_is_refused(architecture: str) -> None:
    with pytest.raises(InputError, match=REFUSED[architecture]) as refused:
        check_forward(LanguageModel(build(architecture, **SMALLER.get(architecture, {}))))
    assert str(refused.value).startswith(architecture) and "\n" not in str(refused.value)


def test_at_least_forty_architectures_are_tried() -> None:
    assert len(RUN) >= 40 and not RUN.keys() & REFUSED.keys() and len(REFUSED) >= 20


def test_a_hidden_state_after_shared_kv_is_tapped_of_every_token() -> None:
    target = LanguageModel(build("gemma4_text", **RUN["gemma4_text"]))
    target.tap((1, 3))
    (out,) = target.prefill(target.create_store(20), [torch.arange(2, 20)])
    assert (len(out.logits), out.hidden.shape) == (1, (18, 2 * SHAPE["hidden_size"]))


@pytest.mark.parametrize("chunk", [5, 16, 30])
def test_chunks_are_honoured(chunk: int) -> None:
    target = LanguageModel(build("llama4_text", **{**EXTRA["llama4_text"], "attention_chunk_size": chunk}))
    figures = check_forward(target)
    assert list(figures["beyond"]) == [30] * (chunk == 30)
    for length in (14, 77, 166):
        prompt = [3 + index * 7 % 120 for index in range(length)]
        assert decode(target, lookahead(), prompt) == decode_by_transformers(target, prompt)


Break = Callable[[pytest.MonkeyPatch], object]


def lose_the_tree(patch: pytest.MonkeyPatch) -> None:
    """Every node sees all nodes before it."""
    visible = masks.ChainBias.build_chain_mask
    patch.setattr(masks.ChainBias, "build_tree_mask", lambda self, tree, past: visible(self, len(tree), past))


def shift_positions(patch: pytest.MonkeyPatch) -> None:
    """Positions after the prompt are one too high."""
    batch = language_model._batch_trees

    def shifted(trees: Any, lengths: list[int], bias: Any) -> tuple[Tensor, Tensor]:
        ids, positions = batch(trees, lengths, bias)
        return ids, positions + (1 if lengths[0] else 0)

    patch.setattr(language_model, "_batch_trees", shifted)


def drop_the_move(patch: pytest.MonkeyPatch) -> None:
    """A commit keeps the first entries instead of the path's."""
    patch.setattr(KVStore, "_move", lambda self, row, nodes: None)


def forget_windows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(masks.Reach, "limit", lambda self, seen, positions, first: seen)


def scale_scores(patch: pytest.MonkeyPatch) -> None:
    grouped = attention._attend_grouped
    patch.setattr(attention, "_attend_grouped", lambda q, k, v, mask, scaling: grouped(q, k, v, mask, 0.9 * scaling))


def lose_the_last(patch: pytest.MonkeyPatch) -> None:
    """The last token's logits, asked for alone, are another token's."""
    forward = LanguageModel.forward

    def forward_wrongly(self: LanguageModel, store: KVStore, trees: list[DraftTree], last_only: bool = False) -> Any:
        outs = forward(self, store, trees)
        return [TargetOutput(out.logits[:1]) for out in outs] if last_only else outs

    patch.setattr(LanguageModel, "forward", forward_wrongly)


FAULTS: list[tuple[Break, str, str]] = [
    (lose_the_tree, "llama", "a branched tree"),
    (shift_positions, "llama", "a chain"),
    (drop_the_move, "llama", "single tokens"),
    (forget_windows, "mistral", "a branched tree|the prompt|a chain"),
    (forget_windows, "llama4_text", "a branched tree|the prompt|a chain"),
    (scale_scores, "llama", "a chain"),
    (lose_the_last, "llama", "the prompt"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault, architecture, step", FAULTS)
def test_a_planted_fault_is_found(
    fault: Break, architecture: str, step: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:

    def load() -> dict[str, Any]:
        model = build(architecture, dtype, **{**EXTRA[architecture], "initializer_range": 0.05})
        target = LanguageModel(model)
        return check_forward(target, check_float32_copy(target))

    assert load()["tokens"] > 0
    fault(monkeypatch)
    with pytest.raises(InputError, match=f"in ({step}) its logits differ from transformers'"):
        load()


def test_a_window_longer_than_the_short_test_is_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(window: int) -> dict[str, Any]:
        return check_forward(LanguageModel(build("mistral", sliding_window=window)))

    figures = load(60)
    assert figures["beyond"][60]["tokens"] > 60 and figures["tokens"] < 60
    assert load(250)["beyond"][250]["tokens"] > 0
    forget_windows(monkeypatch)
    with pytest.raises(InputError, match="first in layer 0, its MistralAttention"):
        load(60)
    monkeypatch.setattr("specbench.models.self_test.SECONDS", 0)
    assert load(60)["beyond"] == {60: {"tokens": 0}}, "untried, and said so"


class Side(torch.nn.Module):
    """A module whose output has no rows, such as a cache or a loss."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self) -> object:
        return self.output


@pytest.mark.parametrize("output", [None, {"a": 1}, torch.tensor(1.0), (None, 3), ()])
def test_the_place_is_found_beside_modules_without_rows(output: object, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama", initializer_range=0.05)
    layer: Any = cast(Any, model.model).layers[0]
    layer.add_module("side", Side(output))

    def call(module: Any, _: object) -> None:
        module.side()

    layer.register_forward_pre_hook(call)
    scale_scores(monkeypatch)
    with pytest.raises(InputError, match="first in layer 0, its LlamaAttention"):
        check_forward(LanguageModel(model))


def test_a_search_that_fails_leaves_the_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError("a module of their own")

    monkeypatch.setattr("specbench.models.first_difference._differ", fail)
    scale_scores(monkeypatch)
    with pytest.raises(InputError, match=r"rounding explains 0\.0001$"):
        check_forward(LanguageModel(build("llama", initializer_range=0.05)))


def test_logits_that_are_not_numbers_are_refused() -> None:
    for bad in (torch.nan, torch.inf):
        model = build("llama")
        cast(Any, model.model).norm.weight.data[3] = bad
        with pytest.raises(InputError, match="not finite"):
            check_forward(LanguageModel(model))


@pytest.mark.parametrize(("tensor", "value"), [("weight", 0.0), ("weight", 1.0), ("bias", 0.0)])
def test_logits_that_tell_nothing_are_refused(tensor: str, value: float) -> None:
    model: Any = build("phi", num_key_value_heads=4)
    model.lm_head.weight.data.fill_(value)
    model.lm_head.bias.data = torch.arange(VOCABULARY).float() if tensor == "bias" else torch.zeros(VOCABULARY)
    said = "the same after every text" if tensor == "bias" else "all equal"
    with pytest.raises(InputError, match=f"its logits are {said}"):
        check_forward(LanguageModel(model))


def test_a_context_too_short_for_any_test_is_left_untried() -> None:
    assert check_forward(LanguageModel(build("llama", max_position_embeddings=10))) == {"tokens": 0}
    assert check_forward(LanguageModel(build("llama", max_position_embeddings=20)))["tokens"] == 20


def test_tokens_that_an_expanded_model_never_writes_do_not_hide_a_difference() -> None:
    expected = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([expected, torch.full((3, 10), -1e4)], dim=1)
    other = padded.clone()
    other[:, :50] += 0.5
    assert torch.allclose(measure_distance(other, padded), measure_distance(other[:, :50], expected))
    assert bool((measure_distance(other, padded) > 0.3).all()) and not measure_distance(padded, padded).any()
