"""Servers under load: windows and latencies by pencil and paper; whole runs on stand-ins, resumed after a kill.

Two clients of one pass; each line: client, sent, first token, last token (seconds since the pass began), tokens.

    0   0.0  0.1  1.0  10      opens at 2.0, client 1's first answer
    1   0.0  0.1  2.0  20
    0   1.0  1.1  3.0  20      half of its tokens after the first come before 2.0
    1   2.0  2.5  4.0  16
    0   3.0  3.1  5.0  20      closes at 5.0, when client 0 finds no question left
    1   4.0  4.2  6.2  21      of 20 tokens after the first, 8 come before 5.0
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specbench.analysis.load import get_latencies, tabulate_load
from specbench.analysis.loaded_run import LoadedRun, read_run
from specbench.analysis.windows import build_window, find_limits, select_window
from specbench.errors import InputError
from specbench.records.trial import PER_STEP, Trial
from specbench.report.render import render_report
from specbench.running.clients import run_clients
from specbench.running.execute import execute
from specbench.setup.compose import compose_run
from tests.fake_engine import Quiet
from tests.fake_run import CONFIG, failed, trial, write_run
from tests.stand_in import Behaviour, StandIn

LINES = [
    (0, 0.0, 0.1, 1.0, 10),
    (1, 0.0, 0.1, 2.0, 20),
    (0, 1.0, 1.1, 3.0, 20),
    (1, 2.0, 2.5, 4.0, 16),
    (0, 3.0, 3.1, 5.0, 20),
    (1, 4.0, 4.2, 6.2, 21),
]


NO_STEPS: dict[str, Any] = dict.fromkeys(["steps", "target_forwards", *PER_STEP])


def build_pass(method: str = "autoregressive", speed: float = 1.0, repeat: int = 0) -> list[Trial]:
    """The pass above, so many times as fast."""
    turns = []
    for number, (client, began, first, last, tokens) in enumerate(LINES):
        about = {"question_id": number, "repeat": repeat, "client": client, "concurrency": 2, "new_tokens": tokens}
        waits = {"client_first_s": (first - began) / speed, "client_last_s": (last - began) / speed}
        one = trial(method, None, (last - first) / speed, **about, **waits, prefill_s=(first - began) / speed, output_sha256=None)
        turns.append(replace(one, began_s=began / speed, **NO_STEPS))
    return turns


def test_a_window_lies_between_warm_up_and_drain() -> None:
    assert find_limits(build_pass()) == (2.0, 5.0)
    window = build_window(build_pass())
    third = 19 * (3.0 - 2.0) / 1.9
    assert window.tokens == pytest.approx(third + 16 + 20 + 1 + 20 * 0.8 / 2.0)
    assert window.seconds == 3.0 and [one.question_id for one in window.sent] == [3, 4, 5] and window.failed == 0


def test_turns_of_warm_up_and_drain_count_in_no_speedup() -> None:
    assert [
        one.question_id for one in select_window([*build_pass(), failed("autoregressive", question_id=9, concurrency=2)])
    ] == [3, 4, 5, 9]
    alone = [replace(one, concurrency=1) for one in build_pass()]
    assert select_window(alone) == alone


def test_a_client_without_a_question_leaves_no_window() -> None:
    assert build_window([one for one in build_pass() if one.client == 0]).seconds == 0
    assert build_window([replace(one, concurrency=3) for one in build_pass()]).seconds == 0


def test_one_client_is_a_window_as_a_whole() -> None:
    alone = [replace(one, concurrency=1, client=None, began_s=None) for one in build_pass()]
    window = build_window(alone)
    assert window.tokens == 107 and window.seconds == pytest.approx(1 + 2 + 2 + 2 + 2 + 2.2) and len(window.sent) == 6


def test_latencies_are_those_of_the_client() -> None:
    first, token = get_latencies(build_pass()[3])
    assert first == pytest.approx(0.5) and token == pytest.approx(1.5 / 15)
    assert math.isnan(get_latencies(replace(build_pass()[3], new_tokens=1))[1])


def load(tmp_path: Path, trials: Sequence[Trial], **config: Any) -> LoadedRun:
    run = write_run(tmp_path / "run", trials)
    run.write_config({**CONFIG, "concurrency": 2, **config})
    return read_run(run.path)


def test_throughput_is_compared_pass_by_pass_and_goodput_by_stated_limits(tmp_path: Path) -> None:
    trials = [
        one for repeat, speed in enumerate((2.0, 2.2)) for one in (*build_pass(repeat=repeat), *build_pass("pld", speed, repeat))
    ]
    run = load(tmp_path, trials, goodput={"first_token_s": 0.2, "token_s": 0.1})
    baseline, pld = tabulate_load(run).to_dict("records")
    assert pld["throughput_ratio"] == pytest.approx(math.sqrt(2.0 * 2.2)) and baseline["throughput_ratio"] == 1
    assert pld["throughput_ratio_low"] < pld["throughput_ratio"] < pld["throughput_ratio_high"]
    assert (baseline["requests"], pld["requests"], pld["passes"]) == (6, 6, 2)
    assert baseline["good_share"] == 2 / 6, "question 4 alone: 3 waits for 0.5 s, 5 takes 0.1000001 s per token or just keeps it"


def test_a_run_without_limits_has_no_goodput(tmp_path: Path) -> None:
    (row,) = tabulate_load(load(tmp_path, build_pass())).to_dict("records")
    assert math.isnan(row["good_share"]) and row["tokens_per_second"] > 0


def test_clients_share_the_work_and_an_error_ends_all() -> None:
    done: list[tuple[int, int]] = []
    gate = threading.Barrier(4)

    def do(one: int, client: int, stopped: Callable[[], bool]) -> None:
        if one < 4:
            gate.wait(10)  # four at a time
        done.append((one, client))

    def divide(one: int, client: int, stopped: Callable[[], bool]) -> None:
        time.sleep(0.001)
        assert 1 // (one - 3) is not None

    run_clients(range(20), 4, do)
    assert sorted(one for one, _ in done) == list(range(20)) and {client for _, client in done} == {0, 1, 2, 3}
    with pytest.raises(ZeroDivisionError):
        run_clients(range(1000), 2, divide)


# Whole runs on stand-ins

SETTINGS = ["method=[pld]", "task=[mt_bench,qa]", "sampling.max_new_tokens=12", "check_baseline=false"]


def run_on_stand_ins(protocol: str, out: Path, *overrides: str, **behaviour: Any) -> LoadedRun:
    plain, drafting = Behaviour(protocol, **behaviour), Behaviour(protocol, **{**behaviour, "drafted": 4})
    with StandIn(plain) as baseline, StandIn(drafting) as method:
        urls = f"engine.{protocol}.urls={{autoregressive: '{baseline.url}', pld: '{method.url}'}}"
        path = execute(compose_run([f"engine=[{protocol}]", urls, *SETTINGS, *overrides, f"out={out}"]), Quiet())
    return read_run(path)


@pytest.mark.full
def test_a_run_under_load_is_resumed_by_whole_passes(tmp_path: Path) -> None:
    run = run_on_stand_ins("vllm", tmp_path / "run", "concurrency=2", "limit=3", "repeats=2", pause=0.001)
    lines = (tmp_path / "run" / "trials.jsonl").read_text().splitlines(keepends=True)
    turns = run.provenance["turns"]
    assert len(lines) == 2 * 2 * turns
    (tmp_path / "run" / "trials.jsonl").write_text("".join(lines[: 3 * turns + 2]) + lines[-1][:40])  # killed in the last pass
    urls = {name: about["url"] for name, about in run.provenance["servers"]["vllm"].items()}
    assert set(urls) == {"autoregressive", "pld"}
    again = run_on_stand_ins_at(urls, tmp_path / "run", "concurrency=2", "limit=3", "repeats=2")
    assert len(again.trials) == 2 * 2 * turns and not any(one.failed for one in again.trials)
    kept = (tmp_path / "run" / "trials.jsonl").read_text().splitlines(keepends=True)[: 3 * turns]
    assert kept == lines[: 3 * turns]


@pytest.mark.full
def test_a_first_turn_that_fails_under_load_is_an_error_row_before_the_second(tmp_path: Path) -> None:
    """pld's server refuses one request of many; the run can be read, and its second turn continues from the baseline's first."""
    plain, drafting = Behaviour("vllm"), Behaviour("vllm", drafted=4, faults={"refuse": 8})
    with StandIn(plain) as baseline, StandIn(drafting) as method:
        urls = f"engine.vllm.urls={{autoregressive: '{baseline.url}', pld: '{method.url}'}}"
        given = ["engine=[vllm]", urls, *SETTINGS, "task=[mt_bench]", "concurrency=2", "limit=4", "repeats=1"]
        run = read_run(execute(compose_run([*given, f"out={tmp_path}/run"]), Quiet()))
    failed_turns = [one for one in run.trials if one.failed]
    assert len(failed_turns) == 1 and failed_turns[0].method == "pld" and failed_turns[0].began_s is not None
    assert render_report([tmp_path / "run"], tmp_path / "report").summary["errors"].max() == 1


def run_on_stand_ins_at(urls: dict[str, str], out: Path, *overrides: str) -> LoadedRun:
    """Run again on the same addresses."""
    ports = {label: int(url.rpartition(":")[2]) for label, url in urls.items()}
    with (
        StandIn(Behaviour("vllm"), port=ports["autoregressive"]),
        StandIn(Behaviour("vllm", drafted=4), port=ports["pld"]),
    ):
        given = f"engine.vllm.urls={{autoregressive: '{urls['autoregressive']}', pld: '{urls['pld']}'}}"
        return read_run(execute(compose_run(["engine=[vllm]", given, *SETTINGS, *overrides, f"out={out}"]), Quiet()))


@pytest.mark.full
def test_texts_are_compared_where_there_are_no_ids(tmp_path: Path) -> None:
    run = run_on_stand_ins("openai", tmp_path / "run", "limit=1", "repeats=2", "engine.openai.model=null", ends_after=9)
    assert all(one.output_ids is None and one.output_sha256 is None and one.text_sha256 for one in run.trials)
    assert {one.new_tokens for one in run.trials} == {9} and all(one.steps is None for one in run.trials)
    report = render_report([run_path(run, tmp_path)], tmp_path / "report")
    assert any("returns no token ids, so equality is of texts" in alarm for alarm in report.alarms)
    rows = report.summary[report.summary["task"] == "overall"].set_index("method")
    assert rows.loc["pld", "identical"] == 1


def run_path(run: LoadedRun, folder: Path) -> Path:
    return folder / run.name


@pytest.mark.full
@pytest.mark.parametrize("protocol", ["vllm", "sglang"])
def test_a_run_on_a_server_is_an_ordinary_run(protocol: str, tmp_path: Path) -> None:
    run = run_on_stand_ins(protocol, tmp_path / "run", "limit=1", "repeats=1")
    report = render_report([tmp_path / "run"], tmp_path / "report")
    row = report.summary[report.summary["task"] == "overall"].set_index("method").loc["pld"]
    assert row["identical"] == 1 and row["mean_accepted_tokens"] > 1 and row["drafted"] > 0 and row["engine"] == protocol
    assert (tmp_path / "report" / "engines.md").is_file() and not any(one.failed for one in run.trials)


@pytest.mark.full
def test_a_start_that_failed_can_be_repeated_and_every_engine_has_logs_of_its_own(tmp_path: Path) -> None:
    urls = "engine.llama_cpp.urls={autoregressive: 'http://127.0.0.1:1', pld: 'http://127.0.0.1:2'}"
    started = [
        "engine.llama_cpp.commands.autoregressive=\"{python} -c 'raise SystemExit(4)'\"",
        "engine.llama_cpp.values.model=README.md",
    ]
    run = ["engine=[llama_cpp]", "method=[pld]", f"out={tmp_path}/run"]
    for _ in range(2):
        with pytest.raises(InputError, match=r"the server of autoregressive at http://127.0.0.1:1: .*refused"):
            execute(compose_run([*run, urls]), Quiet())
        with pytest.raises(InputError, match=r"did not start: it ended; .*servers/llama_cpp/autoregressive.log"):
            execute(compose_run([*run, *started]), Quiet())


def test_several_requests_at_a_time_need_a_server(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="concurrency=2: engine native is no server; expected concurrency=1"):
        execute(compose_run(["concurrency=2", f"out={tmp_path}/run"]), Quiet())
    urls = "engine.vllm.urls={autoregressive: 'http://127.0.0.1:1', pld: 'http://127.0.0.1:2'}"
    one = "engine.vllm.urls={pld: 'http://127.0.0.1:1'}"
    for given, said in {
        ("engine=[vllm]", urls, "concurrency=8", "limit=1"): "concurrency=8: 6 questions; expected more questions than requests",
        ("engine=[vllm]", urls, "engine.vllm.prompts=text"): "prompts=text: expected ids",
        ("engine=[vllm]", urls, "engine.vllm.concurrency=0"): "concurrency",
        ("engine=[vllm]", one): "urls has no autoregressive",
        ("engine=[llama_cpp]", "engine.llama_cpp.values.context=-5"): r"values.context=-5: expected a whole number above 0",
        ("engine=[llama_cpp]", "engine.llama_cpp.values.threads=[1]"): r"values.threads=\[1\]: expected a whole number above 0",
        ("engine=[llama_cpp]", "engine.llama_cpp.values.model=none.gguf"): r"values.model='?none.gguf'?: no such file",
        ("+method.mine._target_=specbench.engine.served.Served",): "method mine runs on servers alone; engine native is none",
    }.items():
        with pytest.raises(InputError, match=said):
            execute(compose_run([*given, "method=[pld]", f"out={tmp_path}/run"]), Quiet())
    with pytest.raises(InputError, match="batch=2: engine vllm decodes one question at a time"):
        urls = "engine.vllm.urls={autoregressive: 'http://127.0.0.1:1', pld: 'http://127.0.0.1:2'}"
        execute(compose_run(["engine=[vllm]", urls, "batch=2", "method=[pld]", f"out={tmp_path}/run"]), Quiet())
