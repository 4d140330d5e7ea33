"""Trials to numbers. Counts are pooled and divided at the end; an error row never becomes a speed.

    trial_frame -> question_frame -> pair -> question_ratios, pooled, spec_bench

Every method is paired with autoregressive decoding on the same question and repeat. A question on which
either of the two failed, or which one of them has not finished, is left out of both sides (complete cases)
and counted in `errors` or `unpaired`. The rows of task = overall hold the questions of all tasks.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from specbench.analysis import acceptance
from specbench.records.trial import BASELINE, PER_STEP, Trial

OVERALL = "overall"
CELL = ["method", "task"]
QUESTION = ["method", "task", "question_id"]

_COUNTS = ["new_tokens", "seconds", "decode_tokens", "decode_seconds", "steps", "forwards", "retokenised", "energy_j"]


def build_trial_frame(trials: Iterable[Trial]) -> pd.DataFrame:
    """One row per turn: the record with per-step lists summed, `failed`, and `seconds` = prefill + decode."""
    fields = list(Trial.__dataclass_fields__)
    rows = [{**trial.to_row(), **_sum_steps(trial), "failed": trial.failed} for trial in trials]
    frame = pd.DataFrame(rows, columns=[*fields, "failed"])
    for name in (
        "steps",
        "prefill_s",
        "decode_s",
        "draft_s",
        "verify_s",
        "retokenised",
        "peak_memory_bytes",
        "energy_j",
        *PER_STEP,
    ):
        frame[name] = pd.to_numeric(frame[name])
    frame["seconds"] = frame["prefill_s"].fillna(0) + frame["decode_s"]
    frame["decode_seconds"] = frame["decode_s"].where(frame["prefill_s"].notna())
    frame["decode_tokens"] = frame["new_tokens"] - 1  # the first token is prefill's
    frame["forwards"] = frame["steps"] + 1
    return frame


def _sum_steps(trial: Trial) -> dict[str, int | None]:
    lists = {name: getattr(trial, name) for name in PER_STEP}
    return {name: None if values is None else sum(values) for name, values in lists.items()}


def build_question_frame(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per method, task, question and repeat: sums over turns, nan where a turn has no such number."""
    groups = trials.groupby([*QUESTION, "repeat"], sort=False)
    counts = groups[[*_COUNTS, *PER_STEP]]
    sums = counts.sum().where(counts.count().eq(groups.size(), axis=0))
    sums["turns"] = groups.size()
    sums["failed"] = groups["failed"].any()
    return sums.reset_index()


def pair_with_baseline(questions: pd.DataFrame) -> pd.DataFrame:
    """Complete cases: each row beside autoregressive's (suffix _baseline), same question and repeat."""
    ever_failed = questions.groupby(QUESTION, sort=False)["failed"].transform("any").astype(bool)
    whole = questions[~ever_failed]
    baseline = whole[whole["method"] == BASELINE].drop(columns=["method", "failed"])
    pairs = whole.merge(baseline, on=["task", "question_id", "repeat"], suffixes=("", "_baseline"))
    return pairs[pairs["turns"] == pairs["turns_baseline"]]


def compute_question_ratios(pairs: pd.DataFrame) -> pd.DataFrame:
    """One row per method, task and question, repeats averaged first: log ratios, natural logarithms.

    log_speedup and log_speedup_decode are of rates, log_conversion of speedup / tokens per forward.
    """
    sums = pairs.drop(columns=["repeat", "failed"]).groupby(QUESTION, sort=False).sum(min_count=1)
    ratio = _rate(sums, "") / _rate(sums, "_baseline")
    decode = _decode_rate(sums, "") / _decode_rate(sums, "_baseline")
    per_forward = sums["new_tokens"] / sums["forwards"]
    logs = {"log_speedup": ratio, "log_speedup_decode": decode, "log_conversion": ratio / per_forward}
    return pd.DataFrame({name: np.log(values) for name, values in logs.items()}).reset_index()


def compute_question_latencies(pairs: pd.DataFrame) -> pd.DataFrame:
    """One row per method, task and question: ms_per_token over all repeats, prefill included; new_tokens, mean of a repeat."""
    groups = pairs.groupby(QUESTION, sort=False)
    sums = groups[["seconds", "new_tokens"]].sum(min_count=1)
    rows = pd.DataFrame({"ms_per_token": 1e3 * sums["seconds"] / sums["new_tokens"], "new_tokens": groups["new_tokens"].mean()})
    return rows.reset_index()


