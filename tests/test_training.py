"""`specbench train` learns, resumes after a kill, and writes checkpoints that the methods read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.dflash import DFlashNetwork
from methods.dspark import DSparkNetwork
from methods.eagle import EagleNetwork
from methods.eagle3 import ROUNDS, Eagle3Network
from methods.hydra_heads import HydraNetwork
from methods.medusa import MedusaHeads
from methods.mtp import MtpNetwork
from specbench import ROOT
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.masks import ChainBias
from specbench.drafters.layers import DraftKV
from specbench.drafters.lesson import TrainingPass
from specbench.drafters.network import DraftNetwork
from specbench.drafters.network_drafter import create_network
from specbench.errors import InputError
from specbench.models.chat import Chat
from specbench.models.load import load_model
from specbench.models.target import Target
from specbench.models.texts import Text, generate_answers, read_texts
from specbench.running.progress import TrainingDisplay
from specbench.setup.compose import compose_train
from specbench.training.steps import Batches, build_lesson
from specbench.training.train import train
from tasks.question import Question
from tests.conftest import Cli, Tiny
from tests.tiny import tiny_model

pytestmark = pytest.mark.full

KINDS: list[type[DraftNetwork]] = [
    MedusaHeads,
    HydraNetwork,
    EagleNetwork,
    Eagle3Network,
    DFlashNetwork,
    DSparkNetwork,
    MtpNetwork,
]


@pytest.fixture
def target(tiny: Tiny) -> Target:
    return Target("tiny", load_model(str(tiny.target), dtype="float32", device="cpu"), tiny.tokenizer, Chat("template"))


def six_layers() -> LanguageModel:
    return LanguageModel(tiny_model("llama", layers=6, dtype=torch.float32))


def texts(count: int) -> list[Text]:
    """Prompt and answer of a pattern that can be learned: each token follows from the one before."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        first = int(torch.randint(2, 60, (1,), generator=generator))
        ids = [2 + (first + 7 * step) % 60 for step in range(24)]
        made.append(Text(ids[:8], ids[8:]))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_falls(kind: type[DraftNetwork]) -> None:
    torch.manual_seed(0)
    model = six_layers()
    network = create_network(kind, model)
    lesson = build_lesson(texts(16), model, network.taps)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    found = []
    for _ in range(30):
        depths = network.compute_loss(lesson)
        torch.autograd.backward(depths.loss)
        optimizer.step()
        optimizer.zero_grad()
        found.append(depths.loss.item())
    assert found[-1] < 0.9 * found[0], found
    assert all(0 <= float(share) <= 1 for share in depths.right)


@pytest.mark.parametrize(("kind", "layer"), [(EagleNetwork, "fc"), (HydraNetwork, "hydra_mlp.0.1.res_connection")])
def test_tokens_begin_as_loud_as_hidden_states(kind: type[DraftNetwork], layer: str) -> None:
    """EAGLE reads tokens first, Hydra the hidden state; embeddings are many times smaller than what a norm gives."""
    torch.manual_seed(2)
    model = six_layers()
    embedding = model.embedding
    assert isinstance(embedding.weight, torch.Tensor)
    embedding.weight.data.mul_(0.05)
    weight, width = create_network(kind, model).get_submodule(layer).weight, model.config.hidden_size
    assert isinstance(weight, torch.Tensor)
    first, second = weight[:, :width], weight[:, width : 2 * width]
    tokens, hidden = (first, second) if kind is EagleNetwork else (second, first)
    ids = torch.randint(0, model.config.vocab_size, (64,))
    loud = (model.embedding(ids) @ tokens.T).std() / (torch.randn(64, width) @ hidden.T).std()
    assert 0.5 < loud < 2, loud


