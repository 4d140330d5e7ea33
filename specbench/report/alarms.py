"""Warnings that a reader needs before trusting a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from specbench.analysis import metrics
from specbench.analysis.budget import describe_stop
from specbench.analysis.groups import count_left_out, is_batched
from specbench.analysis.loaded_run import LoadedRun, find_first
from specbench.analysis.windows import is_loaded
from specbench.records.certificates import DOUBTS
from specbench.records.trial import BASELINE, OVERALL, PER_STEP
from specbench.report.alarm import Alarm
from specbench.report.baseline import MARGIN, find_faster
from specbench.report.disturbance import describe_disturbed
from specbench.report.engines import warn_text_only, warn_texts
from specbench.report.forward_alarms import warn_eager, warn_endless, warn_quantised, warn_rows, warn_untested
from specbench.report.load import warn_window

SummaryRow = Mapping[Hashable, Any]
DRIFT_LEVEL = 1e-3  # significance level of the test for drift inside blocks
DRIFT = 0.02  # smallest change of time that is reported, from the first place in a block to the last
IMPOSSIBLE = 1.5  # a conversion above this is not chance, however few the questions
MANY = 100  # drafted tokens; fewer may all miss by chance
LEAST_SPREAD = 0.03  # smallest spread between repeats that is reported
UNSTEADY = 0.1  # smallest spread of autoregressive decoding that is reported: the machine's own pace changes
CHANGED = {  # names of run.json, in words
    "versions": "package versions",
    "git": "commit",
    "code_kind": "way of hashing the code",
    "code_sha256": "code",
}
APART = 0.05  # smallest difference between estimators of a speedup that is reported
ESTIMATORS = {
    "geometric": "speedup",
    "pooled": "speedup_pooled",
    "median": "speedup_median",
    "Spec-Bench's": "speedup_spec_bench",
}


def find_alarms(run: LoadedRun, summary: pd.DataFrame) -> list[Alarm]:
    """Return everything wrong with a run: what disturbed it, other alarms, notices. summary: summarise(run)."""
    run_checks = (
        _warn_profiled, _warn_resumed, _warn_missing, _warn_errors, _warn_leakage, _warn_unreadable, _warn_bugs, _warn_unsteady,
        _warn_longer_answers, _warn_drift, _warn_spread, _warn_throttling, warn_rows, warn_untested, warn_eager, warn_quantised,
        warn_endless, _warn_batch, warn_texts, warn_text_only, warn_window,
    )  # fmt: skip
    alarms = [*_warn_disturbed(run), *_warn_baseline(run, summary), *_warn_estimators(summary), *_warn_unsure_conversion(summary)]
    alarms += _warn_budget(run, summary)
    alarms += [alarm for check in run_checks for alarm in check(run)]
    for row in summary.to_dict("records"):
        alarms += [*_warn_one_question(row), *_warn_conversion(row), *_warn_no_drafts(row), *_warn_unfinished(row)]
    return sorted(_drop_repeated(alarms, summary["task"].nunique() - 1), key=lambda alarm: alarm.level)


def _drop_repeated(alarms: Sequence[Alarm], tasks: int) -> Iterator[Alarm]:
    """Yield what overall and tasks say in the same words once: under overall if all tasks say so, else under each task."""
    places: dict[tuple[str, str, str], set[str]] = {}
    for alarm in alarms:
        places.setdefault((alarm.level, alarm.method, alarm.message), set()).add(alarm.task)
    for alarm in alarms:
        said = places[alarm.level, alarm.method, alarm.message]
        everywhere = len(said - {OVERALL}) == tasks
        if OVERALL not in said or len(said) == 1 or everywhere == (alarm.task == OVERALL):
            yield alarm


def _warn_disturbed(run: LoadedRun) -> Iterator[Alarm]:
    if described := describe_disturbed(run):
        level, message = described
        yield Alarm(level, "the run", OVERALL, message)


def _warn_batch(run: LoadedRun) -> Iterator[Alarm]:
    """Report which questions of a batched run count in no speedup, and which methods' drafts depend on the batch."""
    if left := count_left_out(run.trials):
        these = "1 question is" if left == 1 else f"{left} questions are"
        message = f"{these} left over in groups smaller than the batch, and so in no speedup"
        yield Alarm("notice", "the run", OVERALL, message)
    if is_batched(run.frame):
        for method in sorted({trial.method for trial in run.trials if trial.state == "warm"}):
            yield Alarm("notice", method, OVERALL, "learns from the questions of its group, so its counts depend on the batch")


