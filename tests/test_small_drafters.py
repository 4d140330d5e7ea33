"""Small drafters: weights stored as int8, EAGLE over the target's embeddings, EAGLE-3 with a draft vocabulary of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from methods.eagle import Eagle2, EagleNetwork
from methods.eagle3 import DECAY, ROUNDS, Eagle3Network
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.checkpoints import read_tensors, write_checkpoint
from specbench.drafters.lesson import Lesson, TrainingPass, divergence
from specbench.drafters.network_drafter import create_network, load_network, resume_network
from specbench.errors import InputError
from specbench.models.expand import expand_model
from specbench.models.texts import Text
from specbench.training.steps import build_lesson
from tests.conftest import Cli, Tiny
from tests.test_trained_drafters import WIDE, decoded, target
from tests.test_training import overrides, six_layers, texts

OWN = {"own_embeddings": False}


def test_int8_keeps_every_weight_to_half_a_step_of_its_row(tmp_path: Path) -> None:
    network = load_network(EagleNetwork, "random", target()).float()
    write_checkpoint(network, tmp_path, storage="int8")
    stored, read = load_file(tmp_path / "model.safetensors"), read_tensors(tmp_path, [])
    assert read.keys() == network.state_dict().keys()
    for name, weight in network.state_dict().items():
        if weight.ndim == 2:
            step = weight.abs().amax(dim=1, keepdim=True) / 127
            assert stored[name].dtype == torch.int8 and ((read[name] - weight).abs() <= 0.57 * step).all(), name
        else:
            assert torch.equal(read[name], weight.half()), name


def test_a_row_of_zeros_stays_one(tmp_path: Path) -> None:
    network = load_network(EagleNetwork, "random", target()).float()
    network.fc.weight.data[3] = 0
    write_checkpoint(network, tmp_path, storage="int8")
    assert torch.equal(read_tensors(tmp_path, [])["fc.weight"][3], torch.zeros(64))


@pytest.mark.parametrize("factors", [torch.ones(5, 1), torch.ones(32), torch.ones(32, 1, dtype=torch.int32)], ids=str)
def test_factors_of_another_form_are_refused(tmp_path: Path, factors: Tensor) -> None:
    write_checkpoint(load_network(EagleNetwork, "random", target()).float(), tmp_path, storage="int8")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "fc.weight_scale": factors}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="not in the network: fc.weight_scale"):
        load_network(EagleNetwork, str(tmp_path), target())


def rounded() -> LanguageModel:
    """A target whose embeddings a checkpoint's float16 holds exactly."""
    model = target()
    weight = model.embedding.get_parameter("weight").data
    weight.copy_(weight.half())
    return model


