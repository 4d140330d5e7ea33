"""A certificate as a table for the terminal, and as a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from specbench.records.certificates import Certificate, Verdict
from specbench.records.evidence import EXACT, LEAST_TOKENS, MOST_WRONG, SO_FAR
from specbench.records.markdown import format_markdown_table

COLUMNS = ("method", "temperature 0", "equal texts", "wrong at most", "sampled", "same text", "enumerated")


def build_certificate_table(certificate: Certificate) -> Table:
    table = Table(*COLUMNS, title=_format_title(certificate))
    for cells, bad in _build_rows(certificate):
        table.add_row(*cells, style="bold red" if bad else "")
    return table


def format_certificate(certificate: Certificate) -> str:
    table = format_markdown_table(COLUMNS, [cells for cells, _ in _build_rows(certificate)])
    return "\n".join([f"# {_format_title(certificate)}", "", *table, "", *_format_notes(certificate)]) + "\n"


def _format_title(certificate: Certificate) -> str:
    target, sampling = certificate.config["target"], certificate.config["sampling"]
    name = " ".join(filter(None, (target["name"], target["shape"], certificate.about["dtype"])))
    rules = [f"temperature {sampling['temperature']:g}"]
    rules += [f"top-p {sampling['top_p']:g}"] * (sampling["top_p"] < 1)
    rules += [f"top-k {sampling['top_k']}"] * (sampling["top_k"] > 0)
    return f"Certificate: {name}, greedy and at {', '.join(rules)}"


def _build_rows(certificate: Certificate) -> list[tuple[tuple[str, ...], bool]]:
    rows: list[tuple[tuple[str, ...], bool]] = []
    for greedy, sampled in zip(certificate.greedy, certificate.sampled, strict=True):
        words = [verdict.evidence.weigh(verdict.class_) for verdict in (greedy, sampled)]
        at_zero = (greedy.method, words[0], _format_equal_texts(greedy), _format_error_bound(greedy))
        cells = (*at_zero, words[1], _format_equal_texts(sampled), _format_enumeration(sampled))
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
    """Explain the columns with this certificate's figures, then list what was found."""
    noise, floor = certificate.noise, certificate.floor
    tests: list[dict[str, Any]] = next((v.tests["enumerated"] for v in certificate.sampled if "enumerated" in v.tests), [])
    finds = ", ".join(f"{test['finds']:.3f} ({test['cells']} cells)" for test in tests)
    draws = tests[0]["draws"] if tests else 0
    lines = [
        "- temperature 0, equal texts: texts equal to autoregressive decoding's, token for token. A text that differs is a `tie`"
        f" where every token is within {noise['greedy']:.3g} of the target's best logit, which is the target's own rounding;"
        " otherwise it is a `bug`. Autoregressive decoding against itself:"
        f" {floor['differing']} of {floor['texts']} texts differ.",
        f"- `{EXACT}`: every text is equal, and there are enough of them: a rate of wrong ones above {MOST_WRONG:.0%} is"
        f" excluded, and the longest has {LEAST_TOKENS} tokens or more. `{SO_FAR}`: every text is equal, with less evidence.",
        "- wrong at most: upper 95 % limit of the rate of texts with a bug (Clopper-Pearson).",
        "- same text: texts sampled with the same random numbers, for methods whose drafts are not drawn. Every token must be the"
        f" one that its random number picks from the target's distribution, within {noise['sampled']:.3g} of probability.",
        "- enumerated: the smallest p-value of G-tests on a miniature target whose distribution is enumerated exactly: of the"
        f" first one, two and three tokens that the method writes and of the second and third alone, in {draws} texts. Rare"
        f" continuations share a cell; the tests detect a total variation distance between the cells of {finds} with a power of"
        f" 0.99. Where a test fails, four times as many texts are drawn again, and only those count{_explain_level(tests)}.",
        f"- All statistical tests together raise a false alarm with a probability of at most {certificate.level:g}.",
    ]
    skipped = {v.method: v.tests["not enumerated"] for v in certificate.sampled if "not enumerated" in v.tests}
    lines += [f"- {method} was not enumerated, only checked token by token: {why}" for method, why in skipped.items()]
    for when, verdicts in (("greedy", certificate.greedy), ("sampled", certificate.sampled)):
        lines += [f"- **{v.method}, {when}**: {v.why}" for v in verdicts if v.why]
        lines += [f"- {v.method}, {when}: {differences}" for v in verdicts if (differences := _format_differences(v))]
    return lines


def _explain_level(tests: Sequence[dict[str, Any]]) -> str:
    return f"; a p-value below {tests[0]['level']:.1g} is a finding" if tests and "level" in tests[0] else ""


def _format_differences(verdict: Verdict) -> str:
    """Say where the first three differing texts diverge."""
    first = verdict.tests.get("texts", {}).get("first", [])
    places = ", ".join(f"at token {index + 1} (gap between the two best logits {gap:.3g})" for index, gap in first[:3])
    return f"texts first differ {places}{' and so on' * (len(first) > 3)}" if first else ""