def _warn_baseline(run: LoadedRun, summary: pd.DataFrame) -> Iterator[Alarm]:
    """Compare with other autoregressive engines, timed before the run or in it (rows autoregressive@engine)."""
    measured = run.provenance.get("baseline") or []
    overall = summary[summary["task"] == OVERALL].set_index("method")["speedup"]
    rows = overall[overall.index.str.startswith(f"{BASELINE}@")].dropna()
    slower_than = find_faster(measured) | {str(name): ratio for name, ratio in rows.items() if 1 - 1 / ratio > MARGIN}
    for name, ratio in slower_than.items():
        how = " with one question at a time" * is_batched(run.frame)
        yield Alarm("alarm", BASELINE, OVERALL, f"{1 - 1 / ratio:.1%} slower than {name}{how}: every speedup is too high")
    if len(measured) < 2 and rows.empty:
        message = "not compared with other autoregressive engines on this device"
        yield Alarm("notice", BASELINE, OVERALL, message)
    for name, reason in (run.provenance.get("baseline_failed") or {}).items():
        yield Alarm("notice", BASELINE, OVERALL, f"not compared with {name}, which failed: {reason}")


def _warn_profiled(run: LoadedRun) -> Iterator[Alarm]:
    if any(trial.draft_s is not None or trial.verify_s is not None for trial in run.trials):
        yield Alarm("alarm", "the run", OVERALL, "profiled, which synchronises at every step: its speeds are not comparable")


def _warn_resumed(run: LoadedRun) -> Iterator[Alarm]:
    for later in run.provenance.get("continued") or []:
        differs = ", ".join(CHANGED.get(key, key) for key in later.get("differs", ()))
        message = f"resumed on {later.get('started')} with a different {differs}"
        yield Alarm("notice", "the run", OVERALL, message)


def _warn_budget(run: LoadedRun, summary: pd.DataFrame) -> Iterator[Alarm]:
    if stopped := describe_stop(run, summary):
        yield Alarm("notice", "the run", OVERALL, stopped)


def _warn_missing(run: LoadedRun) -> Iterator[Alarm]:
    if run.provenance.get("budget"):
        return
    for method, count in run.missing.items():
        needed = run.provenance["turns"] * run.config["repeats"]
        message = f"{count} of {needed} turns still to be run; run the same command again to resume"
        yield Alarm("notice", method, OVERALL, message)


def _warn_errors(run: LoadedRun) -> Iterator[Alarm]:
    turns = Counter((trial.method, trial.task) for trial in run.trials)
    reasons: dict[tuple[str, str], Counter[str]] = {}
    for trial in run.trials:
        if trial.failed:
            cell = reasons.setdefault((trial.method, trial.task), Counter())
            cell[trial.error or trial.finish_reason] += 1
    for (method, task), counts in sorted(reasons.items()):
        reason, _ = counts.most_common(1)[0]
        message = f"{counts.total()} of {turns[method, task]} turns failed, most often: {reason}"
        yield Alarm("alarm", method, task, message)


def _warn_leakage(run: LoadedRun) -> Iterator[Alarm]:
    """Warn of datastores that contain the questions, and so perhaps their answers."""
    for method, stores in (run.provenance.get("leakage") or {}).items():
        for store in stores:
            if store["leaked"]:
                message = f"its datastore {store['name']} contains {store['leaked']} of the {store['questions']} questions"
                yield Alarm("alarm", method, OVERALL, f"{message} (at least half of their 13-grams): answers may be looked up")


