"""One self-contained HTML page: alarms, headline, settings, figures, losslessness, costs, every row, examples and terms.

The template escapes everything that comes from a run, except the SVG of our own figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from specbench.analysis.disturbance import COUNTS
from specbench.analysis.loaded_run import LoadedRun, find_first
from specbench.analysis.strata import COLUMNS
from specbench.analysis.summary import is_sampled
from specbench.records.nested import look_up
from specbench.records.trial import BASELINE, OVERALL
from specbench.report.alarm import Alarm
from specbench.report.baseline import describe_rivals
from specbench.report.disturbance import list_disturbed_blocks
from specbench.report.forest import Panel
from specbench.report.palette import Style, list_colours
from specbench.report.strata import describe_few, list_levels
from specbench.report.tables import (
    describe_fastest,
    format_label,
    format_number,
    format_rank,
    format_share,
    list_shown_tasks,
    order_by_speed,
)

EXAMPLES = 6
LONGEST = 160  # characters of a method's settings; config.yaml has all
COSTS = {"memory": "peak_memory_mb", "energy": "joules_per_token"}  # not measured on every machine


@dataclass(frozen=True)
class Section:
    """One run on the page. figures: (caption, inline SVG); engines: tables of words; strata: see tabulate_strata.

    panels: the page's own figure.
    """

    run: LoadedRun
    summary: pd.DataFrame
    alarms: Sequence[Alarm]
    figures: Sequence[tuple[str, str]]
    engines: Sequence[pd.DataFrame] = ()
    strata: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS))
    looks: Style = field(default_factory=dict)
    panels: Sequence[Panel] = ()


@dataclass(frozen=True)
class Across:
    """What is said of all runs together. figures: (caption, inline SVG); table: of words, the methods first."""

    figures: Sequence[tuple[str, Markup]] = ()
    table: pd.DataFrame | None = None


@dataclass(frozen=True)
class Progress:
    """How far a run is. seconds: until the page loads itself again; None: never."""

    text: str
    seconds: int | None


NOTHING = Across()


def render_page(sections: Sequence[Section], across: Across = NOTHING, progress: Progress | None = None) -> str:
    """Return the HTML text, which fetches nothing. progress: of a run that is not finished."""
    environment = build_environment(Path(__file__).parent)
    environment.filters.update(
        share=format_share,
        rank=format_rank,
        seeds=lambda value: "" if value != value else f" ± {value:.2f}",
    )
    views = [_build_view(section) for section in sections]
    looks = {name: look for section in sections for name, look in section.looks.items() if name != BASELINE}
    return environment.get_template("page.html.jinja").render(
        views=views,
        across=across,
        progress=progress,
        targets=", ".join(dict.fromkeys(view["target"] for view in views)),
        longest=max(len(method["label"]) for view in views for method in view["methods"]),
        methods=looks,
        tasks=dict.fromkeys(task for view in views for task in view["tasks"]),
    )


def render_waiting(text: str, seconds: int) -> str:
    """Return the page of a run without a number yet; it loads itself again after so many seconds."""
    return build_environment().get_template("waiting.html.jinja").render(text=text, seconds=seconds)


def build_environment(*folders: Path) -> Environment:
    """Return an environment with the templates of these folders and of this one, which escapes all values."""
    loader = FileSystemLoader([*folders, Path(__file__).parent])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters.update(number=format_number, breakable=lambda label: Markup("_<wbr>").join(str(label).split("_")))
    environment.globals["colours"] = list_colours()
    return environment


def _build_view(section: Section) -> dict[str, Any]:
    run, summary = section.run, section.summary
    ordered = order_by_speed(summary)
    methods = _list_methods(run, ordered)
    return {
        "name": run.name,
        "target": _format_target(summary.iloc[0]) or run.name,
        "expanded": bool(summary["shape"].iloc[0]),
        "headline": describe_fastest(summary),
        "facts": _collect_facts(run, summary),
        "tasks": list_shown_tasks(summary),
        "methods": methods,
        "reference": next((method["overall"] for method in methods if method["baseline"]), methods[0]["overall"]),
        "panels": section.panels,
        "unmeasured": [name for name, column in COSTS.items() if summary[column].isna().all()],
        "rows": ordered.to_dict("records"),
        "alarms": section.alarms,
        "disturbed": list_disturbed_blocks(run),
        "figures": [(caption, Markup(svg)) for caption, svg in section.figures],
        "engines": section.engines,
        "levels": list_levels(section.strata),
        "few": describe_few(section.strata),
        "examples": select_examples(run),
        "settings": _list_settings(run, ordered),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, default_flow_style=None),
        "provenance": json.dumps(run.provenance, indent=2, ensure_ascii=False),
    }


def _list_methods(run: LoadedRun, summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one row per method: its cells by task, its certification, and the length of its longest answer in tokens."""
    longest = run.frame.groupby("method")["new_tokens"].max()
    methods = []
    for name, rows in summary.groupby("method", sort=False):
        cells = {row["task"]: row for row in rows.to_dict("records")}
        known, overall = run.certified.get(str(name)), cells[OVERALL]
        row = {"label": format_label(overall), "baseline": name == BASELINE, "cells": cells, "overall": overall}
        methods.append({**row, "known": known, "longest": int(longest[name])})
    return methods


