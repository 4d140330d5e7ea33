"""A replay of recorded answers takes the very steps of the live run, without a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.errors import InputError
from specbench.records import RunDirectory
from specbench.replay import Recorded, replayed
from tests.conftest import Cli, Tiny
from tests.methods_under_test import drafter_of, target_of
from tests.tiny import VOCABULARY, prompts

LIVE = ("pld", "pld_spec_bench", "rest", "rest_spec_bench", "sam_decoding", "sam_decoding_static", "oracle")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("label", LIVE)
def test_a_replay_is_the_live_run_step_by_step(label: str, temperature: float) -> None:
    target, live = target_of("llama"), drafter_of(label, "llama")
    live.bind(target)
    answers, outs = [], []
    for at, prompt in enumerate(prompts(24, seed=3)):
        sampling = Sampling(temperature, max_new_tokens=40, stop_token_ids=(1, 7), seed=at)
        (out,) = generate(target, live, [prompt], sampling)
        outs.append(out)
        stops = (out.output_ids[-1],) if out.finish_reason == "eos" else ()
        answers.append(Recorded(prompt.tolist(), out.output_ids, 40, stops))
    again = replayed(label, drafter_of(label, "llama"), answers, VOCABULARY)
    assert {out.finish_reason for out in outs} == {"eos", "length"}
    for one, other in zip(outs, again, strict=True):
        for name in ("output_ids", "finish_reason", "drafted", "nodes", "depth", "accepted", "committed"):
            assert getattr(one, name) == getattr(other, name), name
    assert any(sum(out.accepted) for out in again) or label.startswith(("rest", "sam_decoding_static"))


@pytest.mark.parametrize("label", ["medusa", "eagle2", "token_recycling", "lookahead", "self_speculative"])
def test_a_method_that_reads_the_target_is_refused(label: str) -> None:
    answers = [Recorded([5, 6, 7, 5, 6], [7, 8, 9, 10, 11, 12], 6)]
    with pytest.raises(InputError, match=f"method {label} cannot be replayed: it reads what the target computes"):
        replayed(label, drafter_of(label, "llama"), answers)


def test_the_command(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    run = ["task=[qa,summarization]", "method=[pld]", "repeats=1", "sampling.max_new_tokens=24", "out=run"]
    assert cli("run", *tiny.overrides(*run)).status == 0
    status, out, err = cli("replay", "--of", "run", "method=[pld,sam_decoding]", "out=again")
    assert status == 0, err
    assert "pld" in out and "4 of 4 turns" in out, out
    trials = RunDirectory(tmp_path / "again").trials()
    assert {trial.kind for trial in trials} == {"replayed"} and all(trial.decode_s is None for trial in trials)
    assert cli("report", "again").status == 0
    said = cli("replay", "--of", "run", "method=[medusa]", "out=other")
    assert said.status == 2 and "reads what the target computes" in said.err


def test_tokens_that_no_node_follows_are_never_accepted() -> None:
    (out,) = replayed("pld", drafter_of("pld", "llama"), [Recorded([5, 6, 5, 6], [9, 5, 6, 5], 4)])
    assert out.output_ids == [9, 5, 6, 5] and torch.tensor(out.committed).sum() == 3
