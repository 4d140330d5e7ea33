"""A run small enough for pencil and paper.

Two questions of task qa and one of rag, one repeat unless said; per question: committed per step, seconds.

                  autoregressive            pld
    qa    1       [1]*7,  4 s  (8 tokens)   [3, 1, 3], 2 s  (8 tokens, 3 steps)
    qa    2       [1]*3,  1 s  (4 tokens)   [1, 2],    1 s  (4 tokens, 2 steps)
    rag   3       [1]*5,  3 s  (6 tokens)   [5],       1 s  (6 tokens, 1 step)
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pytest

from specbench.analysis import metrics
from specbench.analysis.equality import compute_identical_share
from specbench.records.trial import Trial
from tests.fake_run import failed, trial

RUN = [
    trial("autoregressive", [1] * 7, 4.0, question_id=1, retokenised=7),
    trial("autoregressive", [1] * 3, 1.0, question_id=2, retokenised=3),
    trial("autoregressive", [1] * 5, 3.0, question_id=3, task="rag"),
    trial("pld", [3, 1, 3], 2.0, question_id=1, depth=[2, 0, 4], drafted=[2, 0, 9], peak_memory_bytes=3_000_000),
    trial("pld", [1, 2], 1.0, question_id=2, depth=[2, 1], drafted=[2, 1]),
    trial("pld", [5], 1.0, question_id=3, depth=[4], drafted=[4], task="rag"),
]


def cell(frame: pd.DataFrame, *key: object) -> Any:
    """The row under a key of the index."""
    rows: Any = frame.loc
    return rows[key if len(key) > 1 else key[0]]


def pairs_of(trials: Iterable[Trial]) -> pd.DataFrame:
    return metrics.pair_with_baseline(metrics.build_question_frame(metrics.build_trial_frame(trials)))


def test_counts_are_pooled_and_divided_at_the_end() -> None:
    row = cell(metrics.pool_counts(pairs_of(RUN)), "pld", "qa")
    assert row["mean_accepted_tokens"] == 10 / 5, "committed 3+1+3 and 1+2 in 3 + 2 steps"
    assert row["acceptance_rate"] == pytest.approx(5 / 9), "accepted 2+0+2 and 0+1 of depth 2+0+4 and 2+1"
    assert row["tokens_per_forward"] == 12 / 7, "8 + 4 tokens in (3+1) + (2+1) forwards"
    assert row["tokens_per_second"] == 12 / 3
    assert row["speedup_pooled"] == pytest.approx(5 / 3), "(12 tokens / 3 s) / (12 tokens / 5 s)"
    assert row["drafted"] == 14, "2+0+9 and 2+1 nodes"
    assert (row["questions"], row["repeats"]) == (2, 1)


def test_overall_holds_the_questions_of_all_tasks() -> None:
    row = cell(metrics.pool_counts(pairs_of(RUN)), "pld", "overall")
    assert row["questions"] == 3
    assert row["mean_accepted_tokens"] == 15 / 6, "10 tokens in 5 steps and 5 in 1"


def test_autoregressive_has_one_token_per_forward_and_per_step() -> None:
    row = cell(metrics.pool_counts(pairs_of(RUN)), "autoregressive", "qa")
    assert (row["tokens_per_forward"], row["mean_accepted_tokens"], row["speedup_pooled"]) == (1, 1, 1)
    assert math.isnan(row["acceptance_rate"]), "no draft was offered: 0/0 is no rate"


def test_spread_over_seeds_is_that_of_the_repeats_own_figures() -> None:
    other = [dataclasses.replace(one, repeat=1, decode_s=(one.decode_s or 0) * (2 if one.method == "pld" else 1)) for one in RUN]
    rows = metrics.compute_seed_spread(pairs_of([*RUN, *other]))
    means = [math.exp((math.log(2) + math.log(1)) / 2 - shift) for shift in (0, math.log(2))]
    assert cell(rows, "pld", "qa")["speedup_seed_sd"] == pytest.approx((means[0] - means[1]) / math.sqrt(2))
    tasks = [math.sqrt(means[0] * 3), math.sqrt(means[1] * 1.5)]
    assert cell(rows, "pld", "overall")["speedup_seed_sd"] == pytest.approx((tasks[0] - tasks[1]) / math.sqrt(2))
    assert cell(rows, "pld", "qa")["mean_accepted_tokens_seed_sd"] == 0, "the same counts in both repeats"
    assert math.isnan(cell(metrics.compute_seed_spread(pairs_of(RUN)), "pld", "qa")["speedup_seed_sd"])


def test_ratios_are_per_question() -> None:
    ratios = metrics.compute_question_ratios(pairs_of(RUN)).set_index(["method", "question_id"])
    assert cell(ratios, "pld", 1)["log_speedup"] == pytest.approx(math.log(2)), "8 tokens / 2 s over 8 tokens / 4 s"
    assert cell(ratios, "pld", 2)["log_speedup"] == pytest.approx(0)
    assert math.exp(cell(ratios, "pld", 1)["log_conversion"]) == pytest.approx(1), "speedup 2 / (8 tokens / 4 forwards)"
    assert math.exp(cell(ratios, "pld", 2)["log_conversion"]) == pytest.approx(3 / 4), "speedup 1 / (4 tokens / 3)"


def test_turns_and_repeats_are_added_before_dividing() -> None:
    trials = [
        trial(method, [1, 1], seconds, turn=turn, repeat=repeat, prefill_s=1.0)
        for method, times in {"autoregressive": (2, 3, 4, 5), "pld": (1, 2, 1, 2)}.items()
        for (repeat, turn), seconds in zip([(0, 0), (0, 1), (1, 0), (1, 1)], times, strict=True)
    ]
    ratio = cell(metrics.compute_question_ratios(pairs_of(trials)).set_index("method"), "pld")
    assert math.exp(ratio["log_speedup"]) == pytest.approx(18 / 10), "decode 14 s and 6 s, prefill 4 × 1 s each"
    assert math.exp(ratio["log_speedup_decode"]) == pytest.approx(14 / 6), "without prefill and its first tokens"


def test_spec_bench_divides_mean_rates_by_retokenised_mean_rates() -> None:
    speedups = metrics.compute_spec_bench(pairs_of(RUN))
    assert speedups["pld", "qa"] == pytest.approx(4 / 2.375), "mean(8/2, 4/1) / mean(7/4, 3/1)"
    assert speedups["pld", "rag"] == pytest.approx(3), "not re-tokenised, so new tokens: (6/1) / (6/3)"
    assert speedups["pld", "overall"] == pytest.approx((14 / 3) / (6.75 / 3)), "mean(4, 4, 6) / mean(1.75, 3, 2)"
    assert speedups["autoregressive", "qa"] == pytest.approx(1)


def test_spec_bench_pairs_repeat_with_repeat() -> None:
    again = [
        trial("autoregressive", [1] * 5, 6.0, question_id=3, task="rag", repeat=1),
        trial("pld", [5], 6.0, question_id=3, task="rag", repeat=1),
    ]
    assert metrics.compute_spec_bench(pairs_of(RUN + again))["pld", "rag"] == pytest.approx((3 + 1) / 2)


def test_identical_compares_the_same_turn_of_the_same_repeat() -> None:
    trials = [
        trial("autoregressive", [1], 1.0, turn=0, output_sha256="a"),
        trial("autoregressive", [1], 1.0, turn=1, output_sha256="b"),
        trial("pld", [1], 1.0, turn=0, output_sha256="a"),
        trial("pld", [1], 1.0, turn=1, output_sha256="c"),
    ]
    assert compute_identical_share(metrics.build_trial_frame(trials))["pld", "qa"] == 1 / 2
    own = [trial("pld", [1], 1.0, turn=0, output_sha256="a", context="own")]
    own.append(trial("pld", [1], 1.0, turn=1, output_sha256="c", context="own", prompt_sha256="another"))
    shares = compute_identical_share(metrics.build_trial_frame(trials[:2] + own))
    assert shares["pld", "qa"] == 1, "the second turn had another prompt and cannot be compared"


@pytest.mark.parametrize("changes", [{}, {"finish_reason": "capacity"}, {"error": None}])
def test_an_error_row_takes_its_question_out_and_is_counted(changes: dict[str, Any]) -> None:
    trials = [*RUN[:4], failed("pld", question_id=2), RUN[5]]
    trials[4] = dataclasses.replace(trials[4], **changes)
    frame = metrics.build_trial_frame(trials)
    questions = metrics.build_question_frame(frame)
    row = cell(metrics.pool_counts(metrics.pair_with_baseline(questions)), "pld", "qa")
    assert (row["questions"], row["tokens_per_second"], row["speedup_pooled"]) == (1, 8 / 2, 2), "question 1 alone"
    assert metrics.summarise_trials(frame)["errors"].to_dict()["pld", "qa"] == 1
    assert metrics.find_failed_questions(questions).values.tolist() == [["pld", "qa", 2]]
    assert metrics.count_unpaired(questions, metrics.pair_with_baseline(questions))["pld", "qa"] == 0, (
        "an error is not unfinished"
    )


def test_a_failed_repeat_takes_the_whole_question_out() -> None:
    again = [
        trial("autoregressive", [1] * 3, 1.0, question_id=2, repeat=1),
        failed("pld", question_id=2, repeat=1),
    ]
    assert cell(metrics.pool_counts(pairs_of(RUN + again)), "pld", "qa")["questions"] == 1


def test_a_method_without_any_number_keeps_its_row() -> None:
    frame = metrics.build_trial_frame([RUN[0], failed("pld", question_id=1)])
    assert cell(metrics.summarise_trials(frame), "pld", "qa")["errors"] == 1
    assert metrics.pool_counts(metrics.pair_with_baseline(metrics.build_question_frame(frame))).index.tolist() == [
        ("autoregressive", "qa"), ("autoregressive", "overall"),
    ]  # fmt: skip


def test_a_half_finished_question_is_not_paired_but_counted() -> None:
    trials = [*RUN, trial("autoregressive", [1], 1.0, question_id=1, turn=1)]
    questions = metrics.build_question_frame(metrics.build_trial_frame(trials))
    pairs = metrics.pair_with_baseline(questions)
    assert cell(metrics.pool_counts(pairs), "pld", "qa")["questions"] == 1
    assert metrics.count_unpaired(questions, pairs)["pld", "qa"] == 1


def test_an_engine_that_cannot_see_steps_has_speeds_and_no_acceptance() -> None:
    blind: dict[str, Any] = dict.fromkeys(("steps", "drafted", "depth", "accepted", "committed", "prefill_s"))
    trials = [RUN[0], dataclasses.replace(trial("pld", [7], 2.0), **blind)]
    row = cell(metrics.pool_counts(pairs_of(trials)), "pld", "qa")
    assert row["speedup_pooled"] == 2
    assert all(math.isnan(row[name]) for name in ("mean_accepted_tokens", "tokens_per_forward", "drafted"))
    assert math.isnan(row["decode_tokens_per_second"]), "prefill was not told apart"


def test_peak_memory_is_the_largest_turn() -> None:
    assert metrics.summarise_trials(metrics.build_trial_frame(RUN))["peak_memory_mb"].to_dict()["pld", "overall"] == 3.0


def test_acceptance_by_position() -> None:
    frame = metrics.tabulate_positions(RUN).set_index(["method", "position"])
    first, third = cell(frame, "pld", 1), cell(frame, "pld", 3)
    assert first["joint"] == 4 / 6, "steps accepted 2 0 2 | 0 1 | 4: four of six accepted one or more"
    assert first["conditional"] == 4 / 5, "one step offered nothing"
    assert (third["offered"], third["reached"], third["accepted"]) == (2, 2, 1), "depth 4 twice, accepted 2 and 4"
    assert third["conditional"] == 1 / 2
    joint = frame["joint"].sum()
    assert 1 + joint == pytest.approx(15 / 6), "1 + the sum of joint shares is the mean accepted tokens: no step was cut"


def test_the_time_of_a_step_is_in_autoregressive_steps() -> None:
    """A baseline step takes 0.5 s; four of pld take 4 s, of which 1 s drafts and 2.4 s verifies, and commit 10 tokens."""
    profiled = [
        trial("autoregressive", [1] * 8, 4.0, draft_s=0.0, verify_s=3.8),
        trial("pld", [3, 2, 4, 1], 4.0, draft_s=1.0, verify_s=2.4),
        failed("pld", question_id=2),
    ]
    row = cell(metrics.split_step_time(metrics.build_trial_frame(profiled)).set_index("method"), "pld")
    assert row[["step", "draft", "verify", "rest"]].tolist() == pytest.approx([2.0, 0.5, 1.2, 0.3])
    assert row["step_ms"] == pytest.approx(1000) and row["mean_accepted_tokens"] == 2.5
    assert metrics.split_step_time(metrics.build_trial_frame(RUN)).empty, "nothing was profiled"


def test_spread_between_repeats_is_that_of_log_seconds() -> None:
    seconds = {"autoregressive": (1.0, 1.0), "pld": (1.0, math.exp(0.2))}
    trials = [trial(name, [1], time, repeat=at) for name, times in seconds.items() for at, time in enumerate(times)]
    spread = metrics.compute_repeat_spread(metrics.build_trial_frame(trials))
    assert spread["autoregressive"] == 0 and spread["pld"] == pytest.approx(0.2 / math.sqrt(2)), "0.1 either side, one degree"
    assert metrics.compute_repeat_spread(metrics.build_trial_frame(RUN)).empty, "one repeat says nothing"
