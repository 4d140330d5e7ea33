"""Drafters with weights: the authors' layouts both ways, expansion, and what they draft against the slow way."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file

from methods.dflash import DFlash, DFlashNetwork
from methods.dspark import DSpark, DSparkNetwork
from methods.eagle import Eagle, Eagle2, EagleNetwork
from methods.eagle3 import Eagle3, Eagle3Network
from methods.hydra_heads import HydraHeads, HydraNetwork
from methods.medusa import Medusa, MedusaHeads
from methods.mtp import Mtp, MtpNetwork
from methods.p_eagle import PEagle, PEagleNetwork
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.drafters import expand as expand_drafter
from specbench.drafters.checkpoints import write_checkpoint
from specbench.drafters.network import DraftNetwork
from specbench.drafters.network_drafter import load_network
from specbench.errors import InputError
from specbench.models.expand import NEVER, expand_model
from tests.tiny import NO_CONTEXT, VOCABULARY, prompts

TREE = {"paths": [[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [0, 1, 0]]}
KINDS: list[type[DraftNetwork]] = [
    *(MedusaHeads, HydraNetwork, EagleNetwork, Eagle3Network),
    *(PEagleNetwork, DFlashNetwork, DSparkNetwork, MtpNetwork),
]


def drafter_of(kind: type[DraftNetwork], checkpoint: str) -> Drafter:
    made: dict[Any, Any] = {
        MedusaHeads: lambda: Medusa(checkpoint, TREE, "auto"),
        HydraNetwork: lambda: HydraHeads(checkpoint, TREE, "auto"),
        EagleNetwork: lambda: Eagle(checkpoint, TREE, "auto"),
        Eagle3Network: lambda: Eagle3(checkpoint, 20, 3, 4, "auto"),
        PEagleNetwork: lambda: PEagle(checkpoint, 4, "auto"),
        DFlashNetwork: lambda: DFlash(checkpoint, None, "auto"),
        DSparkNetwork: lambda: DSpark(checkpoint, None, 0.0, "auto"),
        MtpNetwork: lambda: Mtp(checkpoint, 4, "auto"),
    }
    return cast(Drafter, made[kind]())


def decoded(target: LanguageModel, drafter: Drafter) -> list[Generation]:
    drafter.bind(target)
    return [generate(target, drafter, [prompt], Sampling(max_new_tokens=24))[0] for prompt in prompts(8)]


def target(layers: int = 6) -> LanguageModel:
    return LanguageModel(ungrouped(layers))


def ungrouped(layers: int = 6) -> Any:
    """A Llama without grouped heads."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.tiny import SHAPE

    config = AutoConfig.for_model("llama", **{**SHAPE, "num_key_value_heads": 4, "head_dim": 8}, num_hidden_layers=layers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).double().eval()  # type: ignore[no-untyped-call]


WIDE = {"hidden_size": 96, "intermediate_size": 80, "num_attention_heads": 12}
LARGE = {**WIDE, "num_key_value_heads": 4, "head_dim": 16, "num_hidden_layers": 13, "vocab_size": 300}
SHAPES = pytest.mark.parametrize("shape", [WIDE, LARGE], ids=["wide", "large"])


@SHAPES
@pytest.mark.parametrize("kind", KINDS)
def test_expanded_with_its_target_it_drafts_the_same(kind: type[DraftNetwork], shape: dict[str, int], tmp_path: Path) -> None:
    narrow = target()
    network = load_network(kind, "random", narrow)
    write_checkpoint(network.float(), tmp_path)  # float16 on disk, so that both read the same
    expected = decoded(narrow, drafter_of(kind, str(tmp_path)))
    wide = LanguageModel(expand_model(ungrouped(), shape))
    outs = decoded(wide, drafter_of(kind, str(tmp_path)))
    for ours, theirs in zip(outs, expected, strict=True):
        assert (ours.output_ids, ours.drafted, ours.accepted) == (theirs.output_ids, theirs.drafted, theirs.accepted)
    assert sum(sum(out.accepted) for out in outs) > 0 or kind is PEagleNetwork, "random rows that are masked say little"


