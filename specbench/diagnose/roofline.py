"""The roofline card of a target: the time of a forward over 1, 2, 4, … tokens, and the time to move its bytes.

At batch 1 a forward reads all weights and the sequence's KV entries, however many tokens it computes. So up to some number of
tokens a verification costs little more than a decoding step; that number bounds the useful size of a draft tree.
`specbench cost target=…` writes cost.csv, cost.md, cost.png and cost.svg.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.tree import DraftTree
from specbench.errors import InputError
from specbench.machine.devices import get_device_name, synchronize
from specbench.models.forwards import Shape, choose_forward
from specbench.records.files import write_atomic
from specbench.records.markdown import format_markdown_table
from specbench.records.run_directory import RunDirectory
from specbench.report.canvas import save_figure, use_figure_settings
from specbench.report.palette import INK, MARKERS, PALETTE
from specbench.setup.objects import load_target
from specbench.setup.provenance import collect_provenance
from specbench.setup.settings import RunSettings

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = (256, 1024, 4096, 16384)
TITLE = "Time of one forward of the target"
COPIES = 4  # back to back in one timing, which hides their launch
Cell = tuple[int, int]  # context, tokens


@torch.inference_mode()
def measure_forwards(
    model: LanguageModel,
    tokens: Sequence[int] = TOKENS,
    contexts: Sequence[int] = CONTEXTS,
    repeats: int = 9,
    seconds_budget: float = 90.0,
) -> pd.DataFrame:
    """Return one row per context (capped by the model's) and tokens per forward; 1 token is always included.

    Times all cells in rounds, so that drift affects them alike: one to `repeats` rounds, as many as fit the budget.
    Columns: tokens, context, milliseconds (median), milliseconds_low and _high (quartiles), relative (median over rounds
    of the ratio to 1 token), weight_bytes, kv_bytes, ceiling_ms (those bytes at the memory's speed). Raises InputError.
    """
    cells = _list_cells(model, tokens, contexts)
    bandwidth = measure_bandwidth(model.device)
    store = model.create_store(max(map(sum, cells)))
    rounds = pd.DataFrame(list(_time_rounds(model, store, cells, repeats, seconds_budget)), columns=cells)
    weights, entry = count_weight_bytes(model.model), store.entry_bytes
    return pd.DataFrame([_build_row(rounds, cell, weights, entry * sum(cell), bandwidth) for cell in cells])


@torch.inference_mode()
def time_rows(model: LanguageModel, rows: Sequence[int], context: int, repeats: int) -> dict[int, list[float]]:
    """Return the milliseconds of forwards over each number of rows after a context, one per round; the numbers take turns."""
    cells = _list_cells(model, rows, [context])
    rounds = list(_time_rounds(model, model.create_store(max(map(sum, cells))), cells, repeats, seconds_budget=float("inf")))
    return {n: [1e3 * seconds[place] for seconds in rounds] for place, (_, n) in enumerate(cells)}


def _list_cells(model: LanguageModel, tokens: Sequence[int], contexts: Sequence[int]) -> list[Cell]:
    sizes = sorted({1, *tokens})
    room = model.context - sizes[-1]
    if sizes[0] < 1 or room < 1 or not contexts or min(contexts) < 1:
        raise InputError(
            f"tokens {sizes} and contexts {list(contexts)}: expected 1 or more, within the context of {model.context}"
        )
    return list(product(sorted({min(context, room) for context in contexts}), sizes))


def _time_rounds(
    model: LanguageModel,
    store: KVStore,
    cells: list[Cell],
    repeats: int,
    seconds_budget: float,
) -> Iterator[list[float]]:
    """Yield per round the seconds of every cell, in the order of `cells`. Directions alternate; a first round warms up."""
    longest, largest = max(context for context, _ in cells), max(n for _, n in cells)
    trees = {n: DraftTree.chain(torch.randint(model.vocabulary, (n,), device=model.device)) for _, n in cells}
    model.prefill(store, [trees[1].tokens])  # eagerly: it allocates the layers
    _time_forward(model, store, trees[largest], longest)
    begun = perf_counter()
    for number in range(max(repeats, 1) + 1):
        started = perf_counter()
        order = cells if number % 2 else cells[::-1]
        seconds = {(context, n): _time_forward(model, store, trees[n], context) for context, n in order}
        if number:
            yield [seconds[cell] for cell in cells]
        now = perf_counter()
        if number and 2 * now - started - begun > seconds_budget:
            return


def _time_forward(model: LanguageModel, store: KVStore, tree: DraftTree, context: int) -> float:
    store.clear()
    store.lengths[0] = context
    store.reserve(len(tree))  # written as zeros: pages that were never written would cost no memory traffic
    synchronize(model.device)
    started = perf_counter()
    model.forward(store, [tree])
    synchronize(model.device)
    return perf_counter() - started


def _build_row(rounds: pd.DataFrame, cell: Cell, weights: int, kv: int, bandwidth: float) -> dict[str, float]:
    context, n = cell
    seconds = rounds[cell]
    return {
        "tokens": n,
        "context": context,
        "milliseconds": 1e3 * seconds.median(),
        "milliseconds_low": 1e3 * float(seconds.quantile(0.25)),
        "milliseconds_high": 1e3 * float(seconds.quantile(0.75)),
        "relative": (seconds / rounds[(context, 1)]).median(),
        "weight_bytes": weights,
        "kv_bytes": kv,
        "ceiling_ms": 1e3 * (weights + kv) / bandwidth,
    }


def count_weight_bytes(model: nn.Module) -> int:
    """Return the bytes of weights that a forward of a dense model reads; shared weights count once.

    An embedding table not shared with a linear layer is left out: a lookup reads one row per token.
    """
    modules = list(model.modules())
    lookups = {module.weight.data_ptr() for module in modules if isinstance(module, nn.Embedding)}
    lookups -= {module.weight.data_ptr() for module in modules if isinstance(module, nn.Linear)}
    read = {weight.data_ptr(): weight.nbytes for weight in model.parameters() if weight.data_ptr() not in lookups}
    return sum(read.values())


def measure_bandwidth(device: torch.device) -> float:
    """Return bytes per second: of reading on a CPU, whose forwards read and hardly write; else of copies."""
    return measure_read_bandwidth() if device.type == "cpu" else measure_copy_bandwidth(device)


def measure_read_bandwidth(size: int = 1 << 29, repeats: int = 7) -> float:
    """Return the bytes per second at which all threads together read a CPU's memory: the fastest of several sums."""
    numbers = torch.ones(size // 4)
    seconds = []
    for _ in range(repeats):
        started = perf_counter()
        numbers.sum()
        seconds.append(perf_counter() - started)
    return size / min(seconds)


def describe_memory(model: LanguageModel) -> dict[str, Any] | None:
    """Return the bound of autoregressive decoding for run.json; None if the model is not on the CPU."""
    if model.device.type != "cpu":
        return None
    return {"weight_bytes": count_weight_bytes(model.model), "read_bytes_per_second": measure_read_bandwidth()}


def measure_copy_bandwidth(device: torch.device, size: int | None = None, repeats: int = 5) -> float:
    """Return the median bytes per second of large copies, read and written bytes both counted.

    size: bytes of the source; by default 1 GiB on a GPU and 256 MiB on a CPU, beyond their caches. Reading alone may be
    faster than copying, so a forward below its ceiling is not an error.
    """
    size = size or (1 << 28 if device.type == "cpu" else 1 << 30)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source).copy_(source)
    return 2 * size * COPIES / median(_time_copies(source, target) for _ in range(repeats))


def _time_copies(source: Tensor, target: Tensor) -> float:
    synchronize(source.device)
    started = perf_counter()
    for _ in range(COPIES):
        target.copy_(source)
    synchronize(source.device)
    return perf_counter() - started


@dataclass(frozen=True)
class Card:
    """A roofline card on disk. rows: see `measure_forwards`."""

    title: str
    folder: Path
    rows: pd.DataFrame

    @property
    def table(self) -> Table:
        """The card for the terminal."""
        return build_cost_table(self.rows, self.title)


def write_card(settings: RunSettings, out: Path, say: Callable[[str, bool], None] = lambda what, timed: None) -> Card:
    """Load and measure the target, write its card and run.json into `out`, and return it.

    say: shows what is running, and whether it is timed. Raises InputError if `out` holds a run, whose run.json would be lost.
    """
    if RunDirectory(out).is_run():
        raise InputError(f"out={out} holds a run; choose another folder for the card")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    say("loading the target", False)
    target = load_target(settings.target)
    say("preparing the target's forward", False)
    choice = choose_forward(target.model, [Shape(), Shape(several=True)])
    device, dtype = target.model.device, target.model.dtype_name
    say("timing forwards", True)
    frame = measure_forwards(target.model)
    shaped = f", expanded to {settings.target.shape}" if settings.target.shape else ""
    random = ", random weights" if settings.target.weights == "random" else ""
    title = f"One {choice.kind} forward of {target.name}{shaped}{random}\n{dtype} on {get_device_name(device)}"
    about = {
        "target": target.name,
        "dtype": dtype,
        "settings": settings.recorded["target"],
        "forward": {"target": asdict(choice)},
    }
    RunDirectory(out).write_provenance(collect_provenance(device) | about)
    write_files(frame, out, title)
    return Card(title, out, frame)


def write_files(frame: pd.DataFrame, out: Path, title: str = TITLE) -> list[Path]:
    """Write cost.csv, cost.md, cost.png and cost.svg into `out`; return their paths."""
    write_atomic(out / "cost.csv", str(frame.to_csv(index=False, float_format="%.6g")))
    write_atomic(out / "cost.md", format_cost(frame, title))
    return [out / "cost.csv", out / "cost.md", *plot_cost(frame, out / "cost", title)]


def plot_cost(frame: pd.DataFrame, out: Path, title: str = TITLE) -> list[Path]:
    """Plot milliseconds against tokens per forward, one line per context, its ceiling dashed."""
    with use_figure_settings():
        figure = Figure(figsize=(7.5, 4.8), layout="constrained")
        axes = figure.subplots()
        for number, (context, rows) in enumerate(frame.groupby("context")):
            look: dict[str, Any] = {"color": PALETTE[number % len(PALETTE)], "linewidth": 1.6}
            axes.vlines(rows["tokens"], rows["milliseconds_low"], rows["milliseconds_high"], **look)
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(rows["tokens"], rows["milliseconds"], marker=marker, markersize=5, label=f"context {context}", **look)
            axes.plot(rows["tokens"], rows["ceiling_ms"], linestyle="--", **look)
        axes.plot([], [], color=INK, linestyle="--", label="weight and KV bytes at the memory's speed")
        _label_axes(axes, sorted(frame["tokens"].unique()), title)
        return save_figure(figure, out)


def _label_axes(axes: Axes, tokens: list[int], title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, [str(n) for n in tokens])
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)
    axes.set_xlabel("tokens per forward")
    axes.set_ylabel("milliseconds, median and quartiles")
    axes.set_title(title)
    axes.legend(loc="upper left")


def _format_lines(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return header and rows as text: per tokens and context, milliseconds and the ratio to 1 token; the ceilings last."""
    contexts = sorted(frame["context"].unique())
    cells = {(row.tokens, row.context): f"{_format_ms(row.milliseconds)} ({row.relative:.2f})" for row in frame.itertuples()}
    ceilings = frame[frame["tokens"] == 1].set_index("context")["ceiling_ms"]
    rows = [[str(n), *(cells[n, context] for context in contexts)] for n in sorted(frame["tokens"].unique())]
    rows.append(["ceiling", *(_format_ms(ceilings[context]) for context in contexts)])
    return ["tokens", *(f"context {context}" for context in contexts)], rows


def _format_ms(milliseconds: Any) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def _format_caption(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    bandwidth = (first["weight_bytes"] + first["kv_bytes"]) / first["ceiling_ms"] / 1e6
    return (
        f"Median, and in brackets the ratio to 1 token. Ceiling: {first['weight_bytes'] / 1e6:.4g} MB of weights and "
        f"the KV entries at the memory's measured speed, {bandwidth:.3g} GB/s."
    )


def build_cost_table(frame: pd.DataFrame, title: str = TITLE) -> Table:
    """Build the card for the terminal."""
    header, rows = _format_lines(frame)
    table = Table(
        title=Text(title), title_justify="left", caption=_format_caption(frame), caption_justify="left", box=SIMPLE_HEAD
    )
    for name in header:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def format_cost(frame: pd.DataFrame, title: str = TITLE) -> str:
    """Format the card in GitHub's Markdown."""
    header, rows = _format_lines(frame)
    table = format_markdown_table(header, rows, left=0)
    return "\n".join([f"**{title}**", "", *table, "", _format_caption(frame), ""])
