"""python -m benchmarks.peers: rates, turns and texts; that llama.cpp and OpenVINO write our texts from an exported file."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from benchmarks.embedded import exit_with
from benchmarks.peers import __main__ as peers
from benchmarks.peers.arms import Answer, Arm, Job
from benchmarks.peers.contest import Contest, find_difference, strip_end
from benchmarks.peers.llama_cpp import open_llama_cpp
from benchmarks.peers.results import Turn, build_rows
from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.machine.load import LoadMeter
from specbench.models.chat import Chat
from specbench.models.load import load_tokenizer
from specbench.models.target import Target
from specbench.setup.objects import EMBEDDED
from tests.conftest import Tiny
from tests.tiny import tiny_language_model

TOKENS = 24


def answer_plainly(model: LanguageModel, prompt: list[int]) -> list[int]:
    drafter = Autoregressive()
    drafter.bind(model)
    sampling = Sampling(max_new_tokens=TOKENS, stop_token_ids=model.eos_ids)
    return generate(model, drafter, [torch.tensor(prompt)], sampling)[0].output_ids


def build_job(model: LanguageModel, folder: Path, *methods: str) -> Job:
    target = Target("tiny", model, load_tokenizer(EMBEDDED, None, False), Chat("plain"))
    prompts = [[2, *range(20, 60), 3], [2, *[30, 31, 32, 33] * 6, 3]]
    sampling = Sampling(max_new_tokens=TOKENS, stop_token_ids=model.eos_ids)
    return Job(cast(Any, None), target, methods, prompts, sampling, folder, folder)


# Rates and turns


def turn(number: int, engine: str, method: str, tokens: int, seconds: float, differs_at: int | None = None) -> Turn:
    return Turn(number, engine, method, 0, tokens + 1, tokens, seconds, 0, differs_at, [])


def test_ratios_are_taken_inside_a_round_and_the_warm_up_is_left_out() -> None:
    turns = [
        *(turn(0, engine, "autoregressive", 10, 100.0) for engine in ("specbench", "llama.cpp")),
        *(turn(1, engine, "autoregressive", 10, seconds) for engine, seconds in (("specbench", 1.0), ("llama.cpp", 0.5))),
        turn(1, "llama.cpp", "sps", 10, 0.25, differs_at=3),
        *(turn(2, engine, "autoregressive", 10, seconds) for engine, seconds in (("specbench", 2.0), ("llama.cpp", 0.25))),
        turn(2, "llama.cpp", "sps", 10, 0.25),
    ]
    ours, plain, drafted = build_rows(turns).to_dict("records")
    assert (plain["to_specbench_1"], plain["to_specbench_2"], ours["to_specbench"]) == (2, 8, 1)
    assert plain["to_specbench"] == pytest.approx(4)
    assert plain["tokens_per_second"] == 30, "20 and 40"
    assert drafted["speedup"] == pytest.approx(2**0.5), "2 and 1"
    assert [(row["texts_equal"], row["texts"]) for row in (ours, plain, drafted)] == [(1, 1), (1, 1), (0, 1)]


def test_every_arm_decodes_every_prompt_in_a_moving_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.contest.PAUSE", 0.0)
    job = build_job(tiny_language_model(), tmp_path, "autoregressive")
    seen: list[str] = []

    def build_arm(engine: str, text: list[int]) -> Arm:
        def decode(prompt: list[int]) -> Answer:
            seen.append(engine)
            return Answer(text, len(text) - 1, 1.0, 0)

        return Arm(engine, "pld", decode, "caller")

    contest = Contest(job, [build_arm("a", [5, 6, 1]), build_arm("b", [5, 6]), build_arm("c", [5, 7])])
    contest.run(rounds=2)
    assert "".join(seen) == "abcabc" + "bcacab" + "cababc"
    assert {(one.engine, one.differs_at) for one in contest.turns} == {("a", None), ("b", None), ("c", 1)}
    assert [note for note in contest.find_notes() if "drafted" in note] == [f"{name}/pld drafted nothing" for name in "abc"]


def test_texts_are_compared_without_the_token_that_ended_them() -> None:
    assert strip_end([5, 6, 1], (1, 9)) == [5, 6] == strip_end([5, 6], (1, 9))
    assert [find_difference([5, 6], other) for other in ([5, 6], [5, 7], [5], [5, 6, 7])] == [None, 1, 1, 2]


def test_servers_of_other_arms_are_others_in_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.contest.PAUSE", 0.0)
    seen: list[tuple[str, set[int]]] = []
    names = ["own", "a", "b"]

    def note(meter: LoadMeter, foreign: Collection[int] = ()) -> None:
        seen.append((names[len(seen) % 3], set(foreign)))

    monkeypatch.setattr(LoadMeter, "start", note)
    answer = Answer([5], 0, 1.0, 0)
    processes: list[list[int]] = [[], [1], [2, 3]]
    arms = [
        Arm(name, "pld", lambda prompt: answer, "others", frozenset(pids)) for name, pids in zip(names, processes, strict=True)
    ]
    Contest(build_job(tiny_language_model(), tmp_path, "pld"), arms).run(rounds=0)
    assert seen[:3] == [("own", {1, 2, 3}), ("a", {2, 3}), ("b", {1})]


# The command


def run_peers(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr("benchmarks.peers.contest.PAUSE", 0.0)
    monkeypatch.setattr(sys, "argv", ["peers", "--threads", "1", *argv])
    with pytest.raises(SystemExit) as end:
        exit_with(peers.main)
    return int(end.value.code or 0)


@pytest.mark.full
def test_our_arms_and_transformers_end_to_end(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [f"target.path={tiny.target}", f"target.draft.path={tiny.draft}", "target.shape=null", "suite.per_task=2"]
    words = ["--engines", "specbench,transformers", "--dtype", "float32", "--limit", "1", "--tokens", "8", "--rounds", "1"]
    assert run_peers(monkeypatch, *words, "--out", str(tmp_path), *paths) == 0
    assert "6 of 6" in capsys.readouterr().out
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".csv", ".md", ".png", ".svg", ".pdf"}
    result = json.loads((tmp_path / "mini-float32.json").read_text())
    turns = [Turn(**one) for one in result["turns"]]
    assert len(turns) == 2 * 2 * 3 * 6 and not any(one.differs_at is not None for one in turns)
    assert all(0 <= one.tokens < one.new_tokens <= 8 and one.seconds >= 0 for one in turns)
    assert all(one.tokens == one.new_tokens - 1 for one in turns if one.method == "autoregressive")


def test_a_missing_package_is_one_notice_and_a_mistake_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "xllamacpp" else SimpleNamespace())
    names, notices = peers.list_engines(
        cast(Any, SimpleNamespace(engines=["specbench", "llama.cpp", "OpenVINO"], llama_binary=None))
    )
    assert names == ["specbench", "OpenVINO"]
    assert notices == ["llama.cpp is left out: xllamacpp missing; pip install -e '.[peers]'"]
    for argv, message in (
        (["--engines", "lama.cpp"], "--engines lama.cpp: expected some of llama.cpp, "),
        (["--methods", ","], "argument --methods: expected a name or several"),
        (["--methods", "eagle"], "--methods eagle: expected some of "),
        (["--tokens", "0"], "--tokens: expected 2 or more, as prefill gives the first"),
        (["method=[pld]"], "method=[pld]: here this is set by --methods"),
        (["target.dtype=float16"], "target.dtype=float16: here this is set by --dtype"),
        (["--engines", "specbench", "--out", __file__], f"--out {__file__}: File exists"),
        (["--llama-binary", "llama-server"], "--llama-binary llama-server: expected a program, llama.cpp's llama-server"),
        (["--engines", "llama.cpp"], "no engine is left to compare"),
    ):
        assert run_peers(monkeypatch, *argv) == 2
        assert message in capsys.readouterr().err


# Other engines on exported files


@pytest.mark.full
@pytest.mark.parametrize("kind", ["plain", "biases", "linear", "llama3", "tied"])
def test_llama_cpp_writes_our_texts(kind: str, tmp_path: Path) -> None:
    if find_spec("xllamacpp") is None:
        pytest.skip("needs the extra llama_cpp: pip install -e '.[llama_cpp]'")
    pytest.importorskip("gguf", reason="needs the extra gguf: pip install -e '.[gguf]'")
    from tests.test_gguf import ROPES, build

    changes: dict[str, Any] = {"biases": {"attention_bias": True, "mlp_bias": True}, "tied": {"tie_word_embeddings": True}}.get(
        kind, {"rope_parameters": ROPES[kind]} if kind in ROPES else {}
    )
    model = build(**changes)
    with ExitStack() as stack:
        job = build_job(model, tmp_path, *(["autoregressive", "pld"] if kind == "plain" else ["autoregressive"]))
        arms = list(open_llama_cpp(job, stack))
        for arm in arms:
            for prompt in job.prompts:
                out = arm.decode(prompt)
                assert strip_end(out.ids, (1,)) == strip_end(answer_plainly(model, prompt), (1,)), arm.label
                assert out.tokens == len(out.ids) - 1 and out.seconds > 0


@pytest.mark.full
def test_openvino_writes_our_texts(tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai", reason="needs the extra peers: pip install -e '.[peers]'")
    pytest.importorskip("gguf", reason="needs the extra gguf: pip install -e '.[gguf]'")
    from benchmarks.peers.openvino import open_openvino
    from tests.test_gguf import build

    rounded = build(torch.float16).model.float()  # type: ignore[no-untyped-call]
    model = LanguageModel(rounded)
    job = build_job(model, tmp_path, "autoregressive", "pld")
    for arm in open_openvino(job, ExitStack()):
        for prompt in job.prompts:
            out = arm.decode(prompt)
            assert strip_end(out.ids, (1,)) == strip_end(answer_plainly(model, prompt), (1,)), arm.label
            assert 0 < out.tokens < len(out.ids) and out.seconds > 0
    assert job.notes == [], "float16 holds these weights"