def _rate(sums: pd.DataFrame, side: str) -> pd.Series:
    return sums[f"new_tokens{side}"] / sums[f"seconds{side}"]


def _decode_rate(sums: pd.DataFrame, side: str) -> pd.Series:
    tokens = sums[f"decode_tokens{side}"]
    return tokens.where(tokens > 0) / sums[f"decode_seconds{side}"]


def add_overall(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, and once more under task = overall."""
    return pd.concat([rows, rows.assign(task=OVERALL)], ignore_index=True)


def pool_counts(pairs: pd.DataFrame) -> pd.DataFrame:
    """Ratios of pooled counts, indexed by (method, task), overall included.

    mean_accepted_tokens = committed / steps; acceptance_rate = accepted / depth offered; tokens_per_forward =
    new tokens / (steps + 1 per turn); speedup_pooled = ratio of all tokens per all seconds.
    """
    groups = add_overall(pairs).groupby(CELL, sort=False)
    sums = groups.sum(numeric_only=True, min_count=1)
    return pd.DataFrame(
        {
            "questions": groups["question_id"].nunique(),
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
    """By (method, task): standard deviation over repeats of the speedup and of mean accepted tokens, where each has its own seed.

    Of each repeat the geometric mean over questions, for overall that of the tasks' means; nan with one repeat.
    """
    logs = np.log(_rate(pairs, "") / _rate(pairs, "_baseline"))
    speedups = pairs.assign(log=logs).groupby([*CELL, "repeat"])["log"].mean().reset_index()
    whole = speedups.groupby(["method", "repeat"])["log"].mean().reset_index().assign(task=OVERALL)
    every = pd.concat([speedups, whole])
    sums = add_overall(pairs).groupby([*CELL, "repeat"])[["committed", "steps"]].sum(min_count=1)
    accepted = (sums["committed"] / sums["steps"]).groupby(CELL).std()
    spread = every.assign(speedup=np.exp(every["log"])).groupby(CELL)["speedup"].std()
    return pd.DataFrame({"speedup_seed_sd": spread, "mean_accepted_tokens_seed_sd": accepted})


def compute_spec_bench(pairs: pd.DataFrame) -> pd.Series:
    """Spec-Bench's estimator (its evaluation/speed.py), by (method, task); for published tables only.

    Mean over questions of the method's tokens/s over the mean of autoregressive's re-tokenised tokens/s;
    repeat i against repeat i, then the mean over repeats.
    """
    recount = pairs["retokenised_baseline"].fillna(pairs["new_tokens_baseline"])
    own = pairs["new_tokens"].where(pairs["method"] != BASELINE, recount)
    rates = pairs.assign(own=own / pairs["seconds"], reference=recount / pairs["seconds_baseline"])
    means = add_overall(rates).groupby([*CELL, "repeat"], sort=False)[["own", "reference"]].mean()
    speedups: pd.Series = (means["own"] / means["reference"]).groupby(CELL, sort=False).mean()
    return speedups.rename("speedup_spec_bench")


def residuals(trials: pd.DataFrame) -> pd.DataFrame:
    """Of finished turns of several repeats: log seconds and the position in block, each less its mean over the repeats."""
    whole = trials[~trials["failed"].astype(bool) & (trials["seconds"] > 0)]
    turn = [*QUESTION, "turn"]
    rows = whole[[*turn, "repeat", "order"]].assign(residual=np.log(whole["seconds"]), place=whole["order"].astype(float))
    groups = rows.groupby(turn)
    rows[["residual", "place"]] -= groups[["residual", "place"]].transform("mean")
    rows["repeats"] = groups["order"].transform("size")
    return rows[rows["repeats"] > 1]


def compute_repeat_spread(trials: pd.DataFrame) -> pd.Series:
    """By method: standard deviation over repeats of a turn's log seconds, so 0.01 is about one per cent."""
    rows = residuals(trials)
    freedom = (1 - 1 / rows["repeats"]).groupby(rows["method"]).sum()
    squares = (rows["residual"] ** 2).groupby(rows["method"]).sum()
    return pd.Series(np.sqrt(squares / freedom), name="repeat_spread")


def compute_identical_share(trials: pd.DataFrame) -> pd.Series:
    """Share of turns, over all repeats, whose output ids equal autoregressive's, by (method, task).

    A turn counts only where both had the same prompt: all with context = reference, some with context = own.
    """
    whole = trials[~trials["failed"].astype(bool) & trials["output_sha256"].notna()]
    turn = ["task", "question_id", "turn", "repeat"]
    baseline = whole.loc[whole["method"] == BASELINE, [*turn, "prompt_sha256", "output_sha256"]]
    both = whole.merge(baseline, on=turn, suffixes=("", "_baseline"))
    both = both[(both["context"] == "reference") | (both["prompt_sha256"] == both["prompt_sha256_baseline"])]
    same = both.assign(identical=(both["output_sha256"] == both["output_sha256_baseline"]).astype(float))
    shares: pd.Series = add_overall(same).groupby(CELL, sort=False)["identical"].mean()
    return shares


def split_step_time(trials: pd.DataFrame) -> pd.DataFrame:
    """Of a profiled run, by method: what a step costs in steps of autoregressive decoding, and of that its parts.

    step = draft + verify + rest, where verify is the target's forward and the choice, rest the bookkeeping of loop and
    drafter; step_ms in milliseconds; mean_accepted_tokens is what it yields. Over all finished turns of each method, not pairs.
    Empty without a profiled turn.
    """
    whole = trials[~trials["failed"].astype(bool) & trials["draft_s"].notna()]
    sums = whole.groupby("method")[["steps", "decode_s", "draft_s", "verify_s", "committed"]].sum()
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
    """By (method, task), of every trial: `errors` (failed turns), `peak_memory_mb` (10^6 bytes), `state`, `kind`."""
    groups = add_overall(trials).groupby(CELL, sort=False)
    columns = {
        "errors": groups["failed"].sum().astype(int),
        "state": groups["state"].max(),  # warm beats cold
        "kind": groups["kind"].max(),  # synthetic beats measured
    }
    return pd.DataFrame({**columns, "peak_memory_mb": groups["peak_memory_bytes"].max() / 1e6})


def find_failed_questions(questions: pd.DataFrame) -> pd.DataFrame:
    """The (method, task, question_id) a method failed on in any repeat and autoregressive in none."""
    failed = questions.loc[questions["failed"].astype(bool), QUESTION].drop_duplicates()
    baseline = failed.loc[failed["method"] == BASELINE, QUESTION[1:]].assign(known=True)
    both = failed.merge(baseline, on=QUESTION[1:], how="left")
    return both.loc[both["known"].isna(), QUESTION]


def count_unpaired(questions: pd.DataFrame, pairs: pd.DataFrame) -> dict[tuple[str, str], int]:
    """By (method, task): questions without a pair that failed for nobody: the run is not finished."""
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
    """How far drafts are accepted, by (method, position k from 1): counts over steps, and shares; see acceptance."""
    names = ["method", "position", "steps", "offered", "reached", "accepted", "joint", "conditional", "vllm_acceptance_rate"]
    rows = [
        (method, place.k, place.steps, place.offered, place.reached, place.accepted, place.joint, place.conditional, of_vllm)
        for method, turns in _group_by_method(trials).items()
        for place, of_vllm in zip(acceptance.positions(turns), acceptance.count_vllm(turns).per_position, strict=True)
    ]
    return pd.DataFrame(rows, columns=names)


def tabulate_conventions(trials: Iterable[Trial]) -> pd.DataFrame:
    """By method, mean accepted tokens and acceptance rates as everybody counts them (see acceptance); Spec-Bench's is micro."""
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
                "speed_bench_average_al": acceptance.compute_speed_bench(turns),
            }
        )
    return pd.DataFrame(rows)


def _group_by_method(trials: Iterable[Trial]) -> dict[str, list[acceptance.Steps]]:
    """The turns that have steps."""
    own: dict[str, list[Trial]] = {}
    for trial in trials:
        own.setdefault(trial.method, []).append(trial)
    return {method: turns for method, these in own.items() if (turns := acceptance.collect_steps(these))}