def _warn_unreadable(run: LoadedRun) -> Iterator[Alarm]:
    for name in run.unreadable:
        yield Alarm(
            "alarm", "the run", OVERALL, f"the certificate {name} cannot be read: what it found, bugs included, is missing here"
        )


def _warn_bugs(run: LoadedRun) -> Iterator[Alarm]:
    tried = {trial.method for trial in run.trials}
    for method, known in sorted(run.certified.items()):
        if method in tried and known.class_ in DOUBTS:
            message = f"its certificate of {known.day} says {known}: its text may not be the target's own"
            yield Alarm("alarm", method, OVERALL, message)


def _warn_unsteady(run: LoadedRun) -> Iterator[Alarm]:
    """Warn of cold methods whose greedy turns differ from repeat to repeat: only something that they remember can change them."""
    if find_first(run.config, "sampling.temperature") != 0:
        return
    counts: dict[str, dict[tuple[Any, int], set[Any]]] = {}
    for trial in run.trials:
        if trial.state == "cold" and not trial.failed:
            seen = counts.setdefault(trial.method, {}).setdefault((trial.question_id, trial.turn), set())
            seen.add((trial.new_tokens, trial.output_sha256, *(tuple(getattr(trial, name) or ()) for name in PER_STEP)))
    for method, turns in counts.items():
        if differing := sum(len(seen) > 1 for seen in turns.values()):
            message = f"{differing} of {len(turns)} turns took different steps in another repeat, at temperature 0"
            yield Alarm("alarm", method, OVERALL, f"{message}: it remembers earlier prompts, or its rounding varies")


def _warn_longer_answers(run: LoadedRun) -> Iterator[Alarm]:
    """Warn of answers longer than any text that was certified."""
    seen = {method: known.evidence.tokens for method, known in run.certified.items() if known.evidence.tokens}
    tried = [(trial.new_tokens, seen[trial.method]) for trial in run.trials if trial.method in seen]
    beyond = [(longest, most) for longest, most in tried if longest > most]
    if beyond:
        longest, most = max(beyond)
        message = f"answers of up to {longest} tokens; the certificates checked texts of at most {most}"
        yield Alarm("notice", "the run", OVERALL, message)


def _warn_drift(run: LoadedRun) -> Iterator[Alarm]:
    """Warn if the time of a turn depends on its place in the block. The order is random: speedups are noisier, not biased."""
    rows = metrics.residuals(run.turns)
    if rows["place"].nunique() < 2:
        return
    rank, p_value = stats.spearmanr(rows["place"], rows["residual"])
    slope = stats.linregress(rows["place"], rows["residual"]).slope
    across = float(np.expm1(slope * (rows["order"].max() - rows["order"].min())))
    if p_value < DRIFT_LEVEL and abs(across) > DRIFT:
        message = f"time changes by {across:+.1%} from the first place in the block to the last (rank correlation {rank:.2f})"
        yield Alarm("alarm", "the run", OVERALL, message)


def _warn_spread(run: LoadedRun) -> Iterator[Alarm]:
    if is_loaded(run.trials):  # the other requests in progress differ from repeat to repeat
        return
    spreads = metrics.compute_repeat_spread(run.turns)
    baseline = spreads.get(BASELINE, float("nan"))
    if baseline > UNSTEADY:
        message = f"repeats of a turn differ by {baseline:.1%} in time: the machine's own pace changed"
        yield Alarm("notice", BASELINE, OVERALL, message)
    for method, spread in spreads.items():
        if spread > max(2 * baseline, LEAST_SPREAD):
            message = f"repeats of a turn differ by {spread:.1%} in time, those of autoregressive by {baseline:.1%}"
            yield Alarm("notice", str(method), OVERALL, message)


