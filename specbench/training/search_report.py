"""What a search for a skip set leaves to read: a table of its trials, a plot and a card."""

import csv
import io
from collections.abc import Sequence
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


def format_trials(found: Sequence[SkipSetTiming]) -> str:
    """CSV, a line per trial; layer numbers are separated by spaces."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_build_row(one) for one in found)
    return text.getvalue()


def _build_row(one: SkipSetTiming) -> list[object]:
    rates = (one.tokens_per_second, one.rate, one.baseline_rate)
    shares = (one.speedup, _acceptance(one), _mean_accepted(one), one.kept)
    layers = (" ".join(map(str, of)) for of in (one.skipped.attention, one.skipped.mlp))
    return [one.number, *(f"{rate:.2f}" for rate in rates), *(f"{share:.4f}" for share in shares), *layers]


def _acceptance(one: SkipSetTiming) -> float:
    return one.accepted / max(1, one.drafted)


def _mean_accepted(one: SkipSetTiming) -> float:
    """Tokens per step, recovered and bonus tokens included."""
    return one.committed / max(1, one.steps)


def plot_trials(found: Sequence[SkipSetTiming], best: int, layers: int, picture: Path) -> None:
    """Left: tokens per second, trial by trial, and the best so far. Right: which sublayers the best set skips."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    speeds, grid = figure.subplots(1, 2)
    numbers, rates = [one.number for one in found], [one.tokens_per_second for one in found]
    speeds.plot(numbers, rates, "o", alpha=0.5, label="trial")
    speeds.step(numbers, [max(rates[: place + 1]) for place in range(len(rates))], where="post", label="best so far")
    speeds.axhline(found[0].baseline_rate, color="black", linestyle="--", label="autoregressive")
    speeds.set(xlabel="trial", ylabel="tokens per second", ylim=(0, None))
    speeds.legend(loc="lower right")
    _plot_skip_set(grid, found[best].skipped, layers)
    figure.savefig(picture, dpi=120)


def _plot_skip_set(grid: Axes, skipped: SkipSet, layers: int) -> None:
    switches = skipped.to_switches(layers)
    grid.imshow([switches[:layers], switches[layers:]], cmap="Greys", vmin=0, vmax=1.3, aspect="auto")
    grid.set(yticks=[0, 1], yticklabels=["attention", "MLP"], xlabel="layer", title="dark: skipped by the best set")
    grid.set_xticks([at - 0.5 for at in range(layers)], minor=True)
    grid.set_yticks([0.5], minor=True)
    grid.grid(which="minor", color="lightgrey", linewidth=1)


def format_card(
    settings: TrainSettings, label: str, target: Target, found: Sequence[SkipSetTiming], best: int, about: str, made: str
) -> str:
    top = found[best]
    method = settings.method[label]
    minutes = sum(one.seconds + one.baseline_seconds for one in found) / 60
    skipped = [", ".join(map(str, of)) or "none" for of in (top.skipped.attention, top.skipped.mlp)]
    shape = f", shape {settings.target.shape}" if settings.target.shape else ""
    return "\n".join(
        [
            f"# {label} for {target.name}{shape}",
            "",
            f"Found by `specbench train`: {len(found)} skip sets timed, {minutes:.1f} minutes of decoding; {made}.",
            f"Calibration: {about}, {describe_questions(settings)}; {target.model.dtype_name} on {target.model.device.type}.",
            f"Drafting: {', '.join(f'{name} {method[name]}' for name in SHOWN)}.",
            describe_versions(target.model.device),
            "",
            f"The best set (trial {top.number}) skips attention of layers {skipped[0]} and MLPs of layers {skipped[1]}:",
            "",
            "| parameters kept | acceptance rate | mean accepted tokens | tokens/s | autoregressive, beside it | speedup |",
            "|---:|---:|---:|---:|---:|---:|",
            f"| {top.kept:.1%} | {_acceptance(top):.1%} | {_mean_accepted(top):.2f} | {top.rate:.1f} | "
            f"{top.baseline_rate:.1f} | {top.speedup:.2f} |",
            "",
            "What was maximised: new tokens of all prompts over seconds, prefill included, times the rate of autoregressive",
            "decoding of the same prompts when the search began over its rate beside the trial: the machine's drift is out.",
            "The best of many noisy measurements flatters itself: `specbench run` on other questions tells the speedup.",
            "",
            "[Trials](trials.csv), [plot](curves.png).",
            "",
        ]
    )
