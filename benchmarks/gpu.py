"""make gpu: what a GPU machine is asked, in pieces that are not asked again once they are answered.

1. equality: float32 output on the GPU equal to the CPU's, token for token, for every method
2. shape-equality: the same of the mini target and of its large shape, and the counts behind it
3. ceilings: a large copy; memory beside weights and KV store
4. attention: the large shape's, by torch's primitives
5. cards: the roofline cards of large shapes
6. bench: all methods on the mini suite at the large shape in float16, three repeats; one more, profiled, for the phases of a step
7. contexts: autoregressive decoding, PLD and EAGLE-2 behind long prompts
8. certificates: whether every method's text is the target's own in float16 and bfloat16, greedy and sampled

    python -m benchmarks.gpu [--device cpu] [--limit N] [--shape 7b] [--cards 7b,8b,13b] [--lengths 1000,16000] [--out DIR]

It can be cut at any point: the next call goes on. The last thing printed are the tables. The script itself is tried by
`--device cpu --limit 1 --shape 100m --cards 100m --lengths 500 --out results/try`.
"""

import argparse
import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks import attention, contexts, memory, shapes
from benchmarks.embedded import decoded, numbers, whole
from specbench.analysis.summary import format_csv
from specbench.certify.certify import certify
from specbench.certify.tables import build_certificate_table
from specbench.cli.parser import Parser, console, widen_console
from specbench.diagnose.roofline import measure_copy_bandwidth, write_card
from specbench.errors import InputError, format_error, refuse
from specbench.machine.devices import get_device_name, pick_device, release_memory
from specbench.records.certificates import FILE, read_certificate
from specbench.records.files import write_atomic
from specbench.report.render import render_report as render_report
from specbench.running.execute import execute
from specbench.running.progress import ProgressDisplay, TrainingDisplay
from specbench.setup.compose import compose_certify, compose_run

METHODS = (
    "pld,pld_spec_bench,sps,sps_spec_bench,sps_confidence,medusa,hydra_heads,eagle,eagle2,eagle3,lookahead,rest,token_recycling,"
    "token_recycling_warm,sam_decoding,sam_decoding_static,sam_eagle2"
)
CHOSEN = f"method=[{METHODS}]"
CHOSEN_AT_100M = f"method=[{METHODS},self_speculative]"  # it refuses shapes with more layers
WIDTH = 140


@dataclass(frozen=True)
class Asked:
    """runs: where run directories go; reports: where tables go; shape: the large one."""

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
        return [f"target.device={self.device}", *overrides]

    def answer(self, piece: str) -> Path:
        return self.reports / "checks" / f"{piece}.txt"


def equality(asked: Asked) -> Table:
    """Float32 against the CPU."""
    chosen, few = (CHOSEN_AT_100M, "target.shape=100m", "target.dtype=float32"), min(asked.limit, 2)
    on_cpu = decoded(*chosen, "target.device=cpu", limit=few)
    on_device = decoded(*asked.on_device(*chosen), limit=few)
    found = Table("method", f"float32 on {asked.device} equal to the CPU's")
    for label, outs in on_device.items():
        equal = sum(a.output_ids == b.output_ids for a, b in zip(outs, on_cpu[label], strict=True))
        found.add_row(label, f"{equal} of {len(outs)}")
    return found


def shape_equality(asked: Asked) -> Table:
    """The large shape against the mini target, on the device."""
    rows = shapes.compared(asked.shape, shapes.METHODS, *asked.on_device())
    write_atomic(asked.reports / "shape-equality.csv", format_csv(rows))
    return shapes.shown(rows, f"The mini target and its {asked.shape} shape, float32")


def certificates(asked: Asked, dtype: str) -> Table:
    """The distributions are counted out on the CPU, of few texts."""
    limit = min(asked.limit, 4)
    chosen = asked.on_device(CHOSEN_AT_100M, "target.shape=100m", f"target.dtype={dtype}", f"limit={limit}", "draws=1024")
    folder = Path("results/reference/certificates") / f"{asked.runs.name}-{dtype}"
    if not (folder / FILE).exists():
        with TrainingDisplay(console) as display:
            certify(compose_certify([*chosen, f"out={folder}"]), display.update)
    return build_certificate_table(read_certificate(folder / FILE))


def ceilings(asked: Asked) -> Table:
    grown = memory.growth(*asked.on_device("target.shape=100m"))
    megabytes = (grown.last - grown.loaded) / 1e6
    found = Table("ceiling", "measured")
    found.add_row("copy bandwidth, read and written", f"{measure_copy_bandwidth(asked.device) / 1e9:.0f} GB/s")
    found.add_row(f"memory growth after loading, allowed {grown.allowed / 1e6:.0f} MB", f"{megabytes:.0f} MB")
    return found