def _warn_one_question(row: SummaryRow) -> Iterator[Alarm]:
    if row["method"] == BASELINE and row["task"] == OVERALL and pd.isna(row["speedup_low"]):
        unit = "question" if row["batch"] == 1 else "group of questions"
        yield Alarm("notice", "the run", OVERALL, f"a task has only one {unit}: neither it nor overall has an interval")


def _warn_throttling(run: LoadedRun) -> Iterator[Alarm]:
    reasons = Counter(reason for trial in run.trials for reason in trial.throttled or ())
    for reason, turns in sorted(reasons.items()):
        message = f"clocks were throttled in {turns} of {len(run.trials)} turns: {reason}"
        yield Alarm("alarm", "the run", OVERALL, message)


def _warn_estimators(summary: pd.DataFrame) -> Iterator[Alarm]:
    """Warn once for all methods, with the lowest and the highest estimate of each."""
    apart = []
    for row in summary[summary["task"] == OVERALL].to_dict("records"):
        values = sorted((float(row[column]), name) for name, column in ESTIMATORS.items() if row[column] > 0)
        if values and values[-1][0] > (1 + APART) * values[0][0]:
            low, high = (f"{value:.2f} ({name})" for value, name in (values[0], values[-1]))
            apart.append(f"{row['method']} {low} to {high}")
    if apart:
        yield Alarm("notice", "the run", OVERALL, f"estimators of a speedup disagree by over {APART:.0%}: {', '.join(apart)}")


def _warn_conversion(row: SummaryRow) -> Iterator[Alarm]:
    value, low = row["conversion"], row["conversion_low"]
    if row["method"] == BASELINE:
        return
    if value > IMPOSSIBLE:
        message = f"conversion {value:.2f}, far above 1: its times cannot be right, or the baseline ran much slower code"
        yield Alarm("alarm", row["method"], row["task"], message)
    elif low > 1:
        message = f"conversion {value:.2f}, at least {low:.2f}: the baseline ran slower code than the method"
        yield Alarm("alarm", row["method"], row["task"], message)


def _warn_unsure_conversion(summary: pd.DataFrame) -> Iterator[Alarm]:
    """Warn once for all rows without an interval."""
    unsure = summary["conversion"].between(1.005, IMPOSSIBLE) & summary["conversion_low"].isna()
    high = summary[(summary["method"] != BASELINE) & unsure]
    if summary["task"].nunique() == 2:  # one task: overall says the same
        high = high[high["task"] == OVERALL]
    if len(high):
        rows = ", ".join(f"{row.method} on {row.task} {row.conversion:.2f}" for row in high.itertuples())
        message = f"conversion is above 1, with too few questions to exclude chance: {rows}"
        yield Alarm("notice", "the run", OVERALL, message)


def _warn_no_drafts(row: SummaryRow) -> Iterator[Alarm]:
    if row["method"].partition("@")[0] == BASELINE:
        return
    if row["drafted"] == 0:
        yield Alarm("alarm", row["method"], row["task"], "drafted nothing: this row is autoregressive decoding")
    elif row["task"] == OVERALL and row["acceptance_rate"] == 0 and row["drafted"] >= MANY:  # on one task, copying may never hit
        message = f"drafted {row['drafted']:,.0f} tokens, none was accepted"
        yield Alarm("alarm", row["method"], row["task"], f"{message}: it does not fit the target, or its checkpoint was not read")


def _warn_unfinished(row: SummaryRow) -> Iterator[Alarm]:
    if row["concurrency"] > 1 and row["task"] != OVERALL:
        return
    if row["unpaired"]:
        message = f"{row['unpaired']} questions are not yet finished by both it and autoregressive"
        if row["concurrency"] > 1:
            message = f"{row['unpaired']} questions are in no speedup: sent during its or autoregressive's warm-up or drain"
        yield Alarm("notice", row["method"], row["task"], message)
