"""make gpu: all measurements on a GPU machine, in pieces that are not repeated once they have succeeded.

1. waits: how often the host waits for the GPU per step, by method and line of code, as torch's own check reports it
2. equality: float32 output on the GPU equal to the CPU's, token for token, for every method
3. shape-equality: the mini target's output equal to its large shape's, and the counts of both
4. ceilings: copy bandwidth; memory besides weights and KV store
5. attention: torch's primitives at the large shape
6. cards: the roofline cards of large shapes
7. bench: all methods on the mini suite at the large shape in float16, three repeats; one more, profiled, for the phases of a step
8. contexts: autoregressive decoding, PLD and EAGLE-2 after long prompts
9. certificates: whether every method's text is the target's own in float16 and bfloat16, greedy and sampled

    python -m benchmarks.gpu [--device cpu] [--limit N] [--shape 7b] [--cards 7b,8b,13b] [--lengths 1000,16000] [--out DIR]

Interrupt it at any point and run the same command again to resume. The output ends with the tables. Try the script by
`--device cpu --limit 1 --shape 100m --cards 100m --lengths 500 --out results/try`.
"""

import argparse
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks import attention, contexts, memory, shapes, waits
from benchmarks.embedded import build_table, check_complete, decode_questions, exit_with, parse_numbers
from specbench.analysis.summary import format_csv
from specbench.certify.certify import certify
from specbench.certify.tables import build_certificate_table
from specbench.cli.output import console, widen_console
from specbench.cli.parser import Parser
from specbench.diagnose.roofline import measure_copy_bandwidth, write_card
from specbench.errors import InputError, format_error
from specbench.machine.devices import get_device_name, pick_device, release_memory
from specbench.records.certificates import FILE, read_certificate
from specbench.records.files import write_atomic
from specbench.report.render import render_report
from specbench.running.execute import execute
from specbench.running.progress import ProgressDisplay, TrainingDisplay
from specbench.setup.compose import compose_certify, compose_run

METHODS = (
    "pld,pld_spec_bench,sps,sps_spec_bench,sps_confidence,medusa,hydra_heads,eagle,eagle2,eagle3,lookahead,rest,token_recycling,"
    "token_recycling_warm,sam_decoding,sam_decoding_static,sam_eagle2,suffix,suffix_cold,dflash,dspark,mtp"
)
CHOSEN = f"method=[{METHODS}]"
CHOSEN_AT_100M = f"method=[{METHODS},self_speculative]"  # refuses shapes with additional layers
EAGER = ["engine.native.forward=eager"]  # on a CPU, where compiling would take longer than it saves here
WIDTH = 140


@dataclass(frozen=True)
class GpuPlan:
    """runs: folder of run directories; reports: folder of tables; shape: the large one."""

    device: torch.device
    limit: int
    shape: str
    cards: list[str]
    lengths: list[int]
    runs: Path
    reports: Path

    @property
    def settings(self) -> str:
        cards, lengths = ",".join(self.cards), ",".join(map(str, self.lengths))
        return f"{get_device_name(self.device)} --limit {self.limit} --shape {self.shape} --cards {cards} --lengths {lengths}"

    def on_device(self, *overrides: str) -> list[str]:
        return [f"target.device={self.device}", *overrides, *EAGER * (self.device.type == "cpu")]

    def get_file(self, piece: str) -> Path:
        return self.reports / "checks" / f"{piece}.txt"


def count_waits(plan: GpuPlan) -> Table:
    return waits.measure_waits(METHODS.split(","), *plan.on_device("target.shape=100m", _half(plan)))


def equality(plan: GpuPlan) -> Table:
    """Compare float32 output with the CPU's."""
    chosen, few = (CHOSEN_AT_100M, "target.shape=100m", "target.dtype=float32"), min(plan.limit, 2)
    on_cpu = decode_questions(*chosen, "target.device=cpu", *EAGER, limit=few)
    on_device = decode_questions(*plan.on_device(*chosen), limit=few)
    found = Table("method", f"float32 on {plan.device} equal to the CPU's")
    for label, outs in on_device.items():
        equal = sum(a.output_ids == b.output_ids for a, b in zip(outs, on_cpu[label], strict=True))
        found.add_row(label, f"{equal} of {len(outs)}")
    return found


def shape_equality(plan: GpuPlan) -> Table:
    """Compare the large shape with the mini target, on the device."""
    rows = shapes.compare_shapes(plan.shape, shapes.METHODS, *plan.on_device())
    write_atomic(plan.reports / "shape-equality.csv", format_csv(rows))
    return build_table(rows, f"The mini target and its {plan.shape} shape, float32")


def certificates(plan: GpuPlan, dtype: str) -> Table:
    """Certify few texts; distributions are enumerated on the CPU."""
    limit = min(plan.limit, 4)
    chosen = [f"target.device={plan.device}", CHOSEN_AT_100M, "target.shape=100m", f"target.dtype={dtype}"]
    chosen += [f"limit={limit}", "draws=1024", *["forward=eager"] * (plan.device.type == "cpu")]
    folder = Path("results/reference/certificates") / f"{plan.runs.name}-{dtype}"
    if not (folder / FILE).exists():
        with TrainingDisplay() as display:
            certify(compose_certify([*chosen, f"out={folder}"]), display.update)
    return build_certificate_table(read_certificate(folder / FILE))