def test_the_training_time_test_sees_what_drafting_sees() -> None:
    """Round j of training, at one place, is the j-th level of a chain drafted after it."""
    torch.manual_seed(1)
    model = six_layers()
    network = create_network(Eagle3Network, model).double()
    network.attach_target(model)
    network._embed = lambda tokens: model.embedding(tokens).double()
    network.rotary.cos, network.rotary.sin = network.rotary.cos.double(), network.rotary.sin.double()
    (text,) = texts(1)
    lesson = build_lesson([text], model, network.taps)
    positions, rounds, hidden = torch.arange(24)[None], TrainingPass(), lesson.hidden.double()
    taught = []
    for i in range(ROUNDS):
        hidden = network(hidden, lesson.ids.roll(-1 - i, dims=1), positions + i, rounds)
        taught.append(hidden[0])
        rounds.advance_round()
    place = 9
    kv = DraftKV(1, 64, ChainBias(torch.float64, torch.device("cpu")))
    ids = lesson.ids[0]
    token_pass = kv.build_token_pass([place + 1])
    out = network(lesson.hidden.double()[:, : place + 1], ids[None, 1 : place + 2], positions[:, : place + 1], token_pass)
    kv.keep([place + 1])
    state = out[:, -1:]
    assert torch.allclose(state[0, 0], taught[0][place])
    for i in range(1, ROUNDS):
        visible = torch.ones(1, 1, i, dtype=torch.bool)
        token = ids[None, place + 1 + i : place + 2 + i]
        state = network(state, token, torch.tensor([[place + i]]), kv.build_level_pass(visible))
        kv.stack(1)
        assert torch.allclose(state[0, 0], taught[i][place]), f"round {i}"


def test_lessons_hold_what_the_target_saw() -> None:
    model, some = six_layers(), texts(3)
    shorter = [Text(some[0].prompt_ids[:5], some[0].answer_ids[:6]), *some[1:]]
    lesson = build_lesson(shorter, model, (2, 3))
    hidden = model.config.hidden_size
    assert lesson.hidden.shape == (3, 24, 2 * hidden) and lesson.last.shape == (3, 24, hidden)
    assert lesson.wanted.sum(dim=1).tolist() == [6, 16, 16]
    there, tokens = lesson.select_ahead(2)
    assert tokens.tolist() == [token for text in shorter for token in text.answer_ids]
    with torch.inference_mode(), model.use_original_attention() as plain:
        logits = plain(torch.tensor([shorter[1].prompt_ids + shorter[1].answer_ids])).logits[0]
    teacher = lesson.compute_teacher(there, 2)[6:22]  # the second text's answer
    assert torch.allclose(teacher, logits[7:23], atol=1e-4)


def test_batches_hold_every_text_once_and_no_longer_than_asked() -> None:
    some = [Text([2] * n, [3, 4]) for n in (5, 50, 7, 20, 300, 6)] + [Text([2], [3])]
    made = Batches(some, tokens=64, longest=100)
    found = [text for at in range(len(made)) for text in made.get_batch(at, seed=3)]
    assert sorted(len(text.prompt_ids) for text in found) == [5, 6, 7, 20, 50], "too long, or an answer of one token: left out"
    for batch in made.batches:
        assert len(batch) * max(len(text.prompt_ids) + 2 for text in batch) <= 64 or len(batch) == 1


def test_the_targets_own_answers(target: Target) -> None:
    questions = [Question("a", "qa", "qa", ("hello", "and then"), None), Question("b", "qa", "qa", ("what",), None)]
    told: list[tuple[str, int, int]] = []
    made = list(generate_answers(target, questions, 8, lambda *now: told.append(now)))
    assert len(made) == 3 and told == [("the target answers", 2, 2)]
    for text in made:
        ids = torch.tensor([text.prompt_ids])
        with torch.inference_mode(), target.model.use_original_attention() as model:
            settings = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)  # type: ignore[operator]
        assert out[0, ids.shape[1] :].tolist() == text.answer_ids


