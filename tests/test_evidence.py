"""`exact` needs evidence, which stands beside the word wherever it stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specbench.certify.tables import format_certificate
from specbench.records.certificates import find_certifications, read_certificates
from specbench.report.render import render_report
from tests.fake_run import CONFIG, PROVENANCE, trial, write_run
from tests.test_certify import certificate

pytestmark = pytest.mark.full


@pytest.mark.parametrize(
    ("texts", "tokens", "word"),
    [(1, 96, "exact so far"), (13, 96, "exact so far"), (14, 96, "exact"), (500, 32, "exact so far"), (14, 64, "exact")],
)
def test_exact_needs_enough_texts_and_tokens(tmp_path: Path, texts: int, tokens: int, word: str) -> None:
    """13 correct texts leave 20.6 % possible, 14 leave 19.3 %."""
    seen = certificate()
    seen.greedy[0].tests["texts"] = {"texts": texts, "equal": texts, "most_wrong": 0.1, "longest": tokens}
    seen.write(tmp_path / "certificates" / "one")
    run = write_run(tmp_path / "run", [trial("autoregressive", [1, 1], 1.0), trial("pld", [2], 0.5)])
    run.write_config(CONFIG | {"method": {"pld": {"length": 10}}})
    report = render_report([run.path], tmp_path / "out")
    row = report.summary[report.summary["task"] == "overall"].set_index("method").loc["pld"]
    assert row["lossless"] == word and (row["lossless_texts"], row["lossless_tokens"]) == (texts, tokens)
    assert row["lossless_wrong_at_most"] == pytest.approx(1 - 0.05 ** (1 / texts))
    assert f"| {word} ({texts} texts) |" in (report.out / "table.md").read_text()
    assert f"| pld | {word} |" in format_certificate(seen)
    assert f"{texts} texts of at most {tokens} tokens" in (report.out / "table.md").read_text()
    assert f"{texts} texts, ≤&nbsp;{tokens}&nbsp;tokens" in report.page.read_text()


def test_texts_of_unknown_length_are_exact_so_far(tmp_path: Path) -> None:
    """Every one may have ended after five tokens, whatever the limit was."""
    seen = certificate()
    seen.greedy[0].tests["texts"] = {"texts": 500, "equal": 500, "most_wrong": 0.1}
    seen.write(tmp_path / "certificates" / "one")
    run = write_run(tmp_path / "run", [trial("autoregressive", [1, 1], 1.0), trial("pld", [2], 0.5)])
    run.write_config(CONFIG | {"method": {"pld": {"length": 10}}})
    report = render_report([run.path], tmp_path / "out")
    row = report.summary[report.summary["task"] == "overall"].set_index("method").loc["pld"]
    assert row["lossless"] == "exact so far" and row["lossless_tokens"] == 0
    assert "500 texts of unknown length" in (report.out / "table.md").read_text()
    assert "500 texts, ≤&nbsp;0.6&nbsp;% wrong" in report.page.read_text()
    assert "the certificates checked texts of at most" not in report.page.read_text()


def test_more_evidence_wins_over_less(tmp_path: Path) -> None:
    for day, texts in enumerate((14, 1)):
        seen = replace(certificate(), about=PROVENANCE | {"started": f"2026-11-2{day}"})
        seen.greedy[0].tests["texts"] |= {"texts": texts, "equal": texts}
        seen.write(tmp_path / str(texts))
    found = find_certifications(CONFIG | {"method": {"pld": {"length": 10}}}, PROVENANCE, read_certificates([tmp_path])[0])
    assert str(found["pld"]) == "exact" and found["pld"].evidence.texts == 14
