"""One self-contained HTML page: alarms, the headline, what was run, figures, losslessness, costs, every row, examples, words.

Everything that comes from a run is escaped by the template; only the SVG that figures.py drew goes in as it
is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from specbench.analysis.loaded_run import LoadedRun, find_first, look_up
from specbench.analysis.metrics import OVERALL
from specbench.analysis.summary import is_sampled
from specbench.records.trial import BASELINE
from specbench.report.alarms import Alarm, describe_rivals
from specbench.report.tables import format_interval, format_label, format_rank, format_share, list_shown_tasks

EXAMPLES = 6
LONGEST = 160  # characters of a method's settings; config.yaml has them all
COSTS = {"memory": "peak_memory_mb", "energy": "joules_per_token"}  # that a machine may not measure
WORDS = {
    "target": "the model whose output is wanted.",
    "method": "a drafter (what proposes tokens) plus its settings.",
    "step": (
        "one draft and one verify: one target forward over the draft tree, then choosing the accepted "
        "path. Prefill is not a step."
    ),
    "mean accepted tokens": (
        "tokens committed per step, the recovered or bonus token included; autoregressive decoding "
        "has 1.00. Also written τ, acceptance length or MAT."
    ),
    "acceptance rate": "accepted draft tokens / depth of the draft offered.",
    "speedup": (
        "rate of the method / rate of autoregressive decoding, paired per question: geometric mean "
        "over questions, repeats averaged first. The interval is a 95 % studentised bootstrap over "
        "questions, below six of them, or four a task, Student's t; overall weighs every task the same."
    ),
    "pooled speedup": "ratio of all tokens per all seconds: how long the whole job takes.",
    "median speedup": "median over questions; overall the geometric mean of the tasks' medians.",
    "Spec-Bench speedup": (
        "Spec-Bench's own estimator, the ratio of mean rates over a re-tokenised baseline. For "
        "comparison with published tables only."
    ),
    "tokens per forward": "new tokens / (steps + 1): prefill counted, for autoregressive decoding exactly 1.",
    "conversion": (
        "geometric mean over questions of speedup / tokens per forward: how much of the acceptance "
        "becomes time. Above 1 beyond noise, the baseline ran slower code."
    ),
    "warm": "a method that keeps state from question to question; cleared at the start of each repeat.",
    "synthetic": "a yardstick: its drafts are made from the answer itself, so its speedup is no method's.",
    "identical": "share of turns whose output ids equal autoregressive's, which has the same random numbers above temperature 0."
    " Methods that draw their drafts, typical acceptance and other engines write other samples there.",
    "rank": "by overall speedup; a range where neighbours cannot be told apart: paired t-tests of all pairs, Holm's procedure, so"
    " that all ranks hold together with 95 %.",
    "± behind a number": "standard deviation over seeds, where every repeat drew with one of its own.",
    "accuracy": "mean score of the answers against the suite's own references, first repeat.",
    "lossless": "what specbench certify found of this method with these settings on this target. exact: every text is"
    " autoregressive's, token for token; tie: where one differs, the target itself is undecided within its rounding; sampled:"
    " drafts are drawn, and no test found another distribution than the target's; lossy: by design; bug: claimed lossless, and"
    " is not; untested: it stopped. In another version: of our code, torch or transformers. A certificate says nothing of texts"
    " longer than those it followed.",
    "ms per token": "milliseconds per token of a question, prefill included: its median over questions and 90th percentile, with"
    " 95 % intervals that are order statistics.",
    "peak memory": "the most that the process held in any turn of the method, of the accelerator where there is one; 10^6 bytes.",
    "joules per token": "energy of the whole card or processor over the method's turns / new tokens.",
}

EXPANDED = (
    "Expanded: the small target and its drafters are laid into the full shape of a larger model at load, outputs unchanged."
    " Texts, drafts and accepted tokens, and so mean accepted tokens and accuracy, are the small model's; the time of every"
    " forward and the memory are the large one's. A speedup is what a method makes of such acceptance at such a cost, and"
    " says nothing of how well drafters predict a model that was trained at that size."
)


@dataclass(frozen=True)
class Section:
    """One run on the page: `figures` are (caption, inline SVG) made by figures.py."""

    run: LoadedRun
    summary: pd.DataFrame
    alarms: Sequence[Alarm]
    figures: Sequence[tuple[str, str]]


def render_page(sections: Sequence[Section], across: Sequence[tuple[str, str]] = ()) -> str:
    """The HTML text; it asks the network for nothing. across: (caption, inline SVG) of figures of all runs together."""
    environment = build_environment(Path(__file__).parent)
    environment.filters.update(
        share=format_share,
        rank=format_rank,
        breakable=_break_label,
        seeds=lambda value: "" if value != value else f" ± {value:.2f}",
    )
    views = [_build_view(section) for section in sections]
    targets = ", ".join(dict.fromkeys(view["target"] for view in views))
    figures = [(caption, Markup(svg)) for caption, svg in across]
    longest = max(len(method["label"]) for view in views for method in view["methods"])
    told = {"targets": targets, "longest": longest, "words": WORDS}
    return environment.get_template("page.html.jinja").render(views=views, across=figures, **told)


def build_environment(*folders: Path) -> Environment:
    """Templates of these folders, which may include page.css and sort.js, too; what is put in is escaped."""
    loader = FileSystemLoader([*folders, Path(__file__).parent])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["number"] = _format_number
    return environment


def _break_label(label: str) -> Markup:
    """A long name breaks behind its underscores."""
    return Markup("_<wbr>").join(str(label).split("_"))


def _build_view(section: Section) -> dict[str, Any]:
    run, summary = section.run, section.summary
    return {
        "name": run.name,
        "target": _format_target(summary.iloc[0]) or run.name,
        "expanded": EXPANDED if summary["shape"].iloc[0] else "",
        "headline": _format_headline(summary),
        "facts": _collect_facts(run, summary),
        "tasks": list_shown_tasks(summary),
        "methods": _list_methods(run, summary),
        "unmeasured": [name for name, column in COSTS.items() if summary[column].isna().all()],
        "rows": summary.to_dict("records"),
        "alarms": section.alarms,
        "figures": [(caption, Markup(svg)) for caption, svg in section.figures],
        "examples": select_examples(run),
        "settings": _list_settings(run, summary),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, default_flow_style=None),
        "provenance": json.dumps(run.provenance, indent=2, ensure_ascii=False),
    }


def _format_headline(summary: pd.DataFrame) -> str:
    """Which method is the fastest, and which others may be."""
    rows = summary[(summary["task"] == OVERALL) & (summary["method"] != BASELINE) & (summary["kind"] != "synthetic")]
    rows = rows.dropna(subset=["speedup"]).sort_values("speedup", ascending=False)
    if rows.empty:
        return ""
    others = ", ".join(format_label(row) for row in rows[1:].to_dict("records") if row["rank_best"] == 1)
    told = f"Fastest: {format_label(rows.iloc[0])}, {format_interval(rows.iloc[0])} times autoregressive decoding."
    return told + f" Not told apart from the fastest: {others}." * bool(others)


def _list_methods(run: LoadedRun, summary: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a method: its cells by task, what its certificate says, and the tokens of its longest answer."""
    longest = run.frame.groupby("method")["new_tokens"].max()
    methods = []
    for name, rows in summary.groupby("method", sort=False):
        cells = {row["task"]: row for row in rows.to_dict("records")}
        known, overall = run.certified.get(str(name)), cells[OVERALL]
        row = {"label": format_label(overall), "baseline": name == BASELINE, "cells": cells, "overall": overall}
        methods.append({**row, "known": known, "longest": int(longest[name])})
    return methods


