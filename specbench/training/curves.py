"""A figure of a training's loss and accuracy over its steps."""

import json
from pathlib import Path

from matplotlib.figure import Figure


def plot_curves(log: Path, picture: Path) -> None:
    """Plot on the left the loss on training and held-out answers, on the right the held-out accuracy by depth."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, shares = figure.subplots(1, 2)
    losses.plot(steps, [row["loss"] for row in rows], label="training", alpha=0.5)
    losses.plot(steps, [row["held_out_loss"] for row in rows], label="held out")
    losses.set(xlabel="step", ylabel="loss")
    losses.legend()
    for depth in range(len(rows[-1]["held_out_right"])):
        shares.plot(steps, [100 * row["held_out_right"][depth] for row in rows], label=f"depth {depth + 1}")
    shares.set(xlabel="step", ylabel="held-out accuracy, %")
    shares.legend()
    figure.savefig(picture, dpi=120)
