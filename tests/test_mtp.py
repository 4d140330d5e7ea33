"""Multi-token prediction: the drafts of transformers' own generator, from the target's own files, and a module that drafts on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file

from methods.dflash import DFlash
from methods.fallback import Fallback
from methods.mtp import Mtp, MtpNetwork
from methods.mtp_files import MODULES, find_module
from methods.pld import PromptLookup
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.drafters.checkpoints import write_checkpoint
from specbench.drafters.lesson import TrainingPass
from specbench.drafters.network import TargetShape
from specbench.drafters.network_drafter import load_network
from specbench.engine.hf import TransformersGenerate
from specbench.errors import InputError
from specbench.models.load import load_model
from tests.drafts import generate_by_transformers, watch_drafts
from tests.tiny import SHAPE, prompts, tiny_model

LAYERS, LIMIT, FEW = 2, 24, 10
LONG_ENOUGH = 4  # a prompt for transformers, which fails on fewer tokens than it has modules
EXPERTS: dict[str, Any] = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1}
EXPERTS |= {"topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
LATENT: dict[str, Any] = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
KINDS: dict[str, dict[str, Any]] = {"glm4_moe": {**EXPERTS, "use_qk_norm": True}, "deepseek_v3": {**EXPERTS, **LATENT}}


def has_partner() -> bool:
    try:
        from transformers.modeling_layers import MtpModel  # noqa: F401
    except ImportError:
        return False
    return True


needs_partner = pytest.mark.skipif(not has_partner(), reason="this transformers has no MTP modules")


def get_class(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model(kind))]


def save_target(kind: str, modules: int, folder: Path) -> None:
    """A random target with modules in its own files, split in two, under the published names."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_layers import MtpModel

    sizes = {**SHAPE, **KINDS[kind], "vocab_size": FEW, "num_hidden_layers": LAYERS, "num_mtp_layers": modules}
    sizes["num_key_value_heads"] = 4 if kind == "deepseek_v3" else 2
    config = AutoConfig.for_model(kind, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(modules)
        build: Any = AutoModelForCausalLM.from_config
        model = build(config).eval()
        further: Any = MtpModel(model, modules)
        for module in further.layers:
            for weight in module.parameters():
                weight.data.normal_(0, 0.3) if weight.ndim > 1 else weight.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    made = {}
    for name, tensor in further.layers.state_dict().items():
        number, _, rest = name.partition(".")
        rest = rest.removeprefix("mtp_block.").replace("post_norm", "shared_head.norm")
        made[f"model.layers.{LAYERS + int(number)}.{rest}"] = tensor
    split = {name: part for whole in made.items() for name, part in split_experts(*whole).items()}
    base = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {"model-1.safetensors": base, "model-2.safetensors": split}
    for file, tensors in files.items():
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, tensors in files.items() for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def split_experts(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    stem, _, last = name.rpartition(".")
    if last == "gate_up_proj":
        halves = {part: tensor.chunk(2, dim=1)[place] for place, part in enumerate(("gate", "up"))}
        return {f"{stem}.{i}.{part}_proj.weight": half[i] for part, half in halves.items() for i in range(len(half))}
    if last == "down_proj":
        return {f"{stem}.{i}.down_proj.weight": part for i, part in enumerate(tensor)}
    return {name: tensor}


@needs_partner
@pytest.mark.parametrize(("kind", "modules"), [("glm4_moe", 1), ("glm4_moe", 3), ("deepseek_v3", 2)])
def test_every_draft_is_the_one_of_transformers(kind: str, modules: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With so few tokens that some drafts are right."""
    save_target(kind, modules, tmp_path)
    monkeypatch.setattr(get_class(kind), "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.[2-4].*"])
    target = load_model(str(tmp_path), dtype="float32", device="cpu")
    drafter = Mtp("target", modules, "auto")
    drafter.bind(target)
    assert len(drafter.network) == modules
    from transformers.generation.candidate_generator import MTPCandidateGenerator as Generator

    steps = accepted = 0
    for prompt in (2 + prompt % (FEW - 2) for prompt in prompts(16, seed=7) if len(prompt) > LONG_ENOUGH):
        with watch_drafts(drafter) as drafts:
            (out,) = generate(target, drafter, [prompt], Sampling(max_new_tokens=LIMIT))
        with target.use_original_attention() as model:
            tokens, theirs = generate_by_transformers(model, Generator, prompt, use_mtp=True, max_new_tokens=LIMIT)
        assert out.output_ids == tokens
        assert [own == other[: len(own)] for own, other in zip(drafts, theirs, strict=False)] == [True] * min(
            len(drafts), len(theirs)
        )
        steps, accepted = steps + len(drafts), accepted + sum(out.accepted)
    assert steps > 100 and accepted > 5


@needs_partner
def test_transformers_own_loop_writes_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a row of the engine hf, for modules in the target's own files alone."""
    save_target("glm4_moe", 1, tmp_path)
    monkeypatch.setattr(get_class("glm4_moe"), "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.[2-4].*"])
    target = load_model(str(tmp_path), dtype="float32", device="cpu")
    drafter = Mtp("target", 1, "auto")
    drafter.bind(target)
    engine = TransformersGenerate({"mtp": {"use_mtp": True}}, None, "cpu", "random")
    with pytest.raises(InputError, match="method mtp: transformers reads the target's own modules; expected checkpoint=target"):
        engine.open(target, {"mtp": Mtp("random", 1, "auto")})
    engine.open(target, {"mtp": drafter})
    for prompt in (2 + prompt % (FEW - 2) for prompt in prompts(6, seed=7) if len(prompt) > LONG_ENOUGH):
        (ours,) = generate(target, drafter, [prompt], Sampling(max_new_tokens=LIMIT))
        assert engine.generate("mtp", prompt.tolist(), Sampling(max_new_tokens=LIMIT)).output_ids == ours.output_ids


def build_module(folder: Path) -> tuple[LanguageModel, str]:
    """A tiny dense target, and one random module for it."""
    with patch.dict("tests.tiny.SHAPE", vocab_size=FEW):
        target = LanguageModel(tiny_model("qwen3", LAYERS))
    network: Any = load_network(MtpNetwork.of(target), "random", target)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(0, 0.3) if weight.ndim > 1 else weight.uniform_(0.5, 1.5)
    write_checkpoint(network, folder)
    return target, str(folder)


@pytest.mark.parametrize("after_norm", [True, False])
@pytest.mark.parametrize("hidden_first", [True, False])
def test_one_module_drafts_on_from_its_own_output(hidden_first: bool, after_norm: bool, tmp_path: Path) -> None:
    """Against one causal pass over the whole text and the draft, without a store."""
    target, folder = build_module(tmp_path)
    change(folder, mtp_hidden_states_first=hidden_first, chain_hidden_post_norm=after_norm)
    drafter = Mtp(folder, 4, "auto")
    drafter.bind(target)
    network, steps = drafter.network, 0
    for prompt in (prompt % FEW for prompt in prompts(12, seed=5)):
        with watch_drafts(drafter) as drafts:
            (out,) = generate(target, drafter, [prompt], Sampling(max_new_tokens=LIMIT))
        committed = [*prompt.tolist(), out.output_ids[0]]
        for draft, count in zip(drafts, out.committed, strict=True):
            assert draft == draft_plainly(target, network, committed, len(draft))
            place = len(committed) - len(prompt)
            committed += out.output_ids[place : place + count]
            steps += 1
    assert steps > 100


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "behind another"])
def test_several_modules_draft_in_a_batch_what_they_draft_alone(beside: bool, tmp_path: Path) -> None:
    """Also while others have ended, or another method drafts."""
    with patch.dict("tests.tiny.SHAPE", vocab_size=FEW):
        target = LanguageModel(tiny_model("llama", LAYERS))
    shape = TargetShape.of(target.config)
    write_checkpoint(MtpNetwork({**MtpNetwork.create_config(shape), MODULES: 3}, shape), tmp_path)
    mtp = Mtp(str(tmp_path), 3, "auto")
    drafter = Fallback(PromptLookup(2, 2, 3, "last", full=False, filler=None), mtp) if beside else mtp
    drafter.bind(target)
    texts, sampling = [prompt % FEW for prompt in prompts(9, seed=4)], Sampling(max_new_tokens=LIMIT, stop_token_ids=(1, 3))
    alone = [generate(target, drafter, [text], sampling)[0] for text in texts]
    together = [out for start in (0, 3, 6) for out in generate(target, drafter, texts[start : start + 3], sampling)]
    for one, other in zip(alone, together, strict=True):
        assert (one.output_ids, one.drafted, one.accepted) == (other.output_ids, other.drafted, other.accepted)
        assert one.draft_forwards == other.draft_forwards