def primitives(asked: Asked) -> Table:
    found = attention.measure(asked.shape, asked.device)
    write_atomic(asked.reports / "attention.csv", format_csv(found))
    return attention.shown(found, f"Attention of {asked.shape}")


def roofline(asked: Asked, shape: str) -> Table:
    return write_card(compose_run(asked.on_device(f"target.shape={shape}", _half(asked))), asked.reports / f"cost-{shape}")


def bench(asked: Asked) -> RenderableType:
    """The timed run, then one profiled repeat: timing the phases of a step waits for the device, which costs time itself."""
    chosen = asked.on_device(CHOSEN, f"target.shape={asked.shape}", _half(asked))
    timed = compose_run([*chosen, f"limit={asked.limit}", f"out={asked.runs}"])
    once = ["limit=1", "repeats=1", "profile=true", "check_baseline=false"]
    phases = compose_run([*chosen, *once, f"out={asked.runs}-phases"])
    with ProgressDisplay(console) as display:
        paths = [whole(execute(config, display)) for config in (timed, phases)]
    report, _ = (render_report([path], asked.reports.with_name(path.name)) for path in paths)
    return Group(*report.terminal, *(Text(alarm) for alarm in report.alarms))


def growing(asked: Asked) -> Table:
    folder = asked.runs.with_name(f"{asked.runs.name}-contexts")
    chosen = asked.on_device(f"target.shape={asked.shape}", _half(asked))
    return contexts.measure(folder, asked.lengths, min(asked.limit, 2), *chosen)


def _half(asked: Asked) -> str:
    return "target.dtype=auto" if asked.device.type == "cpu" else "target.dtype=float16"


def pieces(asked: Asked) -> dict[str, Callable[[], RenderableType]]:
    """What is asked, by name, in order."""
    halves = ("float16", "bfloat16") if asked.device.type != "cpu" else ("bfloat16",)
    return {
        "equality": lambda: equality(asked),
        "shape-equality": lambda: shape_equality(asked),
        "ceilings": lambda: ceilings(asked),
        "attention": lambda: primitives(asked),
        **{f"cost-{shape}": lambda shape=shape: roofline(asked, shape) for shape in asked.cards},  # type: ignore[misc]
        "bench": lambda: bench(asked),
        "contexts": lambda: growing(asked),
        **{f"certificate-{dtype}": lambda dtype=dtype: certificates(asked, dtype) for dtype in halves},  # type: ignore[misc]
    }


def told(shown: RenderableType) -> str:
    written = io.StringIO()
    Console(file=written, width=WIDTH).print(shown)
    return written.getvalue()


def check(asked: Asked) -> None:
    """Raises InputError for a shape that does not exist, and where answers to other questions lie."""
    for shape in (asked.shape, *asked.cards):
        attention.config_of(shape)
    file = asked.answer("asked")
    if not file.exists():
        write_atomic(file, asked.settings)
    elif (there := file.read_text(encoding="utf-8")) != asked.settings:
        raise InputError(f"{file.parent} holds answers to {there}, not to {asked.settings}; choose another --out")


def answered(asked: Asked) -> dict[str, str]:
    """By piece, why it has no answer, such as a card that is too small; what was answered before is not asked again."""
    failed = {}
    for name, piece in pieces(asked).items():
        release_memory(asked.device)  # of the piece before
        try:
            if not asked.answer(name).exists():
                write_atomic(asked.answer(name), told(piece()))
        except Exception as error:  # whatever a card that is too small or another driver makes of it: the others are still asked
            failed[name] = str(error) if isinstance(error, InputError) else format_error(error)
    return failed


def main() -> int:
    parser = Parser("gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=int, default=10, help="questions a task")
    parser.add_argument("--shape", default="7b", help="of the embedded target, in which methods are timed")
    parser.add_argument("--cards", default="7b,8b,13b", help="shapes whose forwards are timed")
    parser.add_argument("--lengths", type=numbers, default=contexts.LENGTHS, metavar="N,N", help="tokens of prompts, about")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = pick_device(options.device)
    if device.type == "cpu" and options.device == "auto":
        raise InputError(
            "no GPU is here; to try the script: --device cpu --limit 1 --shape 100m --cards 100m --lengths 500 --out results/try"
        )
    runs = options.out or Path("results/reference") / re.sub(r"[^a-z0-9]+", "-", get_device_name(device).lower()).strip("-")
    reports = Path("reports/reference") / runs.name
    asked = Asked(device, options.limit, options.shape, options.cards.split(","), options.lengths, runs, reports)
    widen_console()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    check(asked)
    failed = answered(asked)
    for name in pieces(asked):
        console.print(name, failed.get(name) or asked.answer(name).read_text(encoding="utf-8"), sep="\n", markup=False)
    return 2 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(refuse(error))
