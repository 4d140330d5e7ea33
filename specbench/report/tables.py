"""The headline table, methods × tasks, in Markdown and in LaTeX, and what its cells and notes say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import pandas as pd
from rich.text import Text

from specbench.analysis.prompting import DEFAULT, NATURAL
from specbench.analysis.summary import EVIDENCE
from specbench.records.evidence import describe_length
from specbench.records.markdown import format_markdown_table
from specbench.records.trial import BASELINE, OVERALL

SummaryRow: TypeAlias = pd.Series
TOTALS = ("rank", "mean accepted tokens", "tokens/s", "identical", "lossless")  # columns after those of the tasks
USUAL = {"ends": NATURAL, "template": DEFAULT}
MARKS = ("warm", "synthetic", "replayed", "imported")  # states and kinds that a label shows

_LATEX = str.maketrans(
    {char: f"\\{char}" for char in "_&%#${}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)


class Grid(NamedTuple):
    """A table's cells by place, not by column: a task may be called like another column."""

    names: list[str]  # the first columns
    numbers: list[str]  # the others
    rows: list[list[str]]


def build_grid(summary: pd.DataFrame, cell: Callable[[SummaryRow], str], missing: str = "–") -> Grid:
    """Return strings, one row per run and method; columns: run (if several), method, tasks, overall, totals."""
    tasks = list_shown_tasks(summary)
    several = summary["run"].nunique() > 1
    rows = []
    for (run, _), cells in order_by_speed(summary).groupby(["run", "method"], sort=False):
        by_task = {str(row["task"]): row for _, row in cells.iterrows()}
        label = format_label(by_task[OVERALL])
        run_label = f"{run}{_describe_settings(by_task[OVERALL])}"
        speedups = [cell(by_task[task]) if task in by_task else missing for task in tasks]
        totals = _format_totals(by_task[OVERALL], missing)
        rows.append([*[run_label] * several, label, *speedups, *totals, format_verdict(by_task[OVERALL])])
    return Grid(["run", "method"] if several else ["method"], [*tasks, *TOTALS], rows)


def _describe_settings(row: SummaryRow) -> str:
    """Return in brackets what a run's name need not say: the target's shape, the batch, where answers end, the chat template."""
    parts = [f"expanded to {row['shape']}"] if row["shape"] and not pd.isna(row["shape"]) else []
    parts += [f"batch {row['batch']}"] * (row["batch"] > 1)
    parts += [f"answers end {row['ends']}"] * (row["ends"] != NATURAL)
    parts += [f"chat template {row['template']}"] * (row["template"] != DEFAULT)
    return f" ({'; '.join(parts)})" if parts else ""


def order_by_speed(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each run with its fastest method first; autoregressive decoding, at 1.00, is among them."""
    overall = summary[summary["task"] == OVERALL].set_index(["run", "method"])["speedup"]
    keys = {"run": pd.factorize(summary["run"])[0], "method": pd.factorize(summary["method"])[0]}
    slowness = [-overall[run, method] for run, method in zip(summary["run"], summary["method"], strict=True)]
    order = pd.DataFrame({**keys, "slowness": slowness}).sort_values(["run", "slowness", "method"], kind="stable")
    return summary.iloc[order.index]


def list_shown_tasks(summary: pd.DataFrame) -> list[str]:
    """Return the tasks in their order; overall comes last, and only with several tasks."""
    tasks = [str(task) for task in summary["task"].unique() if task != OVERALL]
    return [*tasks, OVERALL] if len(tasks) > 1 else tasks


def _format_totals(row: SummaryRow, missing: str) -> list[str]:
    """Return the cells below TOTALS but the last."""
    return [
        format_rank(row, missing),
        format_spread(row["mean_accepted_tokens"], row["mean_accepted_tokens_seed_sd"], missing),
        format_number(row["tokens_per_second"], 1, missing),
        format_share(row["identical"], missing),
    ]


def format_verdict(row: SummaryRow) -> str:
    """Return what certificates say of a method's text, and how many texts that rests on."""
    texts = "" if pd.isna(row["lossless_texts"]) else f" ({int(row['lossless_texts'])} texts)"
    return f"{row['lossless']}{texts}"


def format_rank(row: SummaryRow | Mapping[Any, Any], missing: str = "–") -> str:
    """Return 3, or 3–5 where it does not differ significantly from its neighbours."""
    if pd.isna(row["rank_best"]):
        return missing
    best, worst = int(row["rank_best"]), int(row["rank_worst"])
    return str(best) if best == worst else f"{best}–{worst}"


def format_number(value: Any, places: int = 2, missing: str = "–") -> str:
    """Return a rounded number, or `missing` for none, nan or an empty text."""
    return missing if value == "" or pd.isna(value) else f"{value:.{places}f}"


def format_spread(value: float, over_seeds: float, missing: str = "–") -> str:
    """Return 2.31, or 2.31 ± 0.04 with the standard deviation over several seeds."""
    return format_number(value, 2, missing) + ("" if pd.isna(over_seeds) else f" ± {over_seeds:.2f}")


def format_share(value: float, missing: str = "–") -> str:
    """Return a percentage that is 100% only if the share is 1."""
    if pd.isna(value):
        return missing
    return "100%" if value == 1 else f"{min(value, 0.999):.1%}"


def format_label(row: SummaryRow | Mapping[Any, Any]) -> str:
    """Return the label, marked if the method is warm, knew the answer, or was not timed here."""
    marks = [mark for mark in (row["state"], row["kind"]) if mark in MARKS]
    return " ".join([str(row["method"]), *(f"({mark})" for mark in marks)])


def format_interval(row: SummaryRow) -> str:
    """Return 2.31 [2.20, 2.44]; overall with several seeds 2.31 ± 0.04 [2.20, 2.44]; autoregressive 1.00; – without a number."""
    return _format_cell(row, " [{}, {}]")


def _format_latex_cell(row: SummaryRow) -> str:
    return _format_cell(row, r" {{\scriptsize [{}, {}]}}", missing="--")


def _format_cell(row: SummaryRow, interval: str, missing: str = "–") -> str:
    speedup = format_spread(row["speedup"], row["speedup_seed_sd"] if row["task"] == OVERALL else float("nan"), missing)
    if row["method"] == BASELINE or pd.isna(row["speedup_low"]):
        return speedup
    return speedup + interval.format(f"{row['speedup_low']:.2f}", f"{row['speedup_high']:.2f}")


def dim_below(cell: str) -> Text:
    """Return a cell whose first line is the number; the others are its limits, or what it rests on."""
    first, *others = cell.split("\n")
    return Text.assemble(first, *((f"\n{line}", "dim") for line in others))


def format_markdown(summary: pd.DataFrame) -> str:
    """Return the headline in GitHub's Markdown, with the limits of the 95 % interval."""
    cells = build_grid(summary, format_interval)
    header = [name.replace("_", " ") for name in (*cells.names, *cells.numbers)]
    table = "\n".join(format_markdown_table(header, cells.rows, len(cells.names))) + "\n"
    return table + "".join(f"\n{note}\n" for note in describe_rows(summary))


def format_words(words: pd.DataFrame) -> str:
    """Return a table of words in GitHub's Markdown; its first column names methods."""
    rows = ([f"`{method}`", *rest] for method, *rest in words.itertuples(index=False))
    return "\n".join(format_markdown_table(list(words.columns), rows, left=1)) + "\n"


def format_latex(summary: pd.DataFrame) -> str:
    """Return the headline as a booktabs tabular."""
    cells = build_grid(summary, _format_latex_cell, missing="--")
    layout = "l" * len(cells.names) + "r" * len(cells.numbers)
    header = " & ".join(name.translate(_LATEX) for name in (*cells.names, *cells.numbers))
    lines = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", header + r" \\", r"\midrule"]
    for row in cells.rows:
        names, numbers = row[: len(cells.names)], row[len(cells.names) :]
        texts = [*(text.translate(_LATEX) for text in names), *(text.replace("%", r"\%") for text in numbers)]
        lines.append(" & ".join(text.replace("–", "--").replace("±", r"$\pm$") for text in texts) + r" \\")
    notes = [f"% {note}" for note in describe_rows(summary)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes, ""])