@torch.inference_mode()
def draft_plainly(target: LanguageModel, network: Any, committed: list[int], wanted: int) -> list[int]:
    store, ids = target.create_store(99), torch.tensor(committed)
    target.tap((LAYERS,))
    (out,) = target.prefill(store, [ids[:-1]])
    hidden, drafted = out.hidden[None], list[int]()
    while len(drafted) < wanted:
        tokens = torch.tensor([[*committed[1:], *drafted]])
        read = network(hidden, tokens, torch.arange(tokens.shape[1])[None], TrainingPass())
        drafted.append(int(network.compute_logits(read)[0, -1].argmax()))
        hidden = torch.cat([hidden, network.pass_on(read[:, -1:])], dim=1)
    return drafted


NAMES = {
    "model.layers.2.eh_proj.weight": (0, "eh_proj.weight", "deepseek"),
    "model.layers.3.shared_head.norm.weight": (1, "norm.weight", "deepseek"),
    "model.layers.2.self_attn.q_proj.weight": (0, "block.self_attn.q_proj.weight", "deepseek"),
    "model.layers.1.self_attn.q_proj.weight": None,
    "model.mtp_layers.0.input_proj.weight": (0, "eh_proj.weight", "mimo"),
    "model.mtp_layers.0.token_layernorm.weight": (0, "enorm.weight", "mimo"),
    "model.mtp_layers.0.input_layernorm.weight": (0, "block.input_layernorm.weight", "mimo"),
    "mtp.fc.weight": (0, "eh_proj.weight", "qwen"),
    "mtp.pre_fc_norm_hidden.weight": (0, "hnorm.weight", "qwen"),
    "mtp.norm.weight": (0, "norm.weight", "qwen"),
    "mtp.layers.0.mlp.gate.weight": (0, "block.mlp.gate.weight", "qwen"),
    "lm_head.weight": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_tensors_of_each_family_are_told_by_their_names(name: str) -> None:
    assert find_module(name, LAYERS) == NAMES[name]


def test_modules_that_are_not_there_or_too_few_are_refused(tmp_path: Path) -> None:
    target, folder = build_module(tmp_path)
    target.model.config.name_or_path = folder
    with pytest.raises(InputError, match="has no multi-token prediction modules; expected a folder or random"):
        Mtp("target", 1, "auto").bind(target)
    change(folder, num_nextn_predict_layers=2)
    with pytest.raises(InputError, match="missing: layers.1.block"):
        Mtp(folder, 2, "auto").bind(target)
    with pytest.raises(InputError, match="this method's weights are not among the target's"):
        DFlash("target", None, "auto").bind(target)


def change(folder: str, **changes: Any) -> None:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