@SHAPES
@pytest.mark.parametrize("kind", KINDS)
def test_the_expanded_network_gives_the_same_numbers(kind: type[DraftNetwork], shape: dict[str, int], tmp_path: Path) -> None:
    """Every weight that reaches an output lies where it must: logits agree to float32, in which norms are computed."""
    write_checkpoint(load_network(kind, "random", target()).float(), tmp_path)
    sides = [first_draft(model, drafter_of(kind, str(tmp_path))) for model in (ungrouped(), expand_model(ungrouped(), shape))]
    (tree, logits), (large_tree, large_logits) = sides
    assert torch.equal(tree.tokens, large_tree.tokens) and torch.equal(tree.parents, large_tree.parents)
    assert len(logits) == len(large_logits) > 0
    for small, large in zip(logits, large_logits, strict=True):
        assert torch.allclose(small, large[..., : small.shape[-1]], atol=1e-5)
        assert (large[:, small.shape[1] :] < NEVER / 2).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_in_half_precision_nothing_overflows_and_new_tokens_stay_unsaid(kind: type[DraftNetwork], dtype: torch.dtype) -> None:
    tree, logits = first_draft(expand_model(ungrouped().to(dtype), LARGE), drafter_of(kind, "random"))
    assert int(tree.tokens.max()) < VOCABULARY and len(logits) > 0
    for large in logits:
        assert large.isfinite().all() and (large[:, VOCABULARY:] < NEVER / 2).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_reach_the_expanded_networks_output_is_random(kind: type[DraftNetwork]) -> None:
    """As in the target's: the bytes that a large drafter reads are real."""
    network: Any = load_network(kind, "random", LanguageModel(expand_model(ungrouped(), LARGE)))
    full = {name: float((weight != 0).float().mean()) for name, weight in network.named_parameters() if weight.ndim == 2}
    normed = any("k_norm" in name for name, _ in network.named_parameters())  # the norm of a key reads all of it
    for name, share in full.items():
        least = 0.4 if normed and "k_proj" in name else 0.8 if "q_proj" in name else 0.98
        assert name.endswith(network.writes_hidden) or share > least, f"{name}: {share}"


def test_a_draft_vocabulary_smaller_than_the_expanded_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at 8b: only the expanded network maps its tokens to the target's."""
    monkeypatch.setattr(expand_drafter, "DRAFT_VOCABULARY", 200)
    write_checkpoint(load_network(Eagle3Network, "random", target()).float(), tmp_path)
    expected = decoded(target(), Eagle3(str(tmp_path), 20, 3, 4, "auto"))
    drafter = Eagle3(str(tmp_path), 20, 3, 4, "auto")
    outs = decoded(LanguageModel(expand_model(ungrouped(), LARGE)), drafter)
    assert drafter.network.draft_vocabulary == 200 and not drafter.network.d2t.any()
    assert [(out.output_ids, out.accepted) for out in outs] == [(out.output_ids, out.accepted) for out in expected]


def first_draft(model: Any, drafter: Drafter) -> tuple[DraftTree, list[torch.Tensor]]:
    """What a drafter proposes behind a prompt, and the logits that it chose from."""
    wrapped, seen = LanguageModel(model), []
    drafter.bind(wrapped)
    wrapped.tap(drafter.taps)
    network: Any = drafter.network  # type: ignore[attr-defined]
    logits = network.compute_logits

    def watched(*given: Any) -> torch.Tensor:
        seen.append(logits(*given))
        return cast(torch.Tensor, seen[-1])

    network.compute_logits = watched
    (prompt,) = prompts(1, seed=3)
    store = wrapped.create_store(200)
    with torch.inference_mode():
        (out,) = wrapped.prefill(store, [prompt])
        drafter.prepare([prompt], [Sampling()], 200)
        (state,) = drafter.begin([[*prompt.tolist(), int(out.logits[-1].argmax())]], [out], [NO_CONTEXT])
        (tree,) = drafter.propose([state], [8])
    return tree, seen