def test_chats_of_both_kinds_are_read_alike(target: Target, tmp_path: Path) -> None:
    said = [("user", "hello"), ("assistant", "yes"), ("user", "more"), ("assistant", "no more")]
    names = {"user": "human", "assistant": "gpt"}
    file = tmp_path / "chats.jsonl"
    lines = [
        {"messages": [{"role": role, "content": text} for role, text in said]},
        {"conversations": [{"from": names[role], "value": text} for role, text in said]},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = read_texts(file, target)
    assert len(made) == 4 and made[:2] == made[2:]
    assert made[1].prompt_ids[: len(made[0].prompt_ids)] == made[0].prompt_ids
    assert made[0].answer_ids[-1] == target.model.eos_ids[0]


def overrides(tiny: Tiny, out: Path, method: str = "medusa", *more: str) -> list[str]:
    return [
        *(f"target.path={tiny.target}", f"target.draft.path={tiny.draft}", "target.dtype=float32", f"method={method}"),
        *("suite.per_task=2", "max_new_tokens=12", "held_out=4", "epochs=4", "batch_tokens=1024"),
        *("save_every=3", f"cache_dir={out.parent / 'cache'}", f"out={out}", *more),
    ]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_killed_training_resumes_and_ends_with_equal_weights(tiny: Tiny, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = train(compose_train(overrides(tiny, tmp_path / "whole")), lambda *_: None)

    def killer(what: str, done: int, of: int | None, row: Mapping[str, Any] | None = None, /) -> None:
        if what == "training" and done == 5:
            raise KeyboardInterrupt

    config = compose_train(overrides(tiny, tmp_path / "killed"))
    with pytest.raises(KeyboardInterrupt):
        train(config, killer)
    seen: list[int] = []
    killed = train(config, lambda what, done, of, *row: seen.append(done) if what == "training" else None)
    torch.set_num_threads(threads)
    assert seen[0] == 4, "the last saved state was after step 3"
    assert weights(killed) == weights(whole)
    steps = [
        [json.loads(line)["step"] for line in (out / "training_log.jsonl").read_text().splitlines()] for out in (whole, killed)
    ]
    assert steps[0] == steps[1]
    assert (killed / "curves.png").stat().st_size > 1000 and "held out" in (killed / "README.md").read_text()


@pytest.mark.parametrize(
    ("step", "kept"), [(None, "nothing yet"), (5, "the target's texts and 3 steps of training")], ids=["answers", "training"]
)
def test_a_stopped_training_says_what_is_kept(
    tiny: Tiny, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int | None, kept: str
) -> None:
    def update(_: TrainingDisplay, what: str, done: int, *more: object) -> None:
        if step == (done if what == "training" else None):
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingDisplay, "update", update)
    status, _, err = cli("train", *overrides(tiny, tmp_path / "out"))
    assert status == 130
    assert err == f"specbench: stopped; kept: {kept}; run the same command with out={tmp_path / 'out'} to resume\n"


def test_two_processes_train_one_network(tiny: Tiny, tmp_path: Path) -> None:
    """A step takes twice as many batches, and one process writes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = Path(sys.executable).with_name("specbench")
    given = overrides(tiny, tmp_path / "out", "eagle", "target.device=cpu")
    done = subprocess.run([*command, str(program), "train", *given], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "out" / "training_log.jsonl").read_text().splitlines()]
    alone = train(compose_train(overrides(tiny, tmp_path / "alone", "eagle")), lambda *_: None)
    steps = [json.loads(line)["step"] for line in (alone / "training_log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == -(-steps[-1] // 2), "twice as many batches per step"
    assert (tmp_path / "out" / "model.safetensors").is_file() and done.stdout.count("checkpoint:") == 1


def test_what_was_trained_can_be_run(tiny: Tiny, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", *overrides(tiny, tmp_path / "eagle3", "eagle3", "file=pytorch_model.bin")).status == 0
    ran = cli(
        "run", *tiny.overrides("method=[eagle3]", f"method.eagle3.checkpoint={tmp_path / 'eagle3'}", "limit=1", "repeats=1")
    )
    assert ran.status == 0, ran.err
    assert "eagle3" in ran.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["method=pld"], "method=pld: has neither weights to train nor a skip set to search for"),
        (["method=p_eagle"], "PEagle cannot be trained here; expected a published checkpoint"),
        (["search.trials=3"], "search.trials=3: has no effect, since medusa is trained; expected only batch_tokens, "),
        (["method=self_speculative", "search.trials=0"], "search.trials=0: expected a whole number, at least 1"),
        (
            ["method=self_speculative", "search.trails=3"],
            "search.trails: no such setting of specbench train; the nearest is search.trials",
        ),
        (["precision=bf15"], "precision=bf15: expected"),
        (["epochs=0"], "epochs=0: expected a number above 0"),
        (["file=x.bin"], "file=x.bin: expected"),
        (["held_out=1000"], "held_out=1000: expected fewer than the "),
        (["held_out=0"], "held_out=0: expected a whole number, at least 1"),
        (["accumulate=0.5"], "accumulate=0.5: expected a whole number, at least 1"),
        (["muon=-1"], "muon=-1: expected a number above 0"),
        (["seed=x"], "seed=x: expected a whole number"),
        (["method=[eagle,eagle2]"], "expected one, such as method=eagle3"),
        (["limit=x"], "limit=x: expected a number of questions per task, at least 1, or null for all"),
        (["max_new_tokens=1"], "no answer of two tokens or more"),
        (["data=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["epoch=1"], "epoch: no such setting of specbench train; the nearest is epochs"),
    ],
)
def test_mistakes_get_one_line(tiny: Tiny, cli: Cli, tmp_path: Path, more: list[str], message: str) -> None:
    method = more[0].removeprefix("method=") if more[0].startswith("method=") else "medusa"
    given = [
        override for override in overrides(tiny, tmp_path / "out", method) if override.split("=")[0] != more[0].split("=")[0]
    ]
    outcome = cli("train", "-q", *given, *more)
    assert outcome.status == 2 and outcome.err.count("\n") == 1 and message in outcome.err, outcome.err


def test_a_mistake_does_not_stand_in_the_way_of_the_next_try(tiny: Tiny, cli: Cli, tmp_path: Path) -> None:
    given = [override for override in overrides(tiny, tmp_path / "out") if not override.startswith("suite.")]
    assert cli("train", *given, "data=nowhere.jsonl").status == 2
    assert cli("train", *overrides(tiny, tmp_path / "out"), "held_out=1000").status == 2
    assert cli("train", *overrides(tiny, tmp_path / "out")).status == 0


@pytest.mark.parametrize("ids", [[5, 10**6], "abc", [1.5]])
def test_ids_that_the_target_does_not_have_are_named(target: Target, tmp_path: Path, ids: object) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"prompt_ids": [1], "answer_ids": ids}) + "\n")
    with pytest.raises(InputError, match="is not a token id below"):
        read_texts(file, target)


def test_answers_shorter_than_the_draft_leave_no_gap_in_the_log(target: Target) -> None:
    """Seven places are drafted, the answer has three tokens."""
    network = create_network(Eagle3Network, six_layers())
    found = network.compute_loss(build_lesson([Text([5, 6, 7], [8, 9, 1])], six_layers(), network.taps))
    assert torch.isfinite(found.loss) and torch.isfinite(torch.stack(found.right)).all()


def test_a_broken_line_is_named(tiny: Tiny, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text('{"messages": []}\n{"nothing": 1}\n')
    outcome = cli("train", *overrides(tiny, tmp_path / "out"), f"data={tmp_path / 'chats.jsonl'}")
    assert outcome.status == 2 and "chats.jsonl:2: expected" in outcome.err


def test_a_folder_of_something_else_is_left_alone(tiny: Tiny, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    outcome = cli("train", *overrides(tiny, tmp_path / "full"))
    assert outcome.status == 2 and "expected the folder of a training, an empty folder or a new one" in outcome.err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]
