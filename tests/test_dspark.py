"""DSpark: its heads against a plain computation from the published tensors, and the layouts that it is published in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from methods.dspark import DSpark, DSparkNetwork
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.drafters.checkpoints import write_checkpoint
from specbench.drafters.network_drafter import create_network, load_network
from specbench.errors import InputError
from specbench.models.texts import Text
from specbench.training.steps import build_lesson
from tests.drafts import watch_drafts
from tests.tiny import prompts, tiny_model

FEW, RANK, BLOCK = 12, 6, 5
Config = dict[str, Any]


def target() -> LanguageModel:
    with patch.dict("tests.tiny.SHAPE", vocab_size=FEW):
        return LanguageModel(tiny_model("llama", 4))


def save(folder: Path, **changes: Any) -> str:
    """Random weights, far from their first values."""
    model = target()
    shape = load_network(DSparkNetwork, "random", model).shape
    config = {**DSparkNetwork.create_config(shape), "markov_rank": RANK, "block_size": BLOCK, "num_hidden_layers": 2}
    network = DSparkNetwork({**config, **changes}, shape)
    draw = torch.Generator().manual_seed(4)
    for weight in network.parameters():
        weight.data.copy_(torch.randn(weight.shape, generator=draw) * (0.4 if weight.ndim > 1 else 0.2) + (weight.ndim == 1))
    write_checkpoint(network, folder)
    return str(folder)


def bias(kind: str, tensors: dict[str, Tensor], token: int, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """methods2.md 2.1: what a row's logits gain from the token before, and the state after it."""
    head = {name.removeprefix("markov_head."): tensor for name, tensor in tensors.items()}
    read = head["markov_w1.weight"][token]
    if kind == "gated":
        gate = head["gate_proj.weight"] @ torch.cat([hidden, read]) + head["gate_proj.bias"]
        read = torch.sigmoid(gate) * read
    if kind == "rnn":
        joint = head["joint_proj.weight"] @ torch.cat([memory, read, hidden]) + head["joint_proj.bias"]
        gate, candidate, out = joint[:RANK], joint[RANK : 2 * RANK], joint[2 * RANK :]
        memory = torch.sigmoid(gate) * memory + (1 - torch.sigmoid(gate)) * torch.tanh(candidate)
        read = torch.tanh(out)
    return head["markov_w2.weight"] @ read, memory


def draft_plainly(kind: str, tensors: dict[str, Tensor], root: int, rows: Tensor, logits: Tensor, least: float) -> list[int]:
    """rows (n, H), logits (n, V) of a block, its heads aside."""
    drafted: list[int] = []
    memory = torch.zeros(RANK, dtype=rows.dtype)
    for hidden, scores in zip(rows, logits, strict=True):
        token = drafted[-1] if drafted else root
        sure = tensors["confidence_head.proj.weight"][0] @ torch.cat([hidden, tensors["markov_head.markov_w1.weight"][token]])
        if torch.sigmoid(sure + tensors["confidence_head.proj.bias"][0]) < least:
            break
        added, memory = bias(kind, tensors, token, hidden, memory)
        drafted.append(int((scores + added).argmax()))
    return drafted


