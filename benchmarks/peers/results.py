"""The result of the comparison: turns as JSON, rows of engine and method as CSV and Markdown, a figure."""

import json
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from specbench.analysis.summary import format_csv
from specbench.errors import InputError
from specbench.records.files import write_atomic
from specbench.records.markdown import format_markdown_table
from specbench.records.trial import BASELINE
from specbench.report.canvas import add_legend, create_canvas, save_figure, use_figure_settings
from specbench.report.palette import GREY, INK, PALETTE

OWN = "specbench"
COLOURS = dict(zip((OWN, "transformers", "llama.cpp", "OpenVINO"), PALETTE, strict=False))
HEADER = ("engine", "method", "tokens/s", "÷ specbench autoregressive", "÷ own autoregressive", "in each round", "texts equal")


@dataclass(frozen=True)
class Turn:
    """One answer of an engine. round: 0 is the warm-up, which is timed but counts only for texts. differs_at: None if equal."""

    round: int
    engine: str
    method: str
    prompt: int
    new_tokens: int
    tokens: int
    seconds: float
    drafted: int | None
    differs_at: int | None
    disturbed: list[str] | None

    @property
    def label(self) -> str:
        return f"{self.engine}/{self.method}"


def build_rows(turns: list[Turn]) -> pd.DataFrame:
    """Return a row per arm: its rate of decoding as ratios inside a round, and their geometric mean over rounds."""
    arms = {(turn.engine, turn.method): [one for one in turns if one.label == turn.label] for turn in turns}
    rates = {arm: _compute_rates(answers) for arm, answers in arms.items()}
    return pd.DataFrame([_build_row(arm, answers, rates) for arm, answers in arms.items()])


def _compute_rates(turns: list[Turn]) -> list[float]:
    """Return one arm's tokens per second by round, without the warm-up."""
    if not any(turn.seconds for turn in turns if turn.round):
        raise InputError(f"{turns[0].label}: every answer ends with its first token, so there is nothing to time")
    rounds = [[turn for turn in turns if turn.round == number] for number in sorted({turn.round for turn in turns} - {0})]
    return [sum(turn.tokens for turn in one) / sum(turn.seconds for turn in one) for one in rounds]


def _build_row(arm: tuple[str, str], turns: list[Turn], rates: dict[tuple[str, str], list[float]]) -> dict[str, Any]:
    engine, method = arm
    to_ours, to_own = (
        [ours / theirs for ours, theirs in zip(rates[arm], rates.get((name, BASELINE), []), strict=False)]
        for name in (OWN, engine)
    )
    texts, different = {turn.prompt for turn in turns}, {turn.prompt for turn in turns if turn.differs_at is not None}
    return {
        "engine": engine,
        "method": method,
        "tokens_per_second": sum(rates[arm]) / len(rates[arm]),
        "to_specbench": _average(to_ours),
        "speedup": _average(to_own),
        **{f"to_specbench_{number}": ratio for number, ratio in enumerate(to_ours, start=1)},
        "texts_equal": len(texts - different),
        "texts": len(texts),
        "disturbed": sum(bool(turn.disturbed) for turn in turns if turn.round > 0),
    }


def _average(ratios: list[float]) -> float:
    return exp(sum(map(log, ratios)) / len(ratios)) if ratios else float("nan")


def format_row(row: dict[str, Any]) -> list[str]:
    """Return a row's cells under HEADER."""
    rounds = [value for key, value in row.items() if key.startswith("to_specbench_")]
    return [
        row["engine"],
        row["method"],
        f"{row['tokens_per_second']:.1f}",
        _show(row["to_specbench"]),
        _show(row["speedup"]),
        ", ".join(map(_show, rounds)),
        f"{row['texts_equal']} of {row['texts']}",
    ]


def _show(ratio: float) -> str:
    return "" if ratio != ratio else f"{ratio:.2f}"


def plot_rows(rows: pd.DataFrame, title: str) -> Figure:
    """Plot bars of speed over specbench's autoregressive decoding, by method and engine, with a point per round."""
    engines, methods = list(rows["engine"].unique()), list(rows["method"].unique())
    figure, axes = create_canvas(9.5, 4.4)
    width = 0.8 / len(engines)
    for place, engine in enumerate(engines):
        of_engine = rows[rows["engine"] == engine].set_index("method").reindex(methods)
        at = [index - 0.4 + (place + 0.5) * width for index in range(len(methods))]
        axes.bar(at, of_engine["to_specbench"], width=0.9 * width, color=COLOURS[engine], label=engine)
        for column in (name for name in rows if str(name).startswith("to_specbench_")):
            axes.plot(at, of_engine[column], ls="", marker="o", color=INK, markersize=3.5)
    axes.axhline(1, color=GREY, linewidth=1.4, label=f"{OWN}, {BASELINE} = 1")
    axes.set_xticks(range(len(methods)), methods)
    axes.set(ylabel=f"tokens/s over {OWN}'s {BASELINE}")
    axes.set_title(title)
    add_legend(figure, axes)
    return figure


def write_results(stem: Path, about: dict[str, Any], turns: list[Turn], rows: pd.DataFrame, title: str) -> list[Path]:
    """Write stem.json, .csv, .md and the figure as .png, .svg and .pdf."""
    records = rows.to_dict("records")
    document = {"schema": 1, **about, "turns": [asdict(turn) for turn in turns]}
    table = format_markdown_table(HEADER, map(format_row, records), left=2)  # type: ignore[arg-type]
    contents = {
        ".json": json.dumps(document, indent=1, ensure_ascii=False) + "\n",
        ".csv": format_csv(rows),
        ".md": "\n".join([f"# {title}", "", *table, "", *(f"- {note}" for note in about["notes"]), ""]),
    }
    for suffix, content in contents.items():
        write_atomic(stem.with_name(stem.name + suffix), content)
    with use_figure_settings():
        figures = save_figure(plot_rows(rows, title), stem)
    return [*(stem.with_name(stem.name + suffix) for suffix in contents), *figures]