@pytest.mark.parametrize("shape", [None, WIDE], ids=["narrow", "wide"])
def test_eagle_reads_the_targets_embeddings_as_it_reads_a_copy(shape: dict[str, int] | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    copied = create_network(EagleNetwork, rounded())
    shared = create_network(EagleNetwork, rounded(), OWN)
    shared.load_state_dict({name: weight for name, weight in copied.state_dict().items() if "embed" not in name})
    write_checkpoint(copied, tmp_path / "copied")
    write_checkpoint(shared, tmp_path / "shared")
    assert "embed_tokens.weight" not in read_tensors(tmp_path / "shared", [])
    sides = []
    for name in ("copied", "shared"):
        model = rounded() if shape is None else LanguageModel(expand_model(rounded().model, shape))
        sides.append(decoded(model, Eagle2(str(tmp_path / name), 8, 3, 2, "auto")))
    for ours, theirs in zip(*sides, strict=True):
        assert (ours.output_ids, ours.drafted, ours.accepted) == (theirs.output_ids, theirs.drafted, theirs.accepted)


def compute_slowly(network: Eagle3Network, lesson: Lesson) -> float:
    """The loss as section 3.2 has it: in every round, the target's head over every token that is learned in it."""
    hidden, rounds, loss = lesson.hidden, TrainingPass(), 0.0
    for i in range(ROUNDS):
        hidden = network(hidden, lesson.ids.roll(-1 - i, dims=1), torch.arange(lesson.ids.shape[1])[None] + i, rounds)
        mask, _ = lesson.select_ahead(2 + i)
        logits, teacher = network.compute_logits(hidden[mask]), lesson.compute_teacher(mask, 2 + i)
        known = network.t2d[teacher.argmax(-1)] if network.draft_vocabulary < network.shape.vocab_size else slice(None)
        columns = network.t2d if network.draft_vocabulary < network.shape.vocab_size else slice(None)
        loss += DECAY**i * divergence(logits[known], teacher[known][:, columns]).item()
        rounds.advance_round()
    return loss


@pytest.mark.parametrize("size", [128, 40])
def test_one_look_at_the_target_teaches_every_round(size: int) -> None:
    torch.manual_seed(0)
    model = six_layers()
    network = create_network(Eagle3Network, model, {"draft_vocab_size": size})
    if size < 128:
        network.choose_vocabulary(torch.randperm(128)[:size].sort().values)
    lesson = build_lesson([*texts(6), Text([5], [8, 9, 4, 7, 3, 2, 11, 30, 1])], model, network.taps)
    assert network.compute_loss(lesson).loss.item() == pytest.approx(compute_slowly(network, lesson), rel=1e-5)


def test_a_draft_vocabulary_holds_the_most_frequent_tokens_of_the_answers(tiny: Tiny, cli: Cli, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    answers = [[7, 8, 9, 7, 8, 7, 20 + row] for row in range(8)]
    chats.write_text("".join(json.dumps({"prompt_ids": [5, 6, 3], "answer_ids": ids}) + "\n" for ids in answers))
    given = [one for one in overrides(tiny, tmp_path / "out", "eagle3") if not one.startswith("suite.")]
    small = ["network={draft_vocab_size: 3, intermediate_size: 16}", "storage=int8", f"data={chats}"]
    assert cli("train", *given, *small).status == 0
    read = read_tensors(tmp_path / "out", [])
    assert (torch.arange(3) + read["d2t"]).tolist() == [7, 8, 9] and read["lm_head.weight"].shape[0] == 3
    assert read["midlayer.mlp.up_proj.weight"].shape[0] == 16
    ran = cli("run", *tiny.overrides("method=[eagle3]", f"method.eagle3.checkpoint={tmp_path / 'out'}", "limit=1", "repeats=1"))
    assert ran.status == 0, ran.err


@pytest.mark.parametrize(
    ("method", "network", "said"),
    [
        ("eagle", "{draft_vocab_size: 40}", 'network: "draft_vocab_size": no such key is supported'),
        ("eagle3", "{draft_vocab_size: 10000000}", "network: draft_vocab_size=10000000: expected a whole number"),
        (
            "eagle3",
            "{intermediate: 16}",
            'network: "intermediate": no such key is supported (its value: 16); the nearest is intermediate_size',
        ),
    ],
)
def test_a_change_that_no_network_knows_is_one_line(
    tiny: Tiny, cli: Cli, tmp_path: Path, method: str, network: str, said: str
) -> None:
    outcome = cli("train", *overrides(tiny, tmp_path / "out", method), f"network={network}")
    assert outcome.status == 2 and outcome.err.count("\n") == 1 and said in outcome.err, outcome.err


def test_what_a_new_network_does_not_train_is_not_trained_further(tmp_path: Path) -> None:
    model = rounded()
    new = create_network(EagleNetwork, model)
    write_checkpoint(new, tmp_path)
    loaded = resume_network(EagleNetwork, str(tmp_path), model)
    frozen = [name for name, weight in new.named_parameters() if not weight.requires_grad]
    assert frozen == [name for name, weight in loaded.named_parameters() if not weight.requires_grad] == ["embed_tokens.weight"]
    for name, weight in new.named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[name], weight.half().float()), name


def test_a_training_starts_from_a_checkpoint(tiny: Tiny, cli: Cli, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    answers = [[7, 8, 9, 7, 8, 7, 20 + row] for row in range(8)]
    chats.write_text("".join(json.dumps({"prompt_ids": [5, 6, 3], "answer_ids": ids}) + "\n" for ids in answers))
    given = [one for one in overrides(tiny, tmp_path / "first", "eagle3") if not one.startswith("suite.")] + [f"data={chats}"]
    assert cli("train", *given, "network={draft_vocab_size: 3, intermediate_size: 16}").status == 0
    more = [one for one in given if not one.startswith(("out=", "rate="))] + [f"out={tmp_path / 'more'}", "rate=1e-9"]
    assert cli("train", *more, f"start={tmp_path / 'first'}").status == 0
    first, second = (read_tensors(tmp_path / name, []) for name in ("first", "more"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.allclose(tensor.float(), second[name].float(), atol=1e-3), name
    losses = [json.loads((tmp_path / name / "training_log.jsonl").read_text().splitlines()[-1]) for name in ("first", "more")]
    assert losses[1]["held_out_loss"] == pytest.approx(losses[0]["held_out_loss"], rel=0.01)
    refused = cli("train", *more, f"start={tmp_path / 'first'}", "network={intermediate_size: 24}", f"out={tmp_path / 'third'}")
    assert refused.status == 2 and "has its own; expected null" in refused.err
