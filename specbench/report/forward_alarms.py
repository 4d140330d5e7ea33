"""Warnings about the forwards of a run: those that were not compared, and those that run slower code than they could."""

from __future__ import annotations

from collections.abc import Iterator

from specbench.analysis.loaded_run import LoadedRun
from specbench.records.trial import BASELINE, OVERALL
from specbench.report.alarm import Alarm
from specbench.report.baseline import find_slower_rows


def warn_eager(run: LoadedRun) -> Iterator[Alarm]:
    """Report forwards that should have been compiled but are not."""
    for part, forward in (run.provenance.get("forward") or {}).items():
        if not forward.get("expected", True):
            what = "the target's forward" if part == "target" else f"the drafter's forward ({part})"
            yield Alarm("notice", "the run", OVERALL, f"{what} runs eagerly: {forward.get('why')}")


def warn_quantised(run: LoadedRun) -> Iterator[Alarm]:
    """Report weights that are stored quantised, and whether they run so or take the memory and time of plain weights."""
    dtype = run.provenance.get("dtype")
    if kind := run.provenance.get("dequantised"):
        message = f"the target's weights are stored quantised ({kind}) and run as {dtype}, not quantised"
        yield Alarm("notice", "the run", OVERALL, message)
    if kind := run.provenance.get("quantised"):
        message = f"the target's layers are quantised ({kind}); {dtype} is the type of the others"
        yield Alarm("notice", "the run", OVERALL, message)


def warn_endless(run: LoadedRun) -> Iterator[Alarm]:
    """Report a target without any token at which an answer ends."""
    if run.provenance.get("eos_token_ids") == []:
        message = "the target's config names no end-of-sequence token (eos_token_id): every answer is as long as the limit"
        yield Alarm("notice", "the run", OVERALL, message)


def warn_untested(run: LoadedRun) -> Iterator[Alarm]:
    """Report models whose self-test left out a forward beyond a window because it was too long or too large."""
    for part, found in (run.provenance.get("self_test") or {}).items():
        limits = [limit for limit, figures in (found.get("beyond") or {}).items() if not figures["tokens"]]
        if limits:
            whose, what = ("the run", "the target") if part == "target" else (part, "its draft model")
            message = f"{what} was not compared with transformers beyond its window of {' and '.join(limits)} tokens"
            yield Alarm("notice", whose, OVERALL, message)


def warn_rows(run: LoadedRun) -> Iterator[Alarm]:
    """Compare forwards over few rows with those over more, timed before the run."""
    times = {forward["rows"]: forward["milliseconds"] for forward in run.provenance.get("forward_ms") or []}
    for few, more, ratio in find_slower_rows(times):
        slower = f"a forward over {few} {'row' if few == 1 else 'rows'} takes {ratio:.2f} times as long as one over {more}"
        if few == 1:
            yield Alarm("alarm", BASELINE, OVERALL, f"{slower}: the baseline runs slower code, every speedup is too high")
        else:
            yield Alarm("notice", "the run", OVERALL, f"{slower}: methods that verify {few} run slower code")