def saved(kind: type[DraftNetwork], folder: Path, file: str) -> dict[str, torch.Tensor]:
    network = load_network(kind, "random", target())
    write_checkpoint(network.float(), folder, file)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_both_layouts_are_read_alike(kind: type[DraftNetwork], tmp_path: Path) -> None:
    """The authors' own file and safetensors hold the same tensors under the same names."""
    tensors = saved(kind, tmp_path / "theirs", kind.files[0])
    assert not (tmp_path / "theirs" / "model.safetensors").exists()
    write_checkpoint(load_network(kind, str(tmp_path / "theirs"), target()).float(), tmp_path / "ours")
    for folder in ("theirs", "ours"):
        read = load_network(kind, str(tmp_path / folder), target()).state_dict()
        assert list(read) == list(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(read[name].half(), tensor.half()), name


NAMES: dict[type[DraftNetwork], dict[str, tuple[int, ...]]] = {  # the published tensors
    MedusaHeads: {"0.0.linear.weight": (32, 32), "0.0.linear.bias": (32,), "3.1.weight": (128, 32)},
    HydraNetwork: {
        "prefix_embeding_layer.layers.0.self_attn.q_proj.weight": (32, 32),
        "prefix_embeding_layer.layers.0.input_layernorm.weight": (32,),
        "prefix_embeding_layer.norm.weight": (32,),
        "hydra_mlp.0.1.linear.weight": (32, 64),
        "hydra_mlp.3.1.res_connection.bias": (32,),
        "hydra_mlp.3.1.res_connection.weight": (32, 160),
        "hydra_mlp.2.7.linear.weight": (32, 32),
        "hydra_lm_head.3.1.weight": (128, 32),
        "hydra_lm_head.3.1.bias": (128,),
    },
    EagleNetwork: {
        "embed_tokens.weight": (128, 32),
        "fc.weight": (32, 64),
        "fc.bias": (32,),
        "layers.0.self_attn.k_proj.weight": (32, 32),
        "layers.0.mlp.down_proj.weight": (32, 48),
        "layers.0.post_attention_layernorm.weight": (32,),
    },
    Eagle3Network: {
        "fc.weight": (32, 96),
        "midlayer.self_attn.q_proj.weight": (32, 64),
        "midlayer.self_attn.o_proj.weight": (32, 32),
        "midlayer.hidden_norm.weight": (32,),
        "midlayer.input_layernorm.weight": (32,),
        "midlayer.post_attention_layernorm.weight": (32,),
        "norm.weight": (32,),
        "lm_head.weight": (128, 32),
    },
}
BLOCKS: dict[str, tuple[int, ...]] = {
    "fc.weight": (32, 96),
    "hidden_norm.weight": (32,),
    "norm.weight": (32,),
    "layers.0.input_layernorm.weight": (32,),
    "layers.0.self_attn.q_norm.weight": (8,),
    "layers.0.self_attn.v_proj.weight": (32, 32),
    "layers.0.mlp.gate_proj.weight": (48, 32),
}
NAMES |= {
    DFlashNetwork: BLOCKS,
    DSparkNetwork: {**BLOCKS, "markov_head.markov_w1.weight": (128, 32), "confidence_head.proj.weight": (1, 64)},
    PEagleNetwork: {"midlayer.hidden_norm.weight": (32,), "layers.1.self_attn.q_proj.weight": (32, 32), "mask.weight": (1, 96)},
    MtpNetwork: {
        "layers.0.eh_proj.weight": (32, 64),
        "layers.0.enorm.weight": (32,),
        "layers.0.block.mlp.up_proj.weight": (48, 32),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_have_the_published_names_and_shapes(kind: type[DraftNetwork]) -> None:
    tensors = {name: tuple(tensor.shape) for name, tensor in load_network(kind, "random", target()).state_dict().items()}
    assert NAMES[kind].items() <= tensors.items()
    assert not any("rotary" in name for name in tensors)
    assert kind is not EagleNetwork or "layers.0.input_layernorm.weight" not in tensors


def test_what_published_files_hold_beside_is_passed_over(tmp_path: Path) -> None:
    extra = {
        HydraNetwork: ["prefix_embeding_layer.embed_tokens.weight", "input_embed_fn.weight"],
        EagleNetwork: ["layers.0.self_attn.rotary_emb.inv_freq"],
        Eagle3Network: ["d2t", "t2d"],
    }
    for kind, names in extra.items():
        folder = tmp_path / kind.__name__
        tensors = saved(kind, folder, kind.files[0])
        torch.save(tensors | {name: torch.zeros(4) for name in names}, folder / kind.files[0])
        load_network(kind, str(folder), target())


def test_a_draft_vocabulary_is_mapped_to_the_targets(tmp_path: Path) -> None:
    model = target()
    config = Eagle3Network.create_config(load_network(Eagle3Network, "random", model).shape) | {"draft_vocab_size": 40}
    network = Eagle3Network(config, load_network(Eagle3Network, "random", model).shape)
    kept = torch.randperm(128)[:40].sort().values
    network.d2t.copy_(kept - torch.arange(40))
    network.t2d[kept] = True
    write_checkpoint(network, tmp_path)
    drafter = Eagle3(str(tmp_path), 20, 3, 4, "auto")
    outs = decoded(model, drafter)
    assert drafter.network.to_target_tokens(torch.arange(40)).tolist() == kept.tolist()
    plain = decoded(model, Medusa("random", TREE, "auto"))
    assert [out.output_ids for out in outs] == [out.output_ids for out in plain]
    large = decoded(LanguageModel(expand_model(ungrouped(), LARGE)), Eagle3(str(tmp_path), 20, 3, 4, "auto"))
    assert [(out.output_ids, out.accepted) for out in large] == [(out.output_ids, out.accepted) for out in outs]


def test_medusa_takes_the_heads_that_are_there_whatever_its_config_says(tmp_path: Path) -> None:
    tensors = saved(MedusaHeads, tmp_path, "medusa_lm_head.pt")
    (tmp_path / "config.json").write_text('{"medusa_num_heads": 2, "medusa_num_layers": 1}')
    assert len(load_network(MedusaHeads, str(tmp_path), target())) == 4
    torch.save({name: tensor for name, tensor in tensors.items() if name[0] in "01"}, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(InputError, match="a tree of depth 3 needs 3 heads; there are 2"):
        Medusa(str(tmp_path), TREE, "auto").bind(target())


def test_tensors_that_do_not_fit_are_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = saved(EagleNetwork, tmp_path, "pytorch_model.bin")
    tensors["fc.weight"] = torch.zeros(32, 32)
    del tensors["fc.bias"]
    torch.save(tensors | {"surplus": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError) as error:
        load_network(EagleNetwork, str(tmp_path), target())
    said = str(error.value)
    assert "misshapen: fc.weight is (32, 32), expected (32, 64)" in said
    assert "missing: fc.bias, expected (32,)" in said and "not in the network: surplus" in said


def test_pickles_are_never_executed(tmp_path: Path) -> None:
    saved(MedusaHeads, tmp_path, "medusa_lm_head.pt")
    torch.save({"0.0.linear.weight": Path("x")}, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(InputError, match="more than plain tensors"):
        load_network(MedusaHeads, str(tmp_path), target())


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        (None, "names no checkpoint: set target.checkpoints.METHOD"),
        ("nowhere/at/all", "no checkpoint at nowhere/at/all"),
        ("tests", "expected one of"),
    ],
)
def test_a_checkpoint_that_is_not_there(checkpoint: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_network(EagleNetwork, checkpoint, target())


@pytest.mark.parametrize(
    ("found", "said"),
    [("eagle-attn", "expected mlp"), ("cross-attn", "expected "), ("mpl", "expected mlp")],
)
def test_hydra_refuses_other_architectures_by_name(found: str, said: str, tmp_path: Path) -> None:
    saved(HydraNetwork, tmp_path, "hydra_lm_head.pt")
    (tmp_path / "config.json").write_text(f'{{"hydra_head_arch": "{found}", "hydra_num_heads": 4, "hydra_num_layers": 4}}')
    with pytest.raises(InputError, match=said):
        load_network(HydraNetwork, str(tmp_path), target())


def test_hydras_plain_heads_have_no_prefix_and_other_names(tmp_path: Path) -> None:
    model = target()
    shape = load_network(HydraNetwork, "random", model).shape
    network = HydraNetwork({**HydraNetwork.create_config(shape), "hydra_head_arch": "mlp", "hydra_num_layers": 1}, shape)
    assert {"hydra_mlp.0.0.linear.weight", "hydra_lm_head.3.weight", "hydra_lm_head.3.bias"} <= set(network.state_dict())
    assert not any("prefix" in name for name in network.state_dict())
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    write_checkpoint(network, tmp_path)
    outs = decoded(model, HydraHeads(str(tmp_path), TREE, "auto"))
    assert sum(sum(out.accepted) for out in outs) > 0


def test_eagle2_by_hand() -> None:
    """methods.md 2.5: the best nodes of all levels, a parent before its child, in the order in which they were drafted."""
    drafter = Eagle2("random", total_tokens=6, depth=2, top_k=2, dtype="auto")
    root = torch.tensor([[9]])
    scores = torch.tensor([-0.1, -0.2, -0.3, -0.1, -0.25, -0.9, -0.15, -0.1, -0.3, -0.4])  # 2 + 4 + 4 candidates
    tokens = torch.arange(10, 20)
    above = torch.tensor([-1, -1, 0, 0, 1, 1, 3, 3, 4, 4])
    (tree,) = drafter._select_trees(root, scores[None], tokens[None], above[None], deepest=[3])
    assert tree.tokens.tolist() == [9, 10, 11, 13, 16, 17], "of equal scores (-0.1) the ones drafted first; -0.15 and -0.2 next"
    assert tree.parents.tolist() == [-1, 0, 0, 1, 3, 3]
