"""Every warning that a reader needs is raised, and no other."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.records.certificates import Certification
from specbench.records.evidence import Evidence
from specbench.records.trial import Trial
from specbench.report.alarms import find_alarms
from specbench.report.baseline import find_slower_rows
from specbench.report.render import render_report
from specbench.running.baseline import ROW_ROUNDS
from tests.fake_run import CONFIG, failed, made_up_trials, trial, write_run

TASKS = ["mt_bench", "qa"]
LEFT_OUT = "was not compared with transformers beyond its window of 4096 tokens"


def raised(trials: Sequence[Trial], tmp_path: Path, **provenance: Any) -> list[tuple[str, str, str, str]]:
    loaded = read_run(write_run(tmp_path / "alarming", trials, **provenance).path)
    return [(one.level, one.method, one.task, one.message) for one in find_alarms(loaded, summarise(loaded))]


def test_a_datastore_that_contains_questions_is_alarmed_and_shown(tmp_path: Path) -> None:
    store = {"name": "<store>", "tokens": 1_200_000, "questions": 480, "leaked": 3}
    clean = {**store, "leaked": 0}
    trials = made_up_trials({"rest": 0.3, "other": 0.3}, ["qa"])
    directory = write_run(tmp_path / "run", trials, leakage={"rest": [store], "other": [clean]})
    loaded = read_run(directory.path)
    found = [one for one in find_alarms(loaded, summarise(loaded)) if "datastore" in one.message]
    assert [(one.level, one.method) for one in found] == [("alarm", "rest")]
    assert found[0].message.startswith("its datastore <store> contains 3 of the 480 questions")
    html = render_report([directory.path], tmp_path / "out").page.read_text()
    assert "rest: &lt;store&gt;, 1,200,000 tokens, holds 3 of 480 questions; other: " in html


def test_a_failed_question_is_counted_and_alarmed_never_timed(tmp_path: Path) -> None:
    trials = [trial(method, [1] * 4, 1.0, question_id=q) for method in ("autoregressive", "pld") for q in (1, 2, 3)]
    trials[5] = failed("pld", question_id=3)
    loaded = read_run(write_run(tmp_path / "run", trials).path)
    rows = summarise(loaded)
    row = rows[(rows["method"] == "pld") & (rows["task"] == "qa")].iloc[0]
    assert (row["questions"], row["errors"], row["speedup"]) == (2, 1, 1)
    assert ("alarm", "pld", "qa", "1 of 3 turns failed, most often: out of memory") in raised(trials, tmp_path)


def test_a_run_says_what_is_missing_and_that_its_code_changed(tmp_path: Path) -> None:
    directory = write_run(tmp_path, [trial(label, [1], 1.0) for label in ("autoregressive", "pld")])
    directory.write_config({**directory.read_config(), "repeats": 3})
    continued = [{"started": "2026-01-02", "differs": ["git", "versions"]}]
    directory.write_provenance({**directory.read_provenance(), "turns": 2, "continued": continued})
    lines = [str(alarm) for alarm in find_alarms(read_run(tmp_path), summarise(read_run(tmp_path)))]
    assert "notice: pld: 5 of 6 turns still to be run; run the same command again to resume" in lines
    assert "notice: the run: resumed on 2026-01-02 with a different commit, package versions" in lines


def test_a_profiled_run_is_no_headline(tmp_path: Path) -> None:
    found = raised([trial("autoregressive", [1], 1.0, draft_s=0.1, verify_s=0.9)], tmp_path)
    assert any(one[0] == "alarm" and one[3].startswith("profiled") for one in found)


def test_conversion_above_one_raises_an_alarm_only_beyond_noise(tmp_path: Path) -> None:
    def both(seconds: Sequence[float]) -> Iterator[Trial]:
        for question, each in enumerate(seconds):
            yield trial("autoregressive", [1] * 9, 10.0, question_id=question)
            yield trial("pld", [3, 3, 3], each, question_id=question)

    high = [one for one in raised(list(both([2.0, 2.1, 2.2, 2.3, 2.1])), tmp_path) if "conversion" in one[3]]
    assert [one[:3] for one in high] == [("alarm", "pld", "overall")], "of one task, it and overall say the same"
    noisy = raised(list(both([1.0, 8.0, 5.0, 4.0, 2.0])), tmp_path / "noisy")
    assert not [one for one in noisy if "conversion" in one[3]]
    single = [one for one in raised(list(both([3.0])), tmp_path / "single") if "conversion" in one[3]]
    assert {one[0] for one in single} == {"notice"}
    fast = [one for one in raised(list(both([0.1])), tmp_path / "fast") if "conversion" in one[3]]
    assert [one[0] for one in fast] == ["alarm"] and "far above 1" in fast[0][3], "40 times at 2.5 tokens per forward"


def test_drafts_of_which_none_was_accepted_are_alarmed(tmp_path: Path) -> None:
    for steps in (20, 5):
        missed = trial("eagle", [1] * steps, 10.0, drafted=[5] * steps, nodes=[6] * steps, depth=[5] * steps)
        found = raised([trial("autoregressive", [1] * steps, 10.0), missed], tmp_path / str(steps))
        said = "drafted 100 tokens, none was accepted: it does not fit the target, or its checkpoint was not read"
        assert (("alarm", "eagle", "overall", said) in found) == (steps == 20), "25 may miss by chance"
        assert {one[2] for one in found if "none was accepted" in one[3]} == ({"overall"} if steps == 20 else set())


@pytest.mark.parametrize(("class_", "alarmed"), [("exact", False), ("lossy", False), ("bug", True), ("untested", True)])
def test_a_method_without_a_clean_certificate_is_alarmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_: str, alarmed: bool
) -> None:
    monkeypatch.setattr(
        "specbench.analysis.loaded_run.find_certifications",
        lambda *_: {"pld": Certification(class_, "2026-11-20", Evidence(7, 96), same_version=True)},
    )
    found = raised([trial("autoregressive", [1], 1.0), trial("pld", [2], 0.5)], tmp_path)
    assert any("its certificate of 2026-11-20" in one[3] for one in found) == alarmed


def test_a_certificate_that_cannot_be_read_is_alarmed(tmp_path: Path) -> None:
    """Cut off in the middle: what it says of a bug must not be lost in silence."""
    path = tmp_path / "certificates" / "one" / "certificate.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 1, "greedy": [{"method": "pld", "class_": "bug"')
    message = "the certificate one/certificate.json cannot be read: what it found, bugs included, is missing here"
    assert ("alarm", "the run", "overall", message) in raised([trial("autoregressive", [1], 1.0)], tmp_path)


def in_blocks(change: float) -> list[Trial]:
    """Thirty blocks of three methods in every order, whose seconds change with the place in the block by a factor."""
    methods, rng = ["autoregressive", "pld", "sps"], random.Random(0)
    trials: list[Trial] = []
    for question in range(10):
        for repeat in range(3):
            order = rng.sample(methods, 3)
            times = [change**place * rng.gauss(1, 0.003) for place in range(3)]
            trials += [
                trial(name, [1], time, question_id=question, repeat=repeat, order=place)
                for place, (name, time) in enumerate(zip(order, times, strict=True))
            ]
    return trials


@pytest.mark.parametrize(("change", "alarmed"), [(1.0, False), (1.03, True)])
def test_a_drift_inside_blocks_is_alarmed(tmp_path: Path, change: float, alarmed: bool) -> None:
    found = [one for one in raised(in_blocks(change), tmp_path) if "from the first place in the block" in one[3]]
    assert bool(found) == alarmed
    assert not alarmed or "changes by +6." in found[0][3], "1.03 squared is 1.061"


def test_repeats_that_scatter_are_noticed(tmp_path: Path) -> None:
    made = [trial("autoregressive", [1], 1 + 0.001 * at, question_id=at // 3, repeat=at % 3) for at in range(9)]
    made += [trial("pld", [2], 1 + 0.1 * (at % 3), question_id=at // 3, repeat=at % 3) for at in range(9)]
    assert any(one[1] == "pld" and "repeats of a turn differ by 9." in one[3] for one in raised(made, tmp_path))


def test_estimators_that_disagree_are_noticed(tmp_path: Path) -> None:
    questions = {1: (10, 1.0, 1.0), 2: (10, 1.0, 0.25), 3: (100, 10.0, 10.0)}
    made = []
    for question, (tokens, plain, fast) in questions.items():
        made.append(trial("autoregressive", [1] * (tokens - 1), plain, question_id=question))
        made.append(trial("pld", [1] * (tokens - 1), fast, question_id=question))
    found = next(one for one in raised(made, tmp_path) if "estimators" in one[3])
    assert found[:3] == ("notice", "the run", "overall")
    assert "pld 1.00 (median) to 2.00 (Spec-Bench's)" in found[3], "1 and (1+4+1)/3; between them 12/11.25 and 4^(1/3)"


def test_a_drafter_that_drafts_nothing_is_alarmed(tmp_path: Path) -> None:
    found = raised([trial("autoregressive", [1] * 4, 1.0), trial("pld", [1] * 4, 1.0)], tmp_path)
    assert ("alarm", "pld", "overall", "drafted nothing: this row is autoregressive decoding") in found
    assert ("notice", "autoregressive", "overall") in {one[:3] for one in found}, "no other baseline was timed"


@pytest.mark.parametrize(("seconds", "slower"), [(0.96, True), (0.98, False)])
def test_a_baseline_slower_than_another_engine_is_alarmed(tmp_path: Path, seconds: float, slower: bool) -> None:
    found = raised([trial("autoregressive", [1], 1.0), trial("autoregressive@hf", [1], seconds)], tmp_path)
    message = "4.0% slower than autoregressive@hf: every speedup is too high"
    assert (("alarm", "autoregressive", "overall", message) in found) == slower
    assert not any("drafted nothing" in one[3] for one in found)


def test_a_baseline_slower_than_what_was_timed_before_the_run_is_alarmed(tmp_path: Path) -> None:
    rates = [{"engine": name, "dtype": "float32", "tokens_per_second": [rate]} for name, rate in (("native", 10.0), ("hf", 12.5))]
    directory = write_run(tmp_path, [trial("autoregressive", [1], 1.0)])
    directory.write_provenance({**directory.read_provenance(), "baseline": rates})
    run = read_run(tmp_path)
    assert [str(alarm) for alarm in find_alarms(run, summarise(run)) if alarm.level == "alarm"] == [
        "alarm: autoregressive: 20.0% slower than hf float32: every speedup is too high"
    ]


def test_a_baseline_without_a_rival_is_compared_with_none(tmp_path: Path) -> None:
    own = {"engine": "native", "dtype": "float32", "tokens_per_second": [10.0]}
    found = raised([trial("autoregressive", [1], 1.0)], tmp_path, baseline=[own], baseline_failed={"hf float32": "TypeError: no"})
    said = [one[3] for one in found if one[:2] == ("notice", "autoregressive")]
    assert "not compared with other autoregressive engines on this device" in said
    assert "not compared with hf float32, which failed: TypeError: no" in said


def test_a_window_that_the_self_test_left_out_is_noticed(tmp_path: Path) -> None:
    tested = {"tokens": 36, "beyond": {"60": {"tokens": 88}}}
    left_out = {"tokens": 36, "beyond": {"4096": {"tokens": 0}}}
    trials = [trial("autoregressive", [1], 1.0), trial("sps", [2], 1.0)]
    found = raised(trials, tmp_path, self_test={"target": left_out, "sps": left_out})
    assert ("notice", "the run", "overall", f"the target {LEFT_OUT}") in found
    assert ("notice", "sps", "overall", f"its draft model {LEFT_OUT}") in found
    fine = raised(trials, tmp_path / "fine", self_test={"target": tested, "sps": {"tokens": 36, "beyond": {}}, "other": {}})
    assert not [one for one in fine if "compared with transformers" in one[3]]


@pytest.mark.parametrize(
    ("temperature", "state", "changes", "alarmed"),
    [
        (0, "cold", {}, True),
        (0.0, "cold", {"error": "gone"}, False),
        (0, "warm", {}, False),
        (1.0, "cold", {}, False),
        (0, "cold", {"question_id": 2}, False),
    ],
)
def test_counts_of_a_cold_method_that_differ_between_repeats_are_alarmed(
    tmp_path: Path, temperature: float, state: str, changes: dict[str, Any], alarmed: bool
) -> None:
    """The same prompt at temperature 0: only what the drafter remembers can change its steps."""
    trials = [trial("autoregressive", [1] * 6, 1.0, repeat=repeat) for repeat in range(2)]
    trials += [trial("pld", [2, 4], 0.5, state=state), trial("pld", [6], 0.5, state=state, repeat=1, **changes)]
    run = write_run(tmp_path / "run", trials)
    run.write_config(CONFIG | {"sampling": {"temperature": temperature}})
    loaded = read_run(run.path)
    said = [str(alarm) for alarm in find_alarms(loaded, summarise(loaded))]
    expected = "alarm: pld: 1 of 1 turns took different steps in another repeat, at temperature 0: it remembers earlier prompts,"
    assert any(line.startswith(expected) for line in said) == alarmed, said


def test_what_tasks_and_overall_both_say_is_said_once(tmp_path: Path) -> None:
    """sps drafts nothing anywhere; of pld, one question of mt_bench was not finished."""
    made = [
        trial(method, [1] * 4 if method != "pld" else [2] * 2, 1.0, task=task, question_id=f"{task}{number}")
        for task in TASKS
        for number in range(3)
        for method in ("autoregressive", "pld", "sps")
    ]
    made.remove(next(one for one in made if (one.method, one.task) == ("pld", "mt_bench")))
    found = raised(made, tmp_path)
    assert [one[2] for one in found if one[3].startswith("drafted nothing")] == ["overall"]
    assert [one[1:3] for one in found if "not yet finished" in one[3]] == [("pld", "mt_bench")]


ROUNDS = [1.0, 1.02, 0.97, 1.05, 0.99]


def by_rows(**milliseconds: float) -> dict[str, list[float]]:
    return {rows.strip("r"): [base * noise for noise in ROUNDS] for rows, base in milliseconds.items()}


@pytest.mark.parametrize(
    ("times", "levels"),
    [
        (by_rows(r1=23.2, r2=44.0, r4=8.4, r8=9.1), ["alarm", "notice"]),  # the plain product up to three rows
        (by_rows(r1=9.0, r2=30.0, r4=30.0, r8=20.0), ["notice", "notice"]),
        (by_rows(r1=9.8, r2=9.0, r4=9.0, r8=10.0), []),  # 9 %
        (by_rows(r1=9.0, r2=9.0, r4=9.0, r8=9.0), []),
        ({"1": [9.0, 9.0, 30.0, 9.0, 9.0], "8": [9.0, 9.1, 9.0, 9.2, 9.0]}, []),  # one disturbed round
        ({"1": [30.0, 30.0], "8": [9.0, 9.0]}, []),  # too few rounds
        ({}, []),
    ],
)
def test_a_forward_over_fewer_rows_that_takes_longer_is_alarmed(
    tmp_path: Path, times: dict[str, list[float]], levels: list[str]
) -> None:
    forwards = [{"rows": int(rows), "milliseconds": values} for rows, values in times.items()]
    alone = raised([trial("autoregressive", [1], 1.0)], tmp_path, forward_ms=forwards)
    found = [one for one in alone if "a forward over" in one[3]]
    assert [one[0] for one in found] == levels
    if levels[:1] == ["alarm"]:
        assert found[0][1:3] == ("autoregressive", "overall")
        assert found[0][3].startswith(
            "a forward over 1 row takes 2.76 times as long as one over 4: the baseline runs slower code"
        )


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_equal_times_raise_no_alarm_about_rows(noise: float) -> None:
    """Even where other processes scatter every time by 20 %, at most once in two hundred runs; with 5 % never."""
    rng = np.random.default_rng(0)
    drawn = [dict(zip((1, 2, 4, 8), np.exp(rng.normal(0, noise, (4, ROW_ROUNDS))), strict=True)) for _ in range(1000)]
    assert sum(any(few == 1 for few, *_ in find_slower_rows(times)) for times in drawn) <= (5 if noise > 0.1 else 0)
