"""make gpu: what a GPU machine is asked, in an order that can be cut at any point without losing what was measured.

1. correctness: float32 output on the GPU equal to the CPU's, token for token, for every method
2. certificates: whether every method's text is the target's own in float16 and bfloat16, greedy and sampled
3. the card's own ceiling: a large copy; memory beside weights and KV store
4. the benchmark: mini suite at target.shape=100m, all methods, three repeats
5. the roofline card of a 7B shape with random weights

    python -m benchmarks.gpu [--device cpu] [--limit N] [--out results/reference/NAME]

On a machine without a GPU, `--device cpu --limit 1 --card qwen3_0_6b` tries the script itself. The last thing printed is a table.
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console, RenderableType
from rich.table import Table

from benchmarks import memory
from benchmarks.embedded import opened
from specbench.certify.certificate import FILE, read
from specbench.certify.certify import certify
from specbench.certify.shown import table
from specbench.compose import composed
from specbench.cost import card, copy_bandwidth
from specbench.decoding.loop import Generation
from specbench.devices import device_name, pick_device
from specbench.errors import InputError, refuse
from specbench.parsing import LOG_WIDTH, console
from specbench.progress import ProgressDisplay, TrainingDisplay
from specbench.report import render as render_report
from specbench.run import execute

METHODS = "method=[pld,pld_spec_bench,sps,sps_spec_bench,sps_confidence,medusa,hydra_heads,eagle,eagle2,eagle3]"


def told(shown: RenderableType, out: Path) -> None:
    """Print it, and keep it in checks.txt: what was measured survives a cut."""
    console.print(shown)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "checks.txt").open("a", encoding="utf-8") as file:
        Console(file=file, width=140).print(shown)


def equality(device: str, limit: int, out: Path) -> None:
    """Float32 against the CPU."""
    on_cpu = decoded(limit, "target.device=cpu", "target.dtype=float32")
    on_device = decoded(limit, f"target.device={device}", "target.dtype=float32")
    found = Table("method", f"float32 on {device} equal to the CPU's")
    for label, outs in on_device.items():
        equal = sum(a.output_ids == b.output_ids for a, b in zip(outs, on_cpu[label], strict=True))
        found.add_row(label, f"{equal} of {len(outs)}")
    told(found, out)


def decoded(limit: int, *overrides: str) -> dict[str, list[Generation]]:
    """Every method's output on first turns of the mini suite, `limit` questions a task."""
    there = opened(METHODS, "target.shape=100m", *overrides, limit=limit)
    return {label: [there.generate(label, prompt) for prompt in there.prompts] for label in there.drafters}


def certificates(device: str, limit: int, out: Path) -> None:
    """Each half precision's; the distributions are counted out on the CPU, of few texts."""
    for dtype in ("float16", "bfloat16") if device != "cpu" else ("bfloat16",):
        chosen = [METHODS, "target.shape=100m", f"target.device={device}", f"target.dtype={dtype}", f"limit={limit}"]
        folder = Path("results/reference/certificates") / f"{out.name}-{dtype}"
        if not (folder / FILE).exists():
            config = composed([*chosen, "draws=1024", f"out={folder}"], root="certify")
            with TrainingDisplay(console) as display:
                certify(config, display.at)
        told(table(read(folder / FILE)), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--card", default="vicuna_7b", help="the target whose shape is timed with random weights")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = pick_device(options.device)
    out = options.out or Path("results/reference") / device_name(device).replace(" ", "-").lower()
    shape = composed([f"target={options.card}", "target.weights=random", f"target.device={device}"])  # refused before all else
    console.width = max(console.width, LOG_WIDTH)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    reports = Path("reports/reference") / out.name
    equality(str(device), min(options.limit, 8), reports)
    certificates(str(device), min(options.limit, 4), reports)
    told(f"{device_name(device)}: copy bandwidth {copy_bandwidth(device) / 1e9:.0f} GB/s, read and written", reports)
    grown = memory.growth("target.shape=100m", f"target.device={device}")
    megabytes = (grown.last - grown.loaded) / 1e6
    told(f"memory grew by {megabytes:.0f} MB after loading, allowed {grown.allowed / 1e6:.0f} MB", reports)
    bench = composed(
        ["target=mini", "target.shape=100m", f"target.device={device}", METHODS, f"limit={options.limit}", f"out={out}"]
    )
    with ProgressDisplay(console) as display:
        path = execute(bench, display)
    report = render_report([path], reports)
    console.print(card(shape, reports / f"cost-{options.card}"))
    for shown in [*report.terminal, *report.alarms]:
        console.print(shown)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(refuse(error))
