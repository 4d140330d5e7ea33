"""Drafters with weights: the authors' layouts both ways, widening, and what they draft against the slow way."""

from pathlib import Path
from typing import Any

import pytest
import torch

from methods.eagle import Eagle, EagleNetwork
from methods.eagle3 import Eagle3, Eagle3Network
from methods.hydra_heads import HydraHeads, HydraNetwork
from methods.medusa import Medusa, MedusaHeads
from specbench.checkpoints import DraftNetwork, network_for, write
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import Generation, Sampling, generate
from specbench.zoo.widen import widened
from tests.tiny import prompts

TREE = {"paths": [[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [0, 1, 0]]}
KINDS: list[type[DraftNetwork]] = [MedusaHeads, HydraNetwork, EagleNetwork, Eagle3Network]


def drafter_of(kind: type[DraftNetwork], checkpoint: str) -> Drafter:
    made: dict[Any, Any] = {
        MedusaHeads: lambda: Medusa(checkpoint, TREE, "auto"),
        HydraNetwork: lambda: HydraHeads(checkpoint, TREE, "auto"),
        EagleNetwork: lambda: Eagle(checkpoint, TREE, "auto"),
        Eagle3Network: lambda: Eagle3(checkpoint, 20, 3, 4, "auto"),
    }
    return made[kind]()


def decoded(target: LanguageModel, drafter: Drafter) -> list[Generation]:
    drafter.bind(target)
    target.tap(drafter.taps)
    return [generate(target, drafter, [prompt], Sampling(max_new_tokens=24))[0] for prompt in prompts(8)]


def target(layers: int = 6) -> LanguageModel:
    return LanguageModel(ungrouped(layers))


def ungrouped(layers: int = 6) -> Any:
    """A Llama that can be widened."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.tiny import SHAPE

    config = AutoConfig.for_model("llama", **{**SHAPE, "num_key_value_heads": 4, "head_dim": 8}, num_hidden_layers=layers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.mark.parametrize("kind", KINDS)
def test_widened_with_its_target_it_drafts_the_same(kind: type[DraftNetwork], tmp_path: Path) -> None:
    narrow = target()
    network = network_for(kind, "random", narrow)
    write(network.float(), tmp_path)  # float16 on disk, so that both read the same
    expected = decoded(narrow, drafter_of(kind, str(tmp_path)))
    wide = LanguageModel(widened(ungrouped(), hidden_size=96, intermediate_size=80, num_attention_heads=12))
    outs = decoded(wide, drafter_of(kind, str(tmp_path)))
    for ours, theirs in zip(outs, expected, strict=True):
        assert (ours.output_ids, ours.drafted, ours.accepted) == (theirs.output_ids, theirs.drafted, theirs.accepted)
    assert sum(sum(out.accepted) for out in outs) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_wide_network_gives_the_same_numbers(kind: type[DraftNetwork], tmp_path: Path) -> None:
    """Every weight that reaches an output lies where it must: hidden states and logits agree to rounding."""
    narrow, wide_model = target(), widened(ungrouped(), hidden_size=96, intermediate_size=80, num_attention_heads=12)
    write(network_for(kind, "random", narrow).float(), tmp_path)
    wide = LanguageModel(wide_model)
    small, large = (drafter_of(kind, str(tmp_path)) for _ in range(2))
    for model, drafter in ((narrow, small), (wide, large)):
        drafter.bind(model)
        model.tap(drafter.taps)
    trees = []
    for model, drafter in ((narrow, small), (wide, large)):
        (prompt,) = prompts(1, seed=3)
        store = model.store(200)
        with torch.inference_mode():
            (out,) = model.prefill(store, [prompt])
            root = int(out.logits[-1].argmax())
            drafter.reserve(200)
            (state,) = drafter.begin([[*prompt.tolist(), root]], [out])
            (tree,) = drafter.propose([state], [8])
        trees.append(tree)
    assert torch.equal(trees[0].tokens, trees[1].tokens) and torch.equal(trees[0].parents, trees[1].parents)