@torch.inference_mode()
@pytest.mark.parametrize("least", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn"])
def test_every_draft_is_the_one_of_a_plain_computation(kind: str, least: float, tmp_path: Path) -> None:
    folder = save(tmp_path, markov_head_type=kind)
    tensors = {name: tensor.double() for name, tensor in load_file(Path(folder) / "model.safetensors").items()}
    model, drafter = target(), DSpark(folder, None, least, "auto")
    drafter.bind(model)
    lengths = set()
    for prompt in (prompt % FEW for prompt in prompts(8, seed=3)):
        with (
            patch.object(drafter.network, "compute_logits", wraps=drafter.network.compute_logits) as watched,
            watch_drafts(drafter) as drafts,
        ):
            (out,) = generate(model, drafter, [prompt], Sampling(max_new_tokens=20))
        place = 0
        for draft, count, call in zip(drafts, out.committed, watched.call_args_list, strict=False):
            rows = call.args[0][0]
            expected = draft_plainly(kind, tensors, out.output_ids[place], rows, model.head(rows), least)
            assert draft == expected, "as many rows are computed as may be committed"
            lengths.add(len(draft))
            place += count
    assert len(lengths) > 2 if least else max(lengths) == BLOCK


def change(folder: str, **changes: Any) -> str:
    path = Path(folder) / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


HEADS = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")


def test_the_layouts_of_the_same_weights_are_the_same_network(tmp_path: Path) -> None:
    deepspec = save(tmp_path / "deepspec")
    config = json.loads((tmp_path / "deepspec" / "config.json").read_text())
    nested = {key: config[key] for key in (*HEADS, "mask_token_id", "target_layer_ids")}
    nested |= {"projector_type": "dspark", "attention_mode": "gqa", "confidence_head_alpha": 1.0}
    specforge = change(save(tmp_path / "specforge"), dflash_config=nested, sample_from_anchor=None, **dict.fromkeys(HEADS))
    specforge = change(specforge, mask_token_id=None, target_layer_ids=None, architectures=["DSparkDraftModel"])
    networks = [load_network(DSparkNetwork, folder, target()) for folder in (deepspec, specforge)]
    assert networks[0].config.items() <= networks[1].config.items()


REFUSED: list[tuple[Config, str]] = [
    ({"markov_rank": 4}, "misshapen: .*markov_head.markov_w1.weight is .12, 6., expected .12, 4."),
    ({"markov_head_type": "lstm"}, "markov_head_type=.lstm.: expected"),
    ({"markov_head_type": "gated"}, "missing: markov_head.gate_proj.bias"),
    (
        {"markov_rank": 0, "enable_confidence_head": False},
        "neither a Markov head nor a confidence head: this is DFlash's network",
    ),
    ({"markov_rank": 0}, "confidence_head_with_markov=true needs a Markov head"),
    (
        {"markov_head_type": "rnn", "sample_from_anchor": False},
        "markov_head_type=rnn with sample_from_anchor=false is not supported",
    ),
    ({"dflash_config": {"projector_type": "dflash"}}, "projector_type=.dflash.: expected dspark"),
    ({"enable_confidence_head": False}, "not in the network: confidence_head.proj.bias"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(changes: Config, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        load_network(DSparkNetwork, change(save(tmp_path), **changes), target())


def test_drafts_of_part_of_the_vocabulary_are_put_at_the_targets_ids(tmp_path: Path) -> None:
    """As speculators writes it, with a head of its own over the drafted tokens."""
    folder = save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = torch.tensor([1, 2, 4, 5, 8, 11])
    tensors["markov_head.markov_w2.weight"] = tensors["markov_head.markov_w2.weight"][kept].clone()
    tensors |= {"d2t": kept - torch.arange(len(kept)), "t2d": torch.isin(torch.arange(FEW), kept)}
    tensors["lm_head.weight"] = torch.randn(len(kept), 32, generator=torch.Generator().manual_seed(1))
    save_file(tensors, tmp_path / "model.safetensors")
    model = target()
    for sampling in (Sampling(max_new_tokens=20), Sampling(1.0, max_new_tokens=20, seed=2)):
        drafter = DSpark(change(folder, draft_vocab_size=len(kept)), None, 0.0, "auto")
        drafter.bind(model)
        for prompt in (prompt % FEW for prompt in prompts(4, seed=3)):
            with watch_drafts(drafter) as drafts:
                generate(model, drafter, [prompt], sampling)
            assert {token for draft in drafts for token in draft} <= set(kept.tolist())


def test_what_confidence_learns_counts_tokens_that_are_never_drafted() -> None:
    """The share that would be accepted is the sum of min(p, q) over all of the target's tokens."""
    torch.manual_seed(0)
    model = target()
    network = create_network(DSparkNetwork, model, {"draft_vocab_size": 6})
    network.choose_vocabulary(torch.tensor([1, 2, 4, 5, 8, 11]))
    texts = [Text([1, 2, 3], torch.randint(FEW, (20,)).tolist()) for _ in range(4)]
    lesson = build_lesson(texts, model, network.taps)
    with patch.object(torch.nn.functional, "binary_cross_entropy_with_logits", return_value=torch.zeros(1)) as wrong:
        torch.manual_seed(1)
        network.compute_loss(lesson)
    torch.manual_seed(1)
    blocks, hidden = network.read_blocks(lesson)
    p = blocks.compute_teacher(lesson).softmax(-1)
    logits = network.compute_logits(hidden) + network.markov_head(blocks.before, hidden, None)[0]
    q = network.to_target_logits(logits).softmax(-1)
    accepted = wrong.call_args.args[1]
    assert torch.allclose(accepted, torch.minimum(p, q).sum(-1).to(accepted.dtype), atol=1e-5)
    assert float(accepted.max()) < 0.9