def _list_settings(run: LoadedRun, summary: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Of every method its label, its class and its settings in a line."""
    methods = run.config.get("method")
    configured = methods if isinstance(methods, Mapping) else {}
    found = []
    for label in summary["method"].unique():
        own = configured.get(label.partition("@")[0])
        settings = dict(own) if isinstance(own, Mapping) else {}
        class_ = str(settings.pop("_target_", ""))
        line = ", ".join(f"{name} {value}" for name, value in settings.items())
        found.append((label, class_, line if len(line) <= LONGEST else line[:LONGEST] + "…"))
    return found


def _format_target(row: pd.Series) -> str:
    return f"{row['target']}, expanded to {row['shape']}" if row["shape"] else str(row["target"])


def _collect_facts(run: LoadedRun, summary: pd.DataFrame) -> dict[str, str]:
    row = summary.iloc[0]
    overall = summary[(summary["method"] == BASELINE) & (summary["task"] == OVERALL)]
    counted = overall.iloc[0] if len(overall) else row
    asked = f"{counted['questions']} questions × {counted['repeats']} repeats"
    most = find_first(run.config, "sampling.max_new_tokens")
    asked += f", at most {most} tokens a turn" * bool(most)
    versions = look_up(run.provenance, "versions")
    named = versions.items() if isinstance(versions, Mapping) else ()
    facts = {
        "target": _format_target(row),
        "device": row["device"],
        "machine": _format_machine(run),
        "dtype": row["dtype"],
        "engine": row["engine"],
        "temperature": f"{row['temperature']}, {counted['repeats']} seeds"
        if is_sampled(row["temperature"])
        else row["temperature"],
        "suite": f"{run.trials[0].suite}, {asked}",
        "date": find_first(run.provenance, "started"),
        "versions": ", ".join(f"{name} {version}" for name, version in named if version),
        "commit": _format_commit(run),
        "autoregressive otherwise": describe_rivals(run.provenance.get("baseline") or []),
        "numbers": row["kind"],
        "certified": "; ".join(sorted({one.coverage for one in run.certified.values()})),
        "datastores": "; ".join(_list_stores(run)),
    }
    return {name: str(value) for name, value in facts.items() if value != ""}


def _format_machine(run: LoadedRun) -> str:
    machine = look_up(run.provenance, "machine") or {}
    counts = [f"{machine[name]} {name}" for name in ("cores", "threads") if machine.get(name)]
    memory = machine.get("memory_bytes")
    return ", ".join([*counts, *([f"{memory / 1e9:.0f}\N{NO-BREAK SPACE}GB"] if memory else [])])


def _format_commit(run: LoadedRun) -> str:
    return str(find_first(run.provenance, "git.commit"))[:12] + " and changes" * bool(look_up(run.provenance, "git.dirty"))


def _list_stores(run: LoadedRun) -> list[str]:
    """What each method looks its drafts up in, and how many of the run's questions stand there."""
    return [
        f"{method}: {store['name']}, {store['tokens']:,} tokens, holds {store['leaked']} of {store['questions']} questions"
        for method, stores in (run.provenance.get("leakage") or {}).items()
        for store in stores
    ]


def select_examples(run: LoadedRun) -> list[dict[str, Any]]:
    """Up to EXAMPLES turns, different tasks first: {task, question_id, turn, baseline, outputs}."""
    tasks = {trial.question_id: trial.task for trial in run.trials}
    turns: dict[tuple[Any, Any], dict[str, str]] = {}
    for row in run.texts:
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


def _format_number(value: Any, places: int = 2) -> str:
    if value is None or value == "" or pd.isna(value):
        return "–"
    return f"{value:.{places}f}"
