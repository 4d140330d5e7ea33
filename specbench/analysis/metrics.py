"""Compute speeds and acceptance from trials. Counts are pooled and divided at the end; an error row never becomes a speed.

    build_trial_frame -> build_question_frame -> pair_with_baseline -> compute_question_ratios, pool_counts, compute_spec_bench

Every method is paired with autoregressive decoding on the same question and repeat. A question on which either of the two failed,
or which one of them has not finished, is left out of both sides (complete cases) and counted in `errors` or `unpaired`. The rows
of task = overall hold the questions of all tasks.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from specbench.analysis import acceptance
from specbench.records.trial import BASELINE, OVERALL, PER_STEP, Trial

CELL = ["method", "task"]
QUESTION = ["method", "task", "question_id"]

_COUNTS = ["new_tokens", "seconds", "decode_tokens", "decode_seconds", "steps", "forwards", "retokenised", "energy_j"]
_OPTIONAL = ["steps", "prefill_s", "decode_s", "draft_s", "verify_s", "retokenised", "peak_memory_bytes", "energy_j", *PER_STEP]


def build_trial_frame(trials: Iterable[Trial]) -> pd.DataFrame:
    """Return one row per turn: the record with per-step lists summed, `failed`, and `seconds` = prefill + decode."""
    rows = [{**trial.to_row(), **_sum_steps(trial), "failed": trial.failed} for trial in trials]
    frame = pd.DataFrame(rows, columns=[*Trial.__dataclass_fields__, "failed"])
    frame[_OPTIONAL] = frame[_OPTIONAL].apply(pd.to_numeric)
    frame["seconds"] = frame["prefill_s"].fillna(0) + frame["decode_s"]
    frame["decode_seconds"] = frame["decode_s"].where(frame["prefill_s"].notna())
    frame["decode_tokens"] = frame["new_tokens"] - 1  # the first token is from prefill
    frame["forwards"] = frame["steps"] + 1
    return frame


def _sum_steps(trial: Trial) -> dict[str, int | None]:
    lists = {name: getattr(trial, name) for name in PER_STEP}
    known = {name: sum(values) for name, values in lists.items() if values is not None}
    if trial.sums is not None:
        known |= trial.sums | {"depth": trial.sums["drafted"]}  # of a tree, the rate is then per drafted token
        known |= {} if trial.steps is None else {"committed": trial.new_tokens - 1}
    return {name: known.get(name) for name in PER_STEP}


def build_question_frame(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method, task, question (or group) and repeat: sums over turns, nan where a turn lacks the number."""
    groups = trials.groupby([*QUESTION, "repeat"], sort=False)
    counts = groups[[*_COUNTS, *PER_STEP]]
    sums = counts.sum().where(counts.count().eq(groups.size(), axis=0))
    sums["turns"] = groups.size()
    sums["batch"] = groups["batch"].first()
    sums["failed"] = groups["failed"].any()
    return sums.reset_index()


def pair_with_baseline(questions: pd.DataFrame) -> pd.DataFrame:
    """Join each complete row with autoregressive's of the same question and repeat (columns with suffix _baseline)."""
    ever_failed = questions.groupby(QUESTION, sort=False)["failed"].transform("any").astype(bool)
    complete = questions[~ever_failed]
    baseline = complete[complete["method"] == BASELINE].drop(columns=["method", "failed"])
    pairs = complete.merge(baseline, on=["task", "question_id", "repeat"], suffixes=("", "_baseline"))
    return pairs[pairs["turns"] == pairs["turns_baseline"]]


def pair_with_own_baseline(questions: pd.DataFrame) -> pd.DataFrame:
    """Join each complete row of an engine, method@engine, with that engine's own autoregressive decoding."""
    engines = questions["method"].map(lambda label: label.partition("@")[2])
    pairs = [
        pair_with_baseline(rows.replace({"method": {f"{BASELINE}@{engine}": BASELINE}}))
        for engine, rows in questions.groupby(engines)
    ]
    joined = pd.concat([pair_with_baseline(questions.iloc[:0]), *pairs])
    return joined[joined["method"] != BASELINE]


