"""What a reader must know before believing a row."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from specbench.analysis import metrics
from specbench.analysis.loaded_run import LoadedRun
from specbench.analysis.metrics import OVERALL
from specbench.records.trial import BASELINE


@dataclass(frozen=True)
class Alarm:
    """One warning. level: "alarm" (do not publish the row as it is) or "notice" (good to know)."""

    level: str
    method: str
    task: str
    message: str

    def __str__(self) -> str:
        place = "" if self.task == OVERALL else f" on {self.task}"
        return f"{self.level}: {self.method}{place}: {self.message}"


SummaryRow = Mapping[Hashable, Any]
DRIFT_LEVEL, DRIFT = 1e-3, 0.02  # of the test, and the least change of time from the first place in a block to the last
LEAST_SPREAD = 0.03  # between repeats, below which nobody need care
APART = 0.05  # of two estimators of one speedup
ESTIMATORS = {
    "geometric": "speedup",
    "pooled": "speedup_pooled",
    "median": "speedup_median",
    "Spec-Bench's": "speedup_spec_bench",
}


def find_alarms(run: LoadedRun, summary: pd.DataFrame) -> list[Alarm]:
    """Everything wrong with a run, alarms first; `summary` is summarise(run)."""
    of_the_run = (
        _warn_profiled,
        _warn_resumed,
        _warn_missing,
        _warn_errors,
        _warn_leakage,
        _warn_bugs,
        _warn_longer_answers,
        _warn_drift,
        _warn_spread,
        _warn_throttling,
    )
    of_all_rows = (*_warn_estimators(summary), *_warn_unsure_conversion(summary))
    found = [*_warn_baseline(run, summary), *of_all_rows, *(alarm for look in of_the_run for alarm in look(run))]
    for row in summary.to_dict("records"):
        found += [*_warn_one_question(row), *_warn_conversion(row), *_warn_no_drafts(row), *_warn_unfinished(row)]
    return sorted(found, key=lambda alarm: alarm.level)


def _warn_baseline(run: LoadedRun, summary: pd.DataFrame) -> Iterator[Alarm]:
    """The other ways to decode autoregressively, timed before the run or in it (the rows autoregressive@engine)."""
    measured = run.provenance.get("baseline") or []
    overall = summary[summary["task"] == OVERALL].set_index("method")["speedup"]
    rows = overall[overall.index.str.startswith(f"{BASELINE}@")].dropna()
    slower_than = find_faster(measured) | {str(name): ratio for name, ratio in rows.items() if 1 - 1 / ratio > MARGIN}
    for name, ratio in slower_than.items():
        yield Alarm("alarm", BASELINE, OVERALL, f"{1 - 1 / ratio:.1%} slower than {name}: every speedup is too high")
    if not measured and rows.empty:
        message = "not compared with the other ways to decode autoregressively on this device"
        yield Alarm("notice", BASELINE, OVERALL, message)


def _warn_profiled(run: LoadedRun) -> Iterator[Alarm]:
    if any(trial.draft_s is not None or trial.verify_s is not None for trial in run.trials):
        yield Alarm("alarm", "the run", OVERALL, "profiled: it synchronises at every step and is no headline")


def _warn_resumed(run: LoadedRun) -> Iterator[Alarm]:
    for later in run.provenance.get("continued") or []:
        message = f"continued on {later.get('started')} under another {', '.join(later.get('differs', ()))}"
        yield Alarm("notice", "the run", OVERALL, message)


def _warn_missing(run: LoadedRun) -> Iterator[Alarm]:
    for method, count in run.missing.items():
        wanted = run.provenance["turns"] * run.config["repeats"]
        yield Alarm("notice", method, OVERALL, f"{count} of {wanted} turns are still to be run; the same command goes on")


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
    """Datastores that hold the questions themselves, and with them perhaps their answers."""
    for method, stores in (run.provenance.get("leakage") or {}).items():
        for store in stores:
            if store["leaked"]:
                message = f"its datastore {store['name']} holds {store['leaked']} of the {store['questions']} questions"
                yield Alarm("alarm", method, OVERALL, f"{message} (half of their 13-grams or more): answers may be looked up")


def _warn_bugs(run: LoadedRun) -> Iterator[Alarm]:
    tried = {trial.method for trial in run.trials}
    for method, known in sorted(run.certified.items()):
        if method in tried and known.class_ in ("bug", "untested"):
            yield Alarm(
                "alarm", method, OVERALL, f"its certificate of {known.day} says {known}: this may not be the target's own text"
            )


def _warn_longer_answers(run: LoadedRun) -> Iterator[Alarm]:
    """Answers that are longer than any text which a certificate has seen."""
    tried = [(trial.new_tokens, run.certified[trial.method].tokens) for trial in run.trials if trial.method in run.certified]
    beyond = [(longest, seen) for longest, seen in tried if longest > seen]
    if beyond:
        longest, seen = max(beyond)
        message = f"answers of up to {longest} tokens; the certificates followed texts of at most {seen}"
        yield Alarm("notice", "the run", OVERALL, message)


def _warn_drift(run: LoadedRun) -> Iterator[Alarm]:
    """Turns that come later in their block take another time: the order is random, so speedups are noisier, not biased."""
    rows = metrics.residuals(run.frame)
    if rows["place"].nunique() < 2:
        return
    rank, p_value = stats.spearmanr(rows["place"], rows["residual"])
    slope = stats.linregress(rows["place"], rows["residual"]).slope
    across = float(np.expm1(slope * (rows["order"].max() - rows["order"].min())))
    if p_value < DRIFT_LEVEL and abs(across) > DRIFT:
        message = f"the last of a block takes {across:+.1%} of the first one's time (rank correlation {rank:.2f})"
        yield Alarm("alarm", "the run", OVERALL, message)


def _warn_spread(run: LoadedRun) -> Iterator[Alarm]:
    spreads = metrics.compute_repeat_spread(run.frame)
    baseline = spreads.get(BASELINE, float("nan"))
    for method, spread in spreads.items():
        if spread > max(2 * baseline, LEAST_SPREAD):
            message = f"repeats of a turn differ by {spread:.1%} in time, autoregressive's by {baseline:.1%}"
            yield Alarm("notice", str(method), OVERALL, message)


def _warn_one_question(row: SummaryRow) -> Iterator[Alarm]:
    if row["method"] == BASELINE and row["task"] == OVERALL and pd.isna(row["speedup_low"]):
        yield Alarm("notice", "the run", OVERALL, "a task with one question has no interval, nor has overall")


def _warn_throttling(run: LoadedRun) -> Iterator[Alarm]:
    reasons = Counter(reason for trial in run.trials for reason in trial.throttled or ())
    for reason, turns in sorted(reasons.items()):
        message = f"clocks were held down in {turns} of {len(run.trials)} turns: {reason}"
        yield Alarm("alarm", "the run", OVERALL, message)


def _warn_estimators(summary: pd.DataFrame) -> Iterator[Alarm]:
    """One for all methods, each with its lowest and its highest estimate."""
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
    if row["method"] != BASELINE and low > 1:
        message = f"conversion {value:.2f}, at least {low:.2f}: the baseline ran slower code than the method"
        yield Alarm("alarm", row["method"], row["task"], message)


def _warn_unsure_conversion(summary: pd.DataFrame) -> Iterator[Alarm]:
    """One for all rows without an interval."""
    high = summary[(summary["method"] != BASELINE) & (summary["conversion"] > 1.005) & summary["conversion_low"].isna()]
    if len(high):
        rows = ", ".join(f"{row.method} on {row.task} {row.conversion:.2f}" for row in high.itertuples())
        message = f"conversion is above 1, with too few questions to say whether by chance: {rows}"
        yield Alarm("notice", "the run", OVERALL, message)


def _warn_no_drafts(row: SummaryRow) -> Iterator[Alarm]:
    if row["method"].partition("@")[0] != BASELINE and row["drafted"] == 0:
        yield Alarm("alarm", row["method"], row["task"], "drafted nothing: this row is autoregressive decoding")


def _warn_unfinished(row: SummaryRow) -> Iterator[Alarm]:
    if row["unpaired"]:
        message = f"{row['unpaired']} questions not finished yet by it and autoregressive"
        yield Alarm("notice", row["method"], row["task"], message)


MARGIN = 0.03  # a baseline slower than another way by more than this is alarmed

Rates = Sequence[Mapping[str, Any]]  # engine, dtype, tokens_per_second of each round


def _compute_ratios(rates: Rates) -> dict[str, list[float]]:
    """By the rival's name, its rate over the run's own, round by round."""
    if not rates:
        return {}
    own, *rivals = (way["tokens_per_second"] for way in rates)
    names = [f"{way['engine']} {way['dtype']}" for way in rates[1:]]
    return {name: [a / b for a, b in zip(rival, own, strict=True)] for name, rival in zip(names, rivals, strict=True)}


def find_faster(rates: Rates) -> dict[str, float]:
    """Ways that beat the run's own by more than MARGIN in every round, with the median ratio."""
    return {name: statistics.median(values) for name, values in _compute_ratios(rates).items() if min(values) > 1 + MARGIN}


def describe_rivals(rates: Rates) -> str:
    """`native bfloat16 0.79×, hf float32 0.96×`: each rival's rate over the run's own, the median of the rounds."""
    return ", ".join(f"{name} {statistics.median(values):.2f}×" for name, values in _compute_ratios(rates).items())