def _list_settings(run: LoadedRun, summary: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return label, class and settings of every method."""
    configured = run.config.get("method") or {}
    rows = []
    for label in summary["method"].unique():
        settings = dict(configured.get(label.partition("@")[0]) or {})
        class_ = str(settings.pop("_target_", ""))
        line = _format_settings(settings)
        rows.append((label, class_, line if len(line) <= LONGEST else line[:LONGEST] + "…"))
    return rows


def _format_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_format_setting(value)}" for name, value in settings.items() if name != "_target_")


def _format_setting(value: Any) -> str:
    """Return a setting in words: none, yes, no; a list as 0 1 0-0; what is built of settings as Rest (longest 16, shortest 2)."""
    if isinstance(value, Mapping):
        _, _, class_ = str(value.get("_target_", "")).rpartition(".")
        name = f"{class_} " if class_[:1].isupper() else ""  # a function's says less than what it is given
        return f"{name}({_format_settings(value)})"
    if isinstance(value, list):
        return " ".join("-".join(map(_format_setting, one)) if isinstance(one, list) else _format_setting(one) for one in value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def _format_target(row: pd.Series) -> str:
    return f"{row['target']}, expanded to {row['shape']}" if row["shape"] else str(row["target"])


def _collect_facts(run: LoadedRun, summary: pd.DataFrame) -> dict[str, str]:
    row = summary.iloc[0]
    overall = summary[(summary["method"] == BASELINE) & (summary["task"] == OVERALL)]
    counts = overall.iloc[0] if len(overall) else row
    workload = f"{counts['questions']} questions × {counts['repeats']} repeats"
    limit = find_first(run.config, "sampling.max_new_tokens")
    workload += f", at most {limit} tokens per turn" * bool(limit)
    versions = look_up(run.provenance, "versions") or {}
    changes = " and changes" * bool(look_up(run.provenance, "git.dirty"))
    seeds = f", {counts['repeats']} seeds" * is_sampled(row["temperature"])
    facts = {
        "target": _format_target(row),
        "device": row["device"],
        "machine": _format_machine(run),
        "dtype": row["dtype"],
        "batch": f"{row['batch']} questions side by side" if row["batch"] > 1 else "",
        "engine": row["engine"],
        "temperature": f"{row['temperature']}{seeds}",
        "answers end": row["ends"],
        "chat template": row["template"],
        "suite": f"{run.trials[0].suite}, {workload}",
        "licence of the questions": find_first(run.provenance, "suite.licence"),
        "source of the questions": find_first(run.provenance, "suite.source"),
        "date": find_first(run.provenance, "started"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "commit": str(find_first(run.provenance, "git.commit"))[:12] + changes,
        "other autoregressive engines": describe_rivals(run.provenance.get("baseline") or []),
        "disturbed turns": _format_disturbed(summary),
        "numbers": row["kind"],
        "texts": "kept as hashes" * bool(run.provenance.get("stripped")),
        "certified": "; ".join(sorted({one.coverage for one in run.certified.values()})),
        "datastores": "; ".join(_list_stores(run)),
    }
    return {name: str(value) for name, value in facts.items() if value != ""}


def _format_disturbed(summary: pd.DataFrame) -> str:
    """Return how many turns were disturbed and what became of them; empty if that was not watched."""
    sums = summary.loc[summary["task"] == OVERALL, COUNTS].sum(min_count=1)
    if sums.isna().all():
        return ""
    ever, again, left = map(int, sums.fillna(0))
    return f"{ever}; {again} turns were measured again, {left} are still disturbed" if ever else "none"


def _format_machine(run: LoadedRun) -> str:
    machine = look_up(run.provenance, "machine") or {}
    parts = [f"{machine[name]} {name}" for name in ("cores", "threads") if machine.get(name)]
    if memory := machine.get("memory_bytes"):
        parts.append(f"{memory / 1e9:.0f}\N{NO-BREAK SPACE}GB")
    return ", ".join(parts)


def _list_stores(run: LoadedRun) -> list[str]:
    """Describe the datastores of each method, and how many of the run's questions they contain."""
    return [
        f"{method}: {store['name']}, {store['tokens']:,} tokens, holds {store['leaked']} of {store['questions']} questions"
        for method, stores in (run.provenance.get("leakage") or {}).items()
        for store in stores
    ]


def select_examples(run: LoadedRun) -> list[dict[str, Any]]:
    """Return up to EXAMPLES turns, different tasks first: {task, question_id, turn, baseline, outputs}."""
    tasks = {trial.question_id: trial.task for trial in run.trials}
    turns: dict[tuple[Any, Any], dict[str, str]] = {}
    for row in run.texts:
        if row["text"] is None:
            continue
        texts = turns.setdefault((row.get("question_id"), row.get("turn")), {})
        texts[str(row.get("method"))] = str(row.get("text"))
    usable = [key for key, texts in turns.items() if BASELINE in texts and len(texts) > 1]
    leading = list({tasks.get(key[0], ""): key for key in reversed(usable)}.values())[::-1]
    chosen = [*leading, *(key for key in usable if key not in leading)][:EXAMPLES]
    return [_build_example(tasks.get(key[0], ""), key[0], key[1], turns[key]) for key in chosen]


def _build_example(task: str, question_id: Any, turn: Any, texts: Mapping[str, str]) -> dict[str, Any]:
    baseline = texts[BASELINE]
    outputs = [_compare_output(method, text, baseline) for method, text in texts.items() if method != BASELINE]
    return {"task": task, "question_id": question_id, "turn": turn, "baseline": baseline, "outputs": outputs}


def _compare_output(method: str, text: str, baseline: str) -> dict[str, Any]:
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, baseline, strict=False)))
    return {"method": method, "same": text == baseline, "shared": text[:shared], "rest": text[shared:]}
