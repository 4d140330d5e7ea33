"""The report of a search for a skip set: a table of its trials, a plot and a card."""

import csv
import io
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specbench.drafters.skipping import SkipSet
from specbench.models.target import Target
from specbench.setup.settings import TrainSettings
from specbench.training.calibration import SkipSetTiming
from specbench.training.card import describe_questions, describe_versions

COLUMNS = (
    *("trial", "tokens_per_second", "measured_tokens_per_second", "autoregressive_tokens_per_second", "speedup"),
    *("acceptance_rate", "mean_accepted_tokens", "parameters_kept", "attention", "mlp"),
)
SHOWN = ("draft_tokens", "threshold", "adaptive", "target_acceptance", "carry")


def format_trials(timings: Sequence[SkipSetTiming]) -> str:
    """Return CSV, one line per trial; layer numbers are separated by spaces."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *map(_build_row, timings)])
    return text.getvalue()


def _build_row(timing: SkipSetTiming) -> list[object]:
    rates = (timing.tokens_per_second, timing.rate, timing.baseline_rate)
    shares = (timing.speedup, _acceptance(timing), _mean_accepted(timing), timing.kept)
    layers = (" ".join(map(str, numbers)) for numbers in (timing.skipped.attention, timing.skipped.mlp))
    return [timing.number, *(f"{rate:.2f}" for rate in rates), *(f"{share:.4f}" for share in shares), *layers]


def _acceptance(timing: SkipSetTiming) -> float:
    return timing.accepted / max(1, timing.drafted)


def _mean_accepted(timing: SkipSetTiming) -> float:
    """Tokens per step, recovered and bonus tokens included."""
    return timing.committed / max(1, timing.steps)


def plot_trials(timings: Sequence[SkipSetTiming], best: int, layers: int, picture: Path) -> None:
    """Plot on the left tokens per second by trial and the best so far, on the right what the best set skips."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    speeds, grid = figure.subplots(1, 2)
    numbers, rates = [timing.number for timing in timings], [timing.tokens_per_second for timing in timings]
    speeds.plot(numbers, rates, "o", alpha=0.5, label="trial")
    speeds.step(numbers, list(accumulate(rates, max)), where="post", label="best so far")
    speeds.axhline(timings[0].baseline_rate, color="black", linestyle="--", label="autoregressive")
    speeds.set(xlabel="trial", ylabel="tokens per second", ylim=(0, None))
    speeds.legend(loc="lower right")
    _plot_skip_set(grid, timings[best].skipped, layers)
    figure.savefig(picture, dpi=120)


def _plot_skip_set(grid: Axes, skipped: SkipSet, layers: int) -> None:
    switches = skipped.to_switches(layers)
    grid.imshow([switches[:layers], switches[layers:]], cmap="Greys", vmin=0, vmax=1.3, aspect="auto")
    grid.set(yticks=[0, 1], yticklabels=["attention", "MLP"], xlabel="layer", title="dark: skipped by the best set")
    grid.set_xticks([layer - 0.5 for layer in range(layers)], minor=True)
    grid.set_yticks([0.5], minor=True)
    grid.grid(which="minor", color="lightgrey", linewidth=1)


def format_card(
    settings: TrainSettings,
    label: str,
    target: Target,
    timings: Sequence[SkipSetTiming],
    best: int,
    prompts: str,
    sampler: str,
) -> str:
    top = timings[best]
    method = settings.method[label]
    minutes = sum(timing.seconds + timing.baseline_seconds for timing in timings) / 60
    skipped = [", ".join(map(str, numbers)) or "none" for numbers in (top.skipped.attention, top.skipped.mlp)]
    shape = f", shape {settings.target.shape}" if settings.target.shape else ""
    return "\n".join(
        [
            f"# {label} for {target.name}{shape}",
            "",
            f"Found by `specbench train`: {len(timings)} skip sets timed, {minutes:.1f} minutes of decoding; {sampler}.",
            f"Calibration: {prompts}, {describe_questions(settings)}; {target.model.dtype_name} on {target.model.device.type}.",
            f"Drafting: {', '.join(f'{name} {method[name]}' for name in SHOWN)}.",
            describe_versions(target.model.device),
            "",
            f"The best set (trial {top.number}) skips attention of layers {skipped[0]} and MLPs of layers {skipped[1]}:",
            "",
            "| parameters kept | acceptance rate | mean accepted tokens | tokens/s | autoregressive tokens/s | speedup |",
            "|---:|---:|---:|---:|---:|---:|",
            f"| {top.kept:.1%} | {_acceptance(top):.1%} | {_mean_accepted(top):.2f} | {top.rate:.1f} | "
            f"{top.baseline_rate:.1f} | {top.speedup:.2f} |",
            "",
            "The search maximised new tokens per second over all prompts, prefill included, corrected for the machine's drift.",
            "The best of many noisy measurements is biased upwards: measure its speedup by `specbench run` on other questions.",
            "",
            "[Trials](trials.csv), [plot](curves.png).",
            "",
        ]
    )