def compute_question_ratios(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method, task and question, repeats averaged first: natural logarithms of ratios.

    log_speedup and log_speedup_decode are ratios of rates, log_conversion is speedup / tokens per forward.
    """
    sums = pairs.drop(columns=["repeat", "failed"]).groupby(QUESTION, sort=False).sum(min_count=1)
    ratio = _rate(sums, "") / _rate(sums, "_baseline")
    decode = _decode_rate(sums, "") / _decode_rate(sums, "_baseline")
    per_forward = sums["new_tokens"] / sums["forwards"]
    logs = {"log_speedup": ratio, "log_speedup_decode": decode, "log_conversion": ratio / per_forward}
    return pd.DataFrame({name: np.log(values) for name, values in logs.items()}).reset_index()


def compute_question_latencies(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return ms_per_token (all repeats, prefill included) and mean new_tokens by method, task and question.

    The questions of a group are answered at the same time, so each waits as many times as long per token as the group does.
    """
    groups = pairs.groupby(QUESTION, sort=False)
    sums, batch = groups[["seconds", "new_tokens"]].sum(min_count=1), groups["batch"].first()
    milliseconds = 1e3 * sums["seconds"] * batch / sums["new_tokens"]
    rows = pd.DataFrame({"ms_per_token": milliseconds, "new_tokens": groups["new_tokens"].mean() / batch})
    return rows.reset_index()


def _rate(sums: pd.DataFrame, side: str) -> pd.Series:
    return sums[f"new_tokens{side}"] / sums[f"seconds{side}"]


def _decode_rate(sums: pd.DataFrame, side: str) -> pd.Series:
    tokens = sums[f"decode_tokens{side}"]
    return tokens.where(tokens > 0) / sums[f"decode_seconds{side}"]


def add_overall(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows twice, the second time under task = overall."""
    return pd.concat([rows, rows.assign(task=OVERALL)], ignore_index=True)


def pool_counts(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return `pool_cells`, overall included."""
    return pool_cells(add_overall(pairs))


def pool_cells(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return ratios of pooled counts, indexed by (method, task).

    mean_accepted_tokens = committed / steps; acceptance_rate = accepted / depth offered; tokens_per_forward =
    new tokens / (steps + 1 per turn); speedup_pooled = ratio of all tokens per all seconds.
    """
    groups = pairs.groupby(CELL, sort=False)
    sums = groups.sum(numeric_only=True, min_count=1)
    return pd.DataFrame(
        {
            "questions": groups["question_id"].nunique() * groups["batch"].first(),
            "repeats": groups["repeat"].nunique(),
            "tokens_per_second": _rate(sums, ""),
            "decode_tokens_per_second": _decode_rate(sums, ""),
            "speedup_pooled": _rate(sums, "") / _rate(sums, "_baseline"),
            "mean_accepted_tokens": sums["committed"] / sums["steps"],
            "acceptance_rate": sums["accepted"] / sums["depth"].where(sums["depth"] > 0),
            "tokens_per_forward": sums["new_tokens"] / sums["forwards"],
            "drafted": sums["drafted"],
            "joules_per_token": sums["energy_j"] / sums["new_tokens"],
        }
    )


def compute_seed_spread(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return, by (method, task), the standard deviation over repeats of speedup and mean accepted tokens; nan with one repeat.

    The speedup of a repeat is the geometric mean over questions; overall, over the tasks' means.
    """
    logs = np.log(_rate(pairs, "") / _rate(pairs, "_baseline"))
    speedups = pairs.assign(log=logs).groupby([*CELL, "repeat"])["log"].mean().reset_index()
    overall = speedups.groupby(["method", "repeat"])["log"].mean().reset_index().assign(task=OVERALL)
    both = pd.concat([speedups, overall])
    sums = add_overall(pairs).groupby([*CELL, "repeat"])[["committed", "steps"]].sum(min_count=1)
    accepted = (sums["committed"] / sums["steps"]).groupby(CELL).std()
    spread = both.assign(speedup=np.exp(both["log"])).groupby(CELL)["speedup"].std()
    return pd.DataFrame({"speedup_seed_sd": spread, "mean_accepted_tokens_seed_sd": accepted})


def compute_spec_bench(pairs: pd.DataFrame) -> pd.Series:
    """Return Spec-Bench's estimator (its evaluation/speed.py) by (method, task); for published tables only.

    It is the mean over questions of the method's tokens/s, divided by the mean of autoregressive's re-tokenised tokens/s, repeat
    by repeat, averaged over repeats.
    """
    recount = pairs["retokenised_baseline"].fillna(pairs["new_tokens_baseline"])
    tokens = pairs["new_tokens"].where(pairs["method"] != BASELINE, recount)
    rates = pairs.assign(rate=tokens / pairs["seconds"], baseline=recount / pairs["seconds_baseline"])
    means = add_overall(rates).groupby([*CELL, "repeat"], sort=False)[["rate", "baseline"]].mean()
    speedups: pd.Series = (means["rate"] / means["baseline"]).groupby(CELL, sort=False).mean()
    return speedups.rename("speedup_spec_bench")


def residuals(trials: pd.DataFrame) -> pd.DataFrame:
    """Return log seconds and the position in the block of repeated turns, each less its mean over the repeats."""
    finished = trials[~trials["failed"].astype(bool) & (trials["seconds"] > 0)]
    turn = [*QUESTION, "turn"]
    rows = finished[[*turn, "repeat", "order"]].assign(
        residual=np.log(finished["seconds"]), place=finished["order"].astype(float)
    )
    groups = rows.groupby(turn)
    rows[["residual", "place"]] -= groups[["residual", "place"]].transform("mean")
    rows["repeats"] = groups["order"].transform("size")
    return rows[rows["repeats"] > 1]


def compute_repeat_spread(trials: pd.DataFrame) -> pd.Series:
    """Return, by method, the standard deviation over repeats of a turn's log seconds; 0.01 is about one per cent."""
    rows = residuals(trials)
    freedom = (1 - 1 / rows["repeats"]).groupby(rows["method"]).sum()
    squares = (rows["residual"] ** 2).groupby(rows["method"]).sum()
    return pd.Series(np.sqrt(squares / freedom), name="repeat_spread")


def split_step_time(trials: pd.DataFrame) -> pd.DataFrame:
    """Return, by method of a profiled run, the cost of a step in steps of autoregressive decoding, and the parts of that cost.

    step = draft + verify + rest. verify is the target's forward and the choice of tokens, rest the bookkeeping of loop and
    drafter. step_ms is in milliseconds. Taken over all finished turns of each method, not pairs; empty without a profiled turn.
    """
    finished = trials[~trials["failed"].astype(bool) & trials["draft_s"].notna()]
    sums = finished.groupby("method")[["steps", "decode_s", "draft_s", "verify_s", "committed"]].sum()
    if BASELINE not in sums.index:
        sums = sums.iloc[:0]
    per_step = sums.div(sums["steps"], axis=0)
    unit = per_step["decode_s"].get(BASELINE, float("nan"))
    step, draft, verify = (per_step[name] / unit for name in ("decode_s", "draft_s", "verify_s"))
    return pd.DataFrame(
        {
            "step": step,
            "draft": draft,
            "verify": verify,
            "rest": step - draft - verify,
            "step_ms": 1e3 * per_step["decode_s"],
            "mean_accepted_tokens": per_step["committed"],
        }
    ).reset_index()


def summarise_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """Return, by (method, task) of all trials, `errors` (failed turns), `peak_memory_mb` (10^6 bytes), `state` and `kind`."""
    groups = add_overall(trials).groupby(CELL, sort=False)
    columns = {
        "errors": groups["failed"].sum().astype(int),
        "state": groups["state"].max(),  # warm beats cold
        "kind": groups["kind"].max(),  # synthetic beats measured
        "peak_memory_mb": groups["peak_memory_bytes"].max() / 1e6,
    }
    return pd.DataFrame(columns)


def find_failed_questions(questions: pd.DataFrame) -> pd.DataFrame:
    """Return (method, task, question_id) of questions on which a method failed in some repeat and autoregressive in none."""
    failed = questions.loc[questions["failed"].astype(bool), QUESTION].drop_duplicates()
    baseline = failed.loc[failed["method"] == BASELINE, QUESTION[1:]].assign(known=True)
    both = failed.merge(baseline, on=QUESTION[1:], how="left")
    return both.loc[both["known"].isna(), QUESTION]


def count_unpaired(questions: pd.DataFrame, pairs: pd.DataFrame) -> dict[tuple[str, str], int]:
    """Return, by (method, task), the number of questions that have no pair yet although no method failed on them."""
    failed = questions[questions["failed"].astype(bool)]
    open_questions = _collect_question_keys(questions) - _collect_question_keys(failed)
    done = set(pairs[QUESTION].itertuples(index=False, name=None))
    counts: dict[tuple[str, str], int] = {}
    for method in questions["method"].unique():
        for task, question_id in open_questions:
            missing = (method, task, question_id) not in done
            counts[method, task] = counts.get((method, task), 0) + missing
            counts[method, OVERALL] = counts.get((method, OVERALL), 0) + missing
    return counts


def _collect_question_keys(questions: pd.DataFrame) -> set[tuple[str, int | str]]:
    return set(questions[["task", "question_id"]].itertuples(index=False, name=None))


def tabulate_positions(trials: Iterable[Trial]) -> pd.DataFrame:
    """Return counts of steps and shares by method and draft position k, from 1; see acceptance.Position."""
    counts = ["steps", "offered", "reached", "accepted", "joint", "conditional"]
    rows = [
        (method, place.k, *(getattr(place, name) for name in counts), vllm_rate)
        for method, turns in _group_by_method(trials).items()
        for place, vllm_rate in zip(acceptance.positions(turns), acceptance.count_vllm(turns).per_position, strict=True)
    ]
    return pd.DataFrame(rows, columns=["method", "position", *counts, "vllm_acceptance_rate"])


def tabulate_conventions(trials: Iterable[Trial]) -> pd.DataFrame:
    """Return, by method, mean accepted tokens and acceptance rates by every convention in acceptance; Spec-Bench's is micro."""
    rows = []
    for method, turns in _group_by_method(trials).items():
        vllm, sglang = acceptance.count_vllm(turns), acceptance.count_sglang(turns)
        rows.append(
            {
                "method": method,
                "micro": acceptance.micro(turns),
                "macro": acceptance.macro(turns),
                "micro_with_prefill": acceptance.micro(turns, prefill=True),
                "accepted_per_draft_token": acceptance.rate(turns),
                "vllm_acceptance_length": vllm.acceptance_length,
                "vllm_acceptance_rate": vllm.acceptance_rate,
                "sglang_accept_length": sglang.accept_length,
                "sglang_accept_rate": sglang.accept_rate,
                "speed_bench_average_al": acceptance.macro(turns, prefill=True),
            }
        )
    return pd.DataFrame(rows)


def _group_by_method(trials: Iterable[Trial]) -> dict[str, list[acceptance.Steps]]:
    """Return the turns that have steps."""
    by_method: dict[str, list[Trial]] = {}
    for trial in trials:
        by_method.setdefault(trial.method, []).append(trial)
    return {method: turns for method, rows in by_method.items() if (turns := acceptance.collect_steps(rows))}
