"""Loss and accuracy of a training over its steps, as a picture."""

import json
from pathlib import Path

from matplotlib.figure import Figure


def plot_curves(log: Path, picture: Path) -> None:
    """Left: the loss on training and held-out answers. Right: the share of right guesses on held-out answers, by depth."""
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
    shares.set(xlabel="step", ylabel="best guess right, held out, %")
    shares.legend()
    figure.savefig(picture, dpi=120)