def describe_fastest(summary: pd.DataFrame) -> str:
    """Name the fastest method, and those that do not differ from it significantly; or say that none beats the baseline."""
    rows = summary[(summary["task"] == OVERALL) & (summary["method"] != BASELINE) & (summary["kind"] != "synthetic")]
    rows = rows.dropna(subset=["speedup"]).sort_values("speedup", ascending=False)
    if rows.empty:
        return ""
    first = rows.iloc[0]
    if first["speedup"] <= 1:
        return "No method is faster than autoregressive decoding."
    others = ", ".join(format_label(row) for row in rows[1:].to_dict("records") if row["rank_best"] == 1 and row["speedup"] > 1)
    headline = f"Fastest: {format_label(first)}, {format_interval(first)} times autoregressive decoding."
    headline += " Its interval includes 1." * bool(first["speedup_low"] <= 1)
    return headline + f" Not significantly slower: {others}." * bool(others)


def describe_rows(summary: pd.DataFrame) -> list[str]:
    """Return the notes below a table."""
    notes = [*filter(None, [describe_expansion(summary)]), *_describe_speed(summary), *_describe_evidence(summary)]
    return [*notes, *_describe_prompting(summary)]


def _describe_prompting(summary: pd.DataFrame) -> list[str]:
    """Return the batch, where answers end and what the chat template is given, if that is not the default."""
    batches = [f"{batch} questions are decoded side by side." for batch in sorted(set(summary["batch"]) - {1})]
    ends, templates = (sorted(set(summary[name].astype(str)) - {usual}) for name, usual in USUAL.items())
    return batches + [f"Answers end {one}." for one in ends] + [f"Chat template: {one}." for one in templates]


def _describe_speed(summary: pd.DataFrame) -> list[str]:
    """Return how fast the baseline is, and how near to the machine's limit."""
    rows = summary[(summary["task"] == OVERALL) & summary["memory_share"].notna()]
    speeds = rows[["decode_tokens_per_second", "memory_share"]].to_numpy()
    return [f"{BASELINE}: {rate:.4g} tokens/s while decoding, {share:.0%} of the memory's speed." for rate, share in speeds]


def _describe_evidence(summary: pd.DataFrame) -> list[str]:
    """Return what the verdicts in the column `lossless` rest on."""
    seen = summary[EVIDENCE].dropna().drop_duplicates().to_numpy()
    parts = [f"{texts:.0f} texts of {describe_length(tokens)}, at most {wrong:.1%} of all wrong" for texts, tokens, wrong in seen]
    return [f"Lossless, with 95 % confidence: {'; '.join(parts)}."] if parts else []


def describe_expansion(summary: pd.DataFrame) -> str:
    """Return the note below a table with expanded targets, or an empty text."""
    rows = summary[summary["shape"].fillna("").astype(str) != ""]
    names = [f"{target} expanded to {shape}" for target, shape in rows[["target", "shape"]].drop_duplicates().to_numpy()]
    return f"{', '.join(names)}: acceptance is the small model's, cost the large one's." if names else ""
