"""DFlash: the drafts of transformers' own generator at every step, and the layouts that it is published in."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file

from methods.dflash import DFlash, DFlashNetwork
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.drafters.lesson import Lesson
from specbench.drafters.network_drafter import load_network
from specbench.errors import InputError
from tests.drafts import generate_by_transformers, watch_drafts
from tests.tiny import NO_CONTEXT, SHAPE, VOCABULARY, prompts, tiny_model

ASSISTANT = "transformers.models.muse_glimmer_assistant"
needs_partner = pytest.mark.skipif(find_spec(ASSISTANT) is None, reason="this transformers has no DFlash")
Config = dict[str, Any]
SIZES: Config = {name: SHAPE[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "head_dim")}
SIZES |= {"vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0}
BLOCK: Config = {"block_size": 6, "mask_token_id": 5}
LIMIT, FEW = 24, 10


def build_partner(layers: int, groups: int, taps: list[int], theta: float) -> Any:
    from transformers import AutoConfig, AutoModel

    build: Any = AutoModel.from_config
    rope = {"rope_type": "default", "rope_theta": theta}
    sizes: Config = {**SIZES, **BLOCK, "num_key_value_heads": groups, "num_hidden_layers": layers, "rope_parameters": rope}
    sizes |= {"layer_types": ["full_attention"] * layers, "target_layer_ids": taps, "max_position_embeddings": 256}
    config = AutoConfig.for_model("muse_glimmer_assistant", **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(layers)
        model = build(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6 if weight.ndim > 1 else 1)  # at their first size its drafts would depend on the root alone
    return model


def save_partner(partner: Any, folder: Path, **changes: Any) -> str:
    """Its weights under the published names."""
    names = {"encoder.fc": "fc", "encoder.output_norm_enc": "hidden_norm"}
    tensors = {}
    for name, tensor in partner.state_dict().items():
        kept = next((name.replace(old, new) for old, new in names.items() if name.startswith(old)), name)
        tensors[kept] = tensor.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    config = partner.config
    sizes: Config = {
        **SIZES,
        **BLOCK,
        "num_key_value_heads": config.num_key_value_heads,
        "rope_theta": config.rope_parameters["rope_theta"],
    }
    sizes |= {"num_hidden_layers": config.num_hidden_layers, "dflash_config": {"target_layer_ids": config.target_layer_ids}}
    (folder / "config.json").write_text(json.dumps({**sizes, **changes}))
    return str(folder)


@needs_partner
@pytest.mark.parametrize(
    ("layers", "groups", "taps", "theta"), [(1, 4, [1], 1e4), (2, 2, [0, 2], 1e4), (3, 1, [0, 1, 3], 1e6)], ids=str
)
def test_every_draft_is_the_one_of_transformers(layers: int, groups: int, taps: list[int], theta: float, tmp_path: Path) -> None:
    """With so few tokens that some drafts are right."""
    partner = build_partner(layers, groups, taps, theta)
    with patch.dict("tests.tiny.SHAPE", vocab_size=FEW):
        target = LanguageModel(tiny_model("llama", 5))
    drafter = DFlash(save_partner(partner, tmp_path, vocab_size=FEW), None, "auto")
    drafter.bind(target)
    from transformers.generation.candidate_generator import DFlashTokenCandidateGenerator as Generator

    steps = accepted = 0
    for prompt in (2 + prompt % (FEW - 2) for prompt in prompts(14, seed=7)):
        with watch_drafts(drafter) as drafts:
            (out,) = generate(target, drafter, [prompt], Sampling(max_new_tokens=LIMIT))
        with target.use_original_attention() as model:
            tokens, theirs = generate_by_transformers(
                model, Generator, prompt, assistant_model=partner, speculation_type="dflash", max_new_tokens=LIMIT
            )
        assert out.output_ids == tokens
        for ours, other in zip(drafts, theirs, strict=False):
            assert ours == other[: len(ours)], "where few tokens are left, theirs are not cut"
        steps += len(drafts)
        accepted += sum(out.accepted)
    assert steps > 100 and accepted > 20


FLAT: Config = {"target_layer_ids": [0, 2], "num_target_layers": 5}
LAYOUTS: dict[str, Config] = {
    "z-lab": {"dflash_config": {"target_layer_ids": [0, 2]}, "num_target_layers": 5, "architectures": ["DFlashDraftModel"]},
    "newer": {"block_size": None, "mask_token_id": None, "dflash_config": {"target_layer_ids": [0, 2], **BLOCK}},
    "DeepSpec": {**FLAT, "num_anchors": 512, "markov_rank": 0, "enable_confidence_head": False, "dflash_config": None},
    "SpecForge": {"dflash_config": {"attention_mode": "gqa", "projector_type": "dflash", "target_layer_ids": [0, 2]}},
    "speculators": {"aux_hidden_state_layer_ids": [1, 3], "sample_from_anchor": False, "dflash_config": None},
}


@needs_partner
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_same_weights_is_the_same_network(layout: str, tmp_path: Path) -> None:
    target, partner = LanguageModel(tiny_model("llama", 5)), build_partner(2, 2, [0, 2], 1e4)
    folder = save_partner(partner, tmp_path, **LAYOUTS[layout])
    if layout == "speculators":
        nest(Path(folder))
    network: Any = load_network(DFlashNetwork, folder, target)
    assert (network.taps, network.block, network.mask, network.first) == ((1, 3), 6, 5, 1)


def nest(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    layers = {key: config.pop(key) for key in (*SIZES, "num_key_value_heads", "num_hidden_layers")}
    nested = {"speculators_model_type": "dflash", "transformer_layer_config": {**layers, "model_type": "qwen3"}}
    (folder / "config.json").write_text(json.dumps({**config, **nested, "draft_vocab_size": VOCABULARY}))


@needs_partner
def test_deepspecs_blocks_draft_from_the_roots_row_on(tmp_path: Path) -> None:
    changes: Config = {**LAYOUTS["DeepSpec"], "architectures": ["Qwen3DSparkModel"]}
    target, partner = LanguageModel(tiny_model("llama", 5)), build_partner(2, 2, [0, 2], 1e4)
    drafter = DFlash(save_partner(partner, tmp_path, **changes), None, "auto")
    drafter.bind(target)
    assert drafter.network.first == 0 and drafter.most == 6


REFUSED: list[tuple[Config, str]] = [
    ({"block_size": 1}, "block_size=1: expected a whole number from 2 to 64"),
    ({"block_size": None}, "block_size is missing; expected a whole number from 2 to 64"),
    ({"mask_token_id": 128}, "mask_token_id=128: expected a whole number from 0 to 127"),
    ({"dflash_config": {"target_layer_ids": [0, 5]}}, "target_layer_ids=.0, 5.: expected 1 to 63 different layers from -1 to 4"),
    ({"dflash_config": {"block_size": 5}}, "dflash_config.block_size=5 contradicts block_size=6"),
    ({"dflash_config": {"attention_mode": "mla"}}, "attention_mode=.mla.: expected gqa"),
    ({"dflash_config": {"projector_type": "domino"}}, "projector_type=.domino.: expected dflash"),
    ({"dflash_config": {"zzz": 1}}, '"zzz": no such key is supported'),
    ({"markov_rank": 256}, "markov_rank=256: expected 0: heads over the block are DSpark's"),
    ({"enable_confidence_head": True}, "enable_confidence_head=true: expected false: this head is DSpark's"),
    ({"num_target_layers": 36}, "num_target_layers=36: expected 5, the target's"),
    ({"layer_types": ["sliding_attention"] * 2}, "layer_types=.*: expected a list of .full_attention."),
    ({"num_hidden_layers": 3}, "num_hidden_layers=3: expected 2, as in the weights"),
    ({"draft_vocab_size": 64}, "missing: d2t"),
]


@needs_partner
@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_is_not_honoured_is_refused_by_name(changes: Config, said: str, tmp_path: Path) -> None:
    target, partner = LanguageModel(tiny_model("llama", 5)), build_partner(2, 2, [0, 2], 1e4)
    with pytest.raises(InputError, match=said):
        load_network(DFlashNetwork, save_partner(partner, tmp_path, **changes), target)


def test_more_draft_tokens_than_rows_are_refused() -> None:
    with pytest.raises(InputError, match="draft_tokens=8: the checkpoint's blocks draft at most 7 tokens"):
        DFlash("random", 8, "auto").bind(LanguageModel(tiny_model("llama", 5)))


def test_training_computes_the_blocks_that_drafting_computes() -> None:
    """Each block of a conversation, next to many others, is what a draft after its first token sees."""
    target = LanguageModel(tiny_model("llama", 5))
    network: Any = load_network(DFlashNetwork, "random", target)
    ids = torch.randint(2, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(3))
    wanted = torch.zeros(2, 30, dtype=torch.bool)
    wanted[:, 12:27] = True
    target.tap(network.taps)
    with torch.inference_mode():
        outs = target.prefill(target.create_store(64, 2), list(ids))
        hidden = torch.stack([out.hidden for out in outs])
        lesson = Lesson(ids, wanted, hidden, hidden[..., :32], target.head)
        blocks, rows = network.read_blocks(lesson)
        drafter = DFlash("random", None, "auto")
        drafter.bind(target)
        for conversation in range(2):
            for block in range(3):
                start = int(blocks.positions[conversation, block, 0])
                found = draft_rows(drafter, ids[conversation, : start + 1], hidden[conversation, :start])
                assert torch.allclose(found, rows[conversation, block], atol=1e-9)
                assert blocks.taught[conversation, block].sum() == min(network.block - 1, 26 - start)


def draft_rows(drafter: DFlash, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """What the head reads when it drafts after tokens, of which all but the root have these hidden states."""
    with patch.object(drafter.network, "compute_logits", wraps=drafter.network.compute_logits) as watched:
        drafter.prepare([tokens], [Sampling()], 64)
        (state,) = drafter.begin([tokens.tolist()], [TargetOutput(torch.empty(0), hidden)], [NO_CONTEXT])
        drafter.propose([state], [60])
    rows: torch.Tensor = watched.call_args.args[0][0]
    return rows
