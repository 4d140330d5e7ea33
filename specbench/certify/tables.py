"""A certificate as tables: for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from specbench.records.certificates import Certificate, Verdict

COLUMNS = ("method", "temperature 0", "equal texts", "wrong at most", "sampled", "same text", "counted out")


def build_certificate_table(certificate: Certificate) -> Table:
    made = Table(*COLUMNS, title=_format_title(certificate))
    for cells, bad in _build_rows(certificate):
        made.add_row(*cells, style="bold red" if bad else "")
    return made


def format_certificate(certificate: Certificate) -> str:
    lines = [f"# {_format_title(certificate)}", "", "| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells) + " |" for cells, _ in _build_rows(certificate)]
    return "\n".join(["", *lines, "", *_format_notes(certificate)]).lstrip() + "\n"


def _format_title(certificate: Certificate) -> str:
    target, sampling = certificate.config["target"], certificate.config["sampling"]
    named = " ".join(filter(None, (target["name"], target["shape"], certificate.about["dtype"])))
    chosen = [f"temperature {sampling['temperature']:g}"]
    chosen += [f"top-p {sampling['top_p']:g}"] * (sampling["top_p"] < 1) + [f"top-k {sampling['top_k']}"] * (
        sampling["top_k"] > 0
    )
    return f"Certificate: {named}, greedy and at {', '.join(chosen)}"


def _build_rows(certificate: Certificate) -> list[tuple[tuple[str, ...], bool]]:
    rows: list[tuple[tuple[str, ...], bool]] = []
    for greedy, sampled in zip(certificate.greedy, certificate.sampled, strict=True):
        at_zero = (greedy.method, greedy.class_, _format_equal_texts(greedy), _format_error_bound(greedy))
        cells = (*at_zero, sampled.class_, _format_equal_texts(sampled), _format_enumeration(sampled))
        rows.append((cells, not {"bug", "untested"}.isdisjoint((greedy.class_, sampled.class_))))
    return rows


def _format_equal_texts(verdict: Verdict) -> str:
    texts = verdict.tests.get("texts")
    return f"{texts['equal']} of {texts['texts']}" if texts else "-"


def _format_error_bound(verdict: Verdict) -> str:
    texts = verdict.tests.get("texts")
    return f"{100 * texts['most_wrong']:.1f} %" if texts else "-"


def _format_enumeration(verdict: Verdict) -> str:
    tests: Sequence[dict[str, Any]] = verdict.tests.get("enumerated_again", verdict.tests.get("enumerated", ()))
    return f"{min(test['p_value'] for test in tests):.2g}" if tests else "-"


def _format_notes(certificate: Certificate) -> list[str]:
    """What the columns say, with this certificate's own figures."""
    noise, floor = certificate.noise, certificate.floor
    tests: list[dict[str, Any]] = next((one.tests["enumerated"] for one in certificate.sampled if "enumerated" in one.tests), [])
    finds = ", ".join(f"{test['finds']:.3f} ({test['cells']} cells)" for test in tests)
    draws = tests[0]["draws"] if tests else 0
    lines = [
        "- temperature 0, equal texts: token for token autoregressive decoding's. A text that differs is a `tie` where every one"
        f" of its tokens is within {noise['greedy']:.3g} of the target's best logit, which is how far the target differs"
        " from itself by rounding; else it is a `bug`. Autoregressive decoding against itself:"
        f" {floor['differing']} of {floor['texts']} texts differ.",
        "- wrong at most: the rate of texts with a bug, upper 95 % limit (Clopper-Pearson).",
        "- same text: sampled with the same random numbers, for methods whose drafts are not drawn. Every token must be the one"
        f" that its random number picks from the target's distribution, within {noise['sampled']:.3g} of probability.",
        "- counted out: the least p-value of G-tests on a miniature target, of the first one, two and three tokens that the"
        f" method writes and of the second and third alone, in {draws} texts. Rare continuations share a cell; a distribution"
        f" that is {finds} away in total variation between the cells is found by them with a power of 0.99. Where they look"
        f" wrong, four times as many texts are drawn afresh, and those count{_explain_level(tests)}.",
        f"- The statistical tests together raise a false alarm with a chance of at most {certificate.level:g}.",
    ]
    untried = {one.method: one.tests["not enumerated"] for one in certificate.sampled if "not enumerated" in one.tests}
    lines += [f"- {method} was not counted out, only followed: {why}" for method, why in untried.items()]
    for when, verdicts in (("greedily", certificate.greedy), ("sampled", certificate.sampled)):
        lines += [f"- **{one.method}, {when}**: {one.why}" for one in verdicts if one.why]
        lines += [f"- {one.method}, {when}: {differences}" for one in verdicts if (differences := _format_differences(one))]
    return lines


def _explain_level(tests: Sequence[dict[str, Any]]) -> str:
    """Which p-values are findings."""
    return f"; a p-value below {tests[0]['level']:.1g} is a finding" if tests and "level" in tests[0] else ""


def _format_differences(verdict: Verdict) -> str:
    """Where the first texts that differ do so."""
    first = verdict.tests.get("texts", {}).get("first", [])
    shown = ", ".join(f"at token {at + 1} (gap of the two best logits {gap:.3g})" for at, gap in first[:3])
    return f"texts differ first {shown}{' and so on' * (len(first) > 3)}" if first else ""
