"""Which turns count as disturbed and which attempt counts, and what the report says of them: from records alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specbench.analysis.disturbance import FAR, count_disturbed, find_disturbed
from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.errors import InputError
from specbench.records.attempts import select_complete, select_counted
from specbench.records.trial import Trial
from specbench.records.trial_rules import check_trial
from specbench.report.alarms import find_alarms
from specbench.report.render import render_report
from specbench.running.attempts import Attempts
from specbench.running.schedule import Arm
from tests.fake_engine import FakeEngine
from tests.fake_run import failed, trial, write_run

BUSY = "other processes: 60% of the cores"


def many(seconds: Sequence[float], method: str = "pld", **changes: Any) -> list[Trial]:
    """The repeats of one turn."""
    return [trial(method, [2, 2], each, repeat=repeat, **changes) for repeat, each in enumerate(seconds)]


def far(*groups: Sequence[Trial]) -> list[tuple[str, int]]:
    trials = [one for group in groups for one in group]
    return [(method, repeat) for (method, repeat, *_), _ in find_disturbed(trials, trials)]


STEADY = [one for question in range(2, 12) for one in many([1.0, 1.01, 0.99], question_id=question)]


@pytest.mark.parametrize("method", ["autoregressive", "pld"])
def test_a_time_far_above_its_other_repeats_is_disturbed_for_either_arm(method: str) -> None:
    assert far(many([1.0, 1.0, 1.1 * FAR], method), STEADY) == [(method, 2)]
    assert far(many([1.0, 1.0, 0.9 * FAR], method), STEADY) == []
    assert far(many([1.0, 1.0, 0.7], method), STEADY) == [], "faster is not disturbed"
    assert far(many([1.0, 5.0, 5.0], method), STEADY) == [(method, 1), (method, 2)]
    assert far(many([1.0, 3.0], method), STEADY) == [(method, 1)] and far(many([3.0], method), STEADY) == []


def test_other_counts_are_a_reason_for_another_time() -> None:
    longer = trial("pld", [2, 2, 2, 2, 2], 5.0, repeat=2)
    assert far(many([1.0, 1.0]), [longer], STEADY) == []


def test_what_is_far_depends_on_the_runs_own_spread() -> None:
    scattered = [one for question in range(2, 30) for one in many([1.0, 1.5, 0.7], question_id=question)]
    assert far(many([1.0, 1.0, 1.1 * FAR]), scattered) == []
    assert ("pld", 2) in far(many([1.0, 1.0, 40.0]), scattered)


def test_times_of_failed_and_imported_turns_say_nothing() -> None:
    assert far(many([1.0, 1.0, 9.0], kind="imported")) == []
    assert far([*many([1.0, 1.0]), failed("pld", repeat=2)]) == []


def test_arms_belong_to_later_attempts_alone() -> None:
    for changes in ({"attempt": 2}, {"arms": 2}):
        with pytest.raises(InputError, match="arms is"):
            check_trial(trial("pld", [1], 1.0, **changes))
    check_trial(trial("pld", [1], 1.0, attempt=2, arms=2))


def test_of_a_torn_attempt_nothing_counts_and_of_a_whole_one_all() -> None:
    first = [trial(method, [1], 9.0) for method in ("autoregressive", "pld")]
    later = [trial(method, [1], 1.0, attempt=2, arms=2) for method in ("autoregressive", "pld")]
    assert select_counted([*first, later[0]]) == first and select_complete([*first, later[1]]) == first
    assert select_counted([*first, *later]) == later
    third = [trial(method, [1], 2.0, attempt=3, arms=2) for method in ("autoregressive", "pld")]
    assert select_counted([*first, later[0], *third]) == third
    assert select_counted([*first, *later, third[0]]) == later


def test_the_dearest_block_is_judged_by_its_fastest_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.running.attempts.MORE_TIME", 0.2)  # tests are given no time otherwise
    engine = FakeEngine(lambda label, prompt: "")
    arms = [Arm(method, method, engine) for method in ("autoregressive", "pld")]
    quiet = [trial(a.label, [1], 1.0, question_id=q, repeat=r) for r in range(2) for q in range(6) for a in arms]
    slow = [replace(one, decode_s=40.0, disturbed=[BUSY]) if one.question_id == 3 and one.repeat else one for one in quiet]
    attempts = Attempts(slow, arms)
    assert attempts.list_disturbed(1) == [] and attempts.list_disturbed(2) == [(1, 3, 0)]
    assert attempts.can_afford((1, 3, 0)) and not Attempts(quiet[:4], arms).can_afford((0, 1, 0))


def alarms(folder: Path) -> list[Any]:
    loaded = read_run(folder)
    return find_alarms(loaded, summarise(loaded))


def two(seconds: tuple[float, float], **changes: Any) -> list[Trial]:
    return [trial(m, [1], s, **changes) for m, s in zip(("autoregressive", "pld"), seconds, strict=True)]


def test_a_mended_disturbance_is_a_notice_and_the_numbers_are_the_quiet_ones(tmp_path: Path) -> None:
    quiet = [one for question in range(5) for one in two((2.0, 1.0), question_id=question, disturbed=[])]
    hit = two((2.0, 9.0), question_id=5, disturbed=[BUSY, "waiting for a core: 50% of the time"])
    second = two((2.0, 5.0), question_id=5, disturbed=[BUSY], attempt=2, arms=2)
    third = two((2.0, 1.0), question_id=5, disturbed=[], attempt=3, arms=2)
    write_run(tmp_path / "run", [*quiet, *hit, *second, *third])
    (first, *_) = [alarm for alarm in alarms(tmp_path / "run") if "disturbed" in alarm.message]
    assert str(first) == (
        "notice: the run: 2 of 12 turns were disturbed, by other processes 2, waiting for a core 2; "
        "all were measured again without disturbance"
    )
    summary = summarise(read_run(tmp_path / "run"))
    pld = summary[(summary["method"] == "pld") & (summary["task"] == "overall")].iloc[0]
    assert pld["speedup"] == pytest.approx(2.0)
    assert pld[["disturbed", "remeasured", "still_disturbed"]].tolist() == [1, 1, 0]
    page = render_report([tmp_path / "run"], tmp_path / "report").page.read_text()
    assert "other processes: 60% of the cores; waiting for a core: 50% of the time" in page and ">quiet<" in page


def test_what_could_not_be_mended_comes_first_and_names_the_methods_and_the_causes(tmp_path: Path) -> None:
    trials = [one for q in range(6) for one in two((2.0, 1.0), question_id=q, disturbed=[BUSY] * (q == 5))]
    write_run(tmp_path / "run", [*trials, failed("sps", question_id=1)])
    first = alarms(tmp_path / "run")[0]
    assert str(first) == ("alarm: the run: 2 of 13 turns are disturbed (autoregressive 1, pld 1) by other processes 2")


def test_runs_without_the_fields_have_the_same_numbers_and_no_counts(tmp_path: Path) -> None:
    trials = [one for q in range(5) for r in range(2) for one in two((2.0, 1.0), question_id=q, repeat=r)]
    loaded = read_run(write_run(tmp_path / "run", trials).path)
    assert loaded.attempts == loaded.trials and loaded.disturbed == {}
    summary = summarise(loaded)
    assert summary[["disturbed", "remeasured", "still_disturbed"]].isna().all(axis=None)
    assert count_disturbed(trials, trials, {}).isna().all(axis=None)
    assert not [alarm for alarm in find_alarms(loaded, summary) if "disturbed" in alarm.message]


def test_autoregressives_own_scatter_is_noticed_even_if_all_methods_scatter_alike(tmp_path: Path) -> None:
    trials = [one for q in range(5) for r in range(3) for one in two((2.0 + 0.4 * r, 1.0 + 0.2 * r), question_id=q, repeat=r)]
    write_run(tmp_path / "run", trials)
    assert any(
        alarm.method == "autoregressive" and "the machine's own pace changed" in alarm.message
        for alarm in alarms(tmp_path / "run")
    )
