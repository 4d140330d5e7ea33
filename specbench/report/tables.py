"""The headline table, methods × tasks, for the terminal, Markdown, LaTeX; and the whole summary as CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from specbench.analysis.metrics import OVERALL
from specbench.records.trial import BASELINE

Row: TypeAlias = pd.Series
MARKED = ("warm", "synthetic", "replayed", "imported")  # states and kinds that a label must say

_LATEX = str.maketrans(
    {
        "_": r"\_",
        "&": r"\&",
        "%": r"\%",
        "#": r"\#",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
    }
    | {"^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)


def grid(summary: pd.DataFrame, cell: Callable[[Row], str], missing: str = "–") -> pd.DataFrame:
    """Strings, a row per run and method; columns run (if several), method, tasks, overall, totals."""
    tasks = shown_tasks(summary)
    several = summary["run"].nunique() > 1
    rows = []
    for (run, _), cells in summary.groupby(["run", "method"], sort=False):
        by_task = {str(row["task"]): row for _, row in cells.iterrows()}
        label = marked(by_task[OVERALL])
        shape = by_task[OVERALL]["shape"]
        called = f"{run} (expanded to {shape})" if shape and not pd.isna(shape) else run
        name = {"run": called, "method": label} if several else {"method": label}
        speedups = {task: cell(by_task[task]) if task in by_task else missing for task in tasks}
        rows.append({**name, **speedups, **_totals(by_task[OVERALL], missing)})
    return pd.DataFrame(rows)


def shown_tasks(summary: pd.DataFrame) -> list[str]:
    """The tasks in their order, overall last and only where there are several."""
    tasks = [str(task) for task in summary["task"].unique() if task != OVERALL]
    return [*tasks, OVERALL] if len(tasks) > 1 else tasks


def _totals(row: Row, missing: str) -> dict[str, str]:
    return {
        "rank": rank(row, missing),
        "mean accepted tokens": spread(row["mean_accepted_tokens"], row["mean_accepted_tokens_seed_sd"], missing),
        "tokens/s": _number(row["tokens_per_second"], 1, missing),
        "identical": share(row["identical"], missing),
        "lossless": str(row["lossless"]),
    }


def rank(row: Row | Mapping[Any, Any], missing: str = "–") -> str:
    """3, or 3–5 where it cannot be told from its neighbours."""
    if pd.isna(row["rank_best"]):
        return missing
    best, worst = int(row["rank_best"]), int(row["rank_worst"])
    return str(best) if best == worst else f"{best}–{worst}"


def _number(value: float, places: int, missing: str) -> str:
    return missing if pd.isna(value) else f"{value:.{places}f}"


def spread(value: float, over_seeds: float, missing: str = "–") -> str:
    """2.31, or 2.31 ± 0.04 where several seeds were drawn: the standard deviation over them."""
    return _number(value, 2, missing) + ("" if pd.isna(over_seeds) else f" ± {over_seeds:.2f}")


def share(value: float, missing: str = "–") -> str:
    """A percentage that says 100% only of everything."""
    if pd.isna(value):
        return missing
    return "100%" if value == 1 else f"{min(value, 0.999):.1%}"


def marked(row: Row | Mapping[Any, Any]) -> str:
    """The label, with a mark where the method kept state from question to question, knew the answer, or was not timed here."""
    marks = [mark for mark in (row["state"], row["kind"]) if mark in MARKED]
    return " ".join([str(row["method"]), *(f"({mark})" for mark in marks)])


def interval_cell(row: Row) -> str:
    """2.31 [2.20, 2.44]; overall of several seeds 2.31 ± 0.04 [2.20, 2.44]; autoregressive 1.00; – without a number."""
    return _cell(row, " [{}, {}]")


def _terminal_cell(row: Row) -> str:
    return _cell(row, "\n[dim]{}–\n{}[/dim]").replace(" ± ", "\n±")


def _latex_cell(row: Row) -> str:
    return _cell(row, r" {{\scriptsize [{}, {}]}}", missing="--")


def _cell(row: Row, interval: str, missing: str = "–") -> str:
    speedup = spread(row["speedup"], row["speedup_seed_sd"] if row["task"] == OVERALL else float("nan"), missing)
    if row["method"] == BASELINE or pd.isna(row["speedup_low"]):
        return speedup
    return speedup + interval.format(f"{row['speedup_low']:.2f}", f"{row['speedup_high']:.2f}")


def terminal(summary: pd.DataFrame, run: str = "") -> Table:
    """The headline for the terminal, the 95 % interval below; eleven columns fit 80. `run` tells it apart from others."""
    cells = grid(summary, _terminal_cell)
    title = f"{run}: " * bool(run) + "Speedup over autoregressive decoding, with its 95 % interval"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.caption, table.caption_justify = expansion(summary) or None, "left"
    for name in cells.columns:
        if name in ("run", "method"):
            table.add_column(name, no_wrap=name == "method")
        else:
            table.add_column(name.replace("_", " "), justify="right", overflow="fold", min_width=4)
    for values in cells.itertuples(index=False):
        table.add_row(*values)
    return table


def markdown(summary: pd.DataFrame) -> str:
    """The headline in GitHub's Markdown, with the limits of the 95 % interval."""
    cells = grid(summary, interval_cell)
    header = [name.replace("_", " ") for name in cells.columns]
    rule = ["---" if name in ("run", "method") else "---:" for name in cells.columns]
    lines = [header, rule, *cells.itertuples(index=False)]
    table = "\n".join("| " + " | ".join(text.replace("|", r"\|") for text in line) + " |" for line in lines) + "\n"
    return table + f"\n{said}\n" if (said := expansion(summary)) else table


def latex(summary: pd.DataFrame) -> str:
    """The headline as a booktabs tabular."""
    cells = grid(summary, _latex_cell, missing="--")
    layout = "".join("l" if name in ("run", "method") else "r" for name in cells.columns)
    names = [name for name in cells.columns if name in ("run", "method")]
    header = " & ".join(name.translate(_LATEX) for name in cells.columns)
    lines = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", header + r" \\", r"\midrule"]
    for row in cells.to_dict("records"):
        texts = [text.translate(_LATEX) if name in names else text.replace("%", r"\%") for name, text in row.items()]
        lines.append(" & ".join(text.replace("–", "--").replace("±", r"$\pm$") for text in texts) + r" \\")
    said = [f"% {expansion(summary)}"] * bool(expansion(summary))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *said, ""])


def expansion(summary: pd.DataFrame) -> str:
    """What has to be said below a table of an expanded target; empty where there is none."""
    rows = summary[summary["shape"].fillna("").astype(str) != ""]
    names = [f"{target} expanded to {shape}" for target, shape in rows[["target", "shape"]].drop_duplicates().to_numpy()]
    return f"{', '.join(names)}: acceptance is the small model's, cost the large one's." if names else ""