def ceilings(plan: GpuPlan) -> Table:
    grown = memory.measure_growth(*plan.on_device("target.shape=100m"))
    megabytes = (grown.last - grown.loaded) / 1e6
    found = Table("ceiling", "measured")
    found.add_row("copy bandwidth, read and written", f"{measure_copy_bandwidth(plan.device) / 1e9:.0f} GB/s")
    found.add_row(f"memory growth after loading, allowed {grown.allowed / 1e6:.0f} MB", f"{megabytes:.0f} MB")
    return found


def primitives(plan: GpuPlan) -> Table:
    found = attention.measure(plan.shape, plan.device)
    write_atomic(plan.reports / "attention.csv", format_csv(found))
    return attention.build_attention_table(found, f"Attention of {plan.shape}")


def roofline(plan: GpuPlan, shape: str) -> Table:
    return write_card(compose_run(plan.on_device(f"target.shape={shape}", _half(plan))), plan.reports / f"cost-{shape}").table


def bench(plan: GpuPlan) -> RenderableType:
    """Make the timed run, then one profiled repeat: timing the phases of a step waits for the device, which costs time."""
    chosen = plan.on_device(CHOSEN, f"target.shape={plan.shape}", _half(plan))
    timed = compose_run([*chosen, f"limit={plan.limit}", f"out={plan.runs}"])
    once = ["limit=1", "repeats=1", "profile=true", "check_baseline=false"]
    phases = compose_run([*chosen, *once, f"out={plan.runs}-phases"])
    with ProgressDisplay() as display:
        paths = [check_complete(execute(config, display)) for config in (timed, phases)]
    report, _ = (render_report([path], plan.reports.with_name(path.name)) for path in paths)
    return Group(*report.build_tables(console.width), *(Text(alarm) for alarm in report.alarms))


def growing(plan: GpuPlan) -> Table:
    folder = plan.runs.with_name(f"{plan.runs.name}-contexts")
    chosen = plan.on_device(f"target.shape={plan.shape}", _half(plan))
    return contexts.measure(folder, plan.lengths, min(plan.limit, 2), *chosen)


def _half(plan: GpuPlan) -> str:
    return "target.dtype=auto" if plan.device.type == "cpu" else "target.dtype=float16"  # the embedded target does not overflow


def pieces(plan: GpuPlan) -> dict[str, Callable[[], RenderableType]]:
    """Return the measurements by name, in order."""
    halves = ("float16", "bfloat16") if plan.device.type != "cpu" else ("bfloat16",)
    return {
        "waits": lambda: count_waits(plan),
        "equality": lambda: equality(plan),
        "shape-equality": lambda: shape_equality(plan),
        "ceilings": lambda: ceilings(plan),
        "attention": lambda: primitives(plan),
        **{f"cost-{shape}": lambda shape=shape: roofline(plan, shape) for shape in plan.cards},  # type: ignore[misc]
        "bench": lambda: bench(plan),
        "contexts": lambda: growing(plan),
        **{f"certificate-{dtype}": lambda dtype=dtype: certificates(plan, dtype) for dtype in halves},  # type: ignore[misc]
    }


def render_text(result: RenderableType) -> str:
    text = io.StringIO()
    Console(file=text, width=WIDTH).print(result)
    return text.getvalue()


def check(plan: GpuPlan) -> None:
    """Raise InputError for an unknown shape, and for a folder with results of other settings."""
    for shape in (plan.shape, *plan.cards):
        attention.expand_shape(shape)
    file = plan.get_file("asked")
    if not file.exists():
        write_atomic(file, plan.settings)
    elif (existing := file.read_text(encoding="utf-8")) != plan.settings:
        raise InputError(f"{file.parent} holds results of {existing}, not of {plan.settings}; choose another --out")


def run_pieces(plan: GpuPlan) -> dict[str, str]:
    """Run the pieces without a result; return by piece why one failed, such as too little memory."""
    failed = {}
    for name, piece in pieces(plan).items():
        release_memory(plan.device)  # of the previous piece
        try:
            if not plan.get_file(name).exists():
                write_atomic(plan.get_file(name), render_text(piece()))
        except Exception as error:  # such as out of memory or a driver's: the other pieces still run
            failed[name] = str(error) if isinstance(error, InputError) else format_error(error)
    return failed


def main() -> int:
    parser = Parser("gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=int, default=10, help="questions per task")
    parser.add_argument("--shape", default="7b", help="of the embedded target, at which methods are timed")
    parser.add_argument("--cards", default="7b,8b,13b", help="shapes whose forwards are timed")
    parser.add_argument(
        "--lengths", type=parse_numbers, default=contexts.LENGTHS, metavar="N,N", help="approximate tokens of prompts"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = pick_device(options.device)
    if device.type == "cpu" and options.device == "auto":
        raise InputError(
            "no GPU found; to try the script: --device cpu --limit 1 --shape 100m --cards 100m --lengths 500 --out results/try"
        )
    runs = options.out or Path("results/reference") / re.sub(r"[^a-z0-9]+", "-", get_device_name(device).lower()).strip("-")
    reports = Path("reports/reference") / runs.name
    plan = GpuPlan(device, options.limit, options.shape, options.cards.split(","), options.lengths, runs, reports)
    widen_console()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    check(plan)
    failed = run_pieces(plan)
    for name in pieces(plan):
        console.print(name, failed.get(name) or plan.get_file(name).read_text(encoding="utf-8"), sep="\n", markup=False)
    return 2 if failed else 0


if __name__ == "__main__":
    exit_with(main)
