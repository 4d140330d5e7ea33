"""The certificate passes sound methods and finds every planted bug."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from benchmarks.planted import PLANTS, AcceptsByP, Miniature, Plant, replace_verifier, shift_positions
from specbench.analysis.loaded_run import read_run
from specbench.certify.certify import certify
from specbench.certify.tables import format_certificate
from specbench.certify.token_check import bound_error_rate
from specbench.errors import InputError
from specbench.records.certificates import (
    FILE,
    OWN_FOLDERS,
    Certificate,
    Certification,
    Verdict,
    find_certifications,
    read_certificate,
    read_certificates,
)
from specbench.records.evidence import Evidence
from specbench.report.render import render_report
from specbench.setup.compose import compose_certify
from tests.fake_run import CONFIG, PROVENANCE, trial, write_run
from tests.remembering import Remembers

pytestmark = pytest.mark.full

SMALL = Miniature(draws=1024)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.what}-{plant.part}")
def test_a_planted_bug_is_found(plant: Plant) -> None:
    assert SMALL.find(plant, seed=0)


def test_the_upper_limit_of_a_rate() -> None:
    assert bound_error_rate(0, 480) == pytest.approx(0.00622, abs=1e-5), "1 - 0.05 ** (1 / 480)"
    assert bound_error_rate(3, 3) == 1


def certificate(greedy: str = "exact") -> Certificate:
    texts = {"texts": {"equal": 1, "texts": 1, "most_wrong": 0.95, "longest": 96, "class_": greedy}}
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 96}
    whole = CONFIG | {"sampling": sampling, "method": {"pld": {"length": 10}}}
    verdicts = [Verdict("pld", greedy, texts)], [Verdict("pld", "sampled", texts, "why" * (greedy == "bug"))]
    return Certificate(PROVENANCE, whole, 0.01, {"greedy": 0.1, "sampled": 0.1}, {"texts": 1, "differing": 0}, *verdicts)


def test_a_certificate_goes_through_its_file(tmp_path: Path) -> None:
    result = certificate()
    assert read_certificate(result.write(tmp_path)) == result and result.passed and not certificate("bug").passed
    assert "| pld | exact so far | 1 of 1 | 95.0 % | sampled |" in format_certificate(result)
    assert "- **pld, sampled**: why" in format_certificate(certificate("bug"))
    result.greedy[0].tests["texts"]["first"] = [[6, 0.0123]]
    assert "- pld, greedy: texts first differ at token 7 (gap between the two best logits 0.0123)" in format_certificate(result)
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(InputError, match="not a certificate"):
        read_certificate(tmp_path / FILE)


def test_a_permutation_test_of_an_older_certificate_is_kept_and_not_shown(tmp_path: Path) -> None:
    older = certificate()
    older.sampled[0].tests["permuted"] = {"prompts": 6, "samples": 192, "distance": 1.5, "p_value": 0.0625, "level": 0.001}
    assert read_certificate(older.write(tmp_path)) == older
    assert format_certificate(older) == format_certificate(certificate())


def test_a_run_is_covered_by_a_certificate_of_the_same_target_method_and_sampling(tmp_path: Path) -> None:
    def find(config: dict[str, Any], about: dict[str, Any]) -> dict[str, Certification]:
        certificates, unreadable = read_certificates([tmp_path])
        assert unreadable == ["old/certificate.json"]
        return find_certifications(config, about, certificates)

    certificate().write(tmp_path / "one")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / FILE).write_text('{"schema": 0}')
    run = CONFIG | {"method": {"pld": {"length": 10}, "sps": {}}}
    assert find(run, PROVENANCE) == {"pld": Certification("exact", "2026-11-20", Evidence(1, 96), same_version=True)}
    assert find(run, PROVENANCE)["pld"].coverage == "1 texts of at most 96 tokens, 2026-11-20: at most 95.0% are wrong"
    changes: list[dict[str, object]] = [
        {"code_sha256": "another"},
        {"codes": {"pld": "another"}},
        {"continued": [{"code_sha256": "another"}]},
    ]
    for change in changes:
        assert str(find(run, PROVENANCE | change)["pld"]) == "exact so far, in another version"
    assert find(run, PROVENANCE | {"codes": {"sps": "another"}})["pld"].same_version
    for day, class_ in enumerate(("untested", "tie", "bug", "exact")):
        replace(certificate(class_), about=PROVENANCE | {"started": f"2026-11-2{day}"}).write(tmp_path / class_)
        gravest = {"untested": "exact", "tie": "tie", "bug": "bug", "exact": "bug"}[class_]
        assert find(run, PROVENANCE)["pld"].class_ == gravest, f"after {class_}"
    shutil.rmtree(tmp_path / "bug")
    shutil.rmtree(tmp_path / "tie")
    warm = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert str(find(run | {"sampling": warm}, PROVENANCE)["pld"]) == "sampled"
    target: dict[str, Any] = {"name": "fake", "shape": "100m", "dtype": "bfloat16"}
    others: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (run | {"sampling": warm | {"top_p": 0.9}}, PROVENANCE),
        (run | {"method": {"pld": {"length": 9}}}, PROVENANCE),
        (run | {"target": target | {"shape": None}}, PROVENANCE),
        (run | {"sampling": {"temperature": 0, "min_new_tokens": 9}}, PROVENANCE),
        (run, PROVENANCE | {"dtype": "float32"}),
        (run, PROVENANCE | {"target_sha256": "another"}),
        (run, PROVENANCE | {"checkpoints": {"pld": "another"}}),
        (run | {"target": target | {"config": {"layers": 2}}}, PROVENANCE),
        (run | {"target": target | {"shapes": {"100m": {"hidden_size": 1}}}}, PROVENANCE),
        (run | {"engine": {"hf": {"_target_": "specbench.engine.hf.HuggingFace"}}}, PROVENANCE),
    ]
    assert [find(config, about) for config, about in others] == [{}] * len(others)


def test_a_report_counts_the_same_certificates_wherever_it_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of the checkout and those beside the run; not those of the folder that the shell is in."""
    trials = [trial("autoregressive", [1, 1], 1.0), trial("pld", [2], 0.5)]
    run = write_run(tmp_path / "results" / "run", trials)
    run.write_config(CONFIG | {"method": {"pld": {"length": 10}}})
    certificate().write(tmp_path / "elsewhere" / "results" / "certificates" / "one")
    pages = []
    for folder in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        pages.append(render_report([run.path], tmp_path / "out").page.read_text())
    assert pages[0] == pages[1] and read_run(run.path).certified == {}
    certificate().write(tmp_path / "results" / "certificates" / "one")
    assert str(read_run(run.path).certified["pld"]) == "exact so far"


def overrides(out: Path, *more: str) -> list[str]:
    few = ["limit=1", "task=[qa]", "suite.per_task=2", "draws=256", "sampling.max_new_tokens=16"]
    return ["target.dtype=float32", *few, f"out={out}", *more]


def test_certify_end_to_end(tmp_path: Path) -> None:
    messages: list[str] = []
    config = compose_certify(overrides(tmp_path / "sound", "method=[pld,sps,medusa_typical]"))
    result, out = certify(config, lambda what, *_: messages.append(what))
    assert result.passed and {v.method: v.class_ for v in result.greedy} == dict.fromkeys(
        ["autoregressive", "pld", "sps", "medusa_typical"], "exact so far"
    )
    classes = {v.method: v.class_ for v in result.sampled}
    assert classes == {"autoregressive": "exact so far", "pld": "exact so far", "sps": "sampled", "medusa_typical": "lossy"}
    assert json.loads((out / FILE).read_text())["level"] == 0.01 and (out / "certificate.md").exists()
    assert "sps on the miniature target, by text" in messages


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_drafter_that_remembers_its_first_answers_is_found(tmp_path: Path, everywhere: bool) -> None:
    """The texts are the target's own, so only the steps tell; and the drafter of the texts has seen every prompt."""
    Remembers.shared.clear()
    node = f"{{_target_: tests.remembering.Remembers, everywhere: {everywhere}}}"
    result, _ = certify(compose_certify(overrides(tmp_path, "method=[]", f"+method.cheat={node}")), lambda *_: None)
    greedy = result.greedy[-1]
    assert (greedy.method, greedy.class_) == ("cheat", "bug") and not result.passed
    assert greedy.why == "remembers earlier prompts: 1 of 1 texts took different steps when their prompts came again"
    assert greedy.tests["texts"]["equal"] == greedy.tests["texts"]["texts"]


def test_a_method_that_is_not_what_it_claims_gets_no_certificate(tmp_path: Path) -> None:
    config = compose_certify(overrides(tmp_path / "unsound", "method=[self_speculative]", "draws=512"))
    with replace_verifier(AcceptsByP):
        result, _ = certify(config, lambda *_: None)
    assert not result.passed and {v.method: v.class_ for v in result.sampled}["self_speculative"] == "bug"


def test_typical_acceptance_is_no_excuse_for_a_wrong_end(tmp_path: Path) -> None:
    config = compose_certify(overrides(tmp_path / "endless", "method=[medusa_typical]"))
    with patch("specbench.certify.token_check._ends_correctly", return_value=False):
        result, _ = certify(config, lambda *_: None)
    assert {v.method: v.class_ for v in result.sampled}["medusa_typical"] == "bug"
    assert "texts end in the wrong place" in result.sampled[-1].why


def test_a_baseline_that_stops_is_untested_and_no_traceback(tmp_path: Path) -> None:
    config = compose_certify(overrides(tmp_path / "stopped", "method=[pld]"))
    with patch("specbench.certify.certify.check_tokens", side_effect=RuntimeError("out of memory")):
        result, _ = certify(config, lambda *_: None)
    assert {v.class_ for v in [*result.greedy, *result.sampled]} == {"untested"} and not result.passed


def test_an_architecture_without_a_miniature_is_only_checked_token_by_token(tmp_path: Path) -> None:
    config = compose_certify(overrides(tmp_path / "odd", "method=[pld]"))
    with patch("specbench.certify.certify.build_miniature", side_effect=ValueError("no such thing")):
        result, out = certify(config, lambda *_: None)
    assert result.passed and "pld was not enumerated, only checked token by token" in (out / "certificate.md").read_text()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError, match="expected an interrupted certificate's folder"):
        certify(compose_certify(overrides(tmp_path)), lambda *_: None)


def test_a_method_that_stops_gets_no_certificate_and_the_others_are_judged(tmp_path: Path) -> None:
    config = compose_certify(overrides(tmp_path / "stopped", "method=[pld]"))
    with patch("methods.pld.PromptLookup.propose", side_effect=ValueError("out of ideas")):
        result, out = certify(config, lambda *_: None)
    assert {v.method: v.class_ for v in result.greedy} == {"autoregressive": "exact so far", "pld": "untested"}
    assert "stopped: ValueError: out of ideas" in result.greedy[-1].why and not result.passed
    assert "| pld | untested | - | - | untested | - | - |" in (out / "certificate.md").read_text()


def test_an_interrupted_certificate_is_resumed(tmp_path: Path) -> None:
    arguments = overrides(tmp_path, "method=[pld,medusa_typical]")
    with patch("methods.medusa.Medusa.propose", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        certify(compose_certify(arguments), lambda *_: None)
    assert not (tmp_path / FILE).exists()
    with pytest.raises(InputError, match="holds verdicts of another target"):
        certify(compose_certify([*arguments, "seed=1"]), lambda *_: None)
    messages: list[str] = []
    result, _ = certify(compose_certify(arguments), lambda what, *_: messages.append(what))
    assert "pld greedy: text" not in messages and "medusa_typical greedy: text" in messages
    assert [v.class_ for v in result.greedy] == ["exact so far"] * 3 and sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "certificate.json",
        "certificate.md",
    ]


def test_what_could_show_nothing_is_refused_at_once(tmp_path: Path) -> None:
    messages: list[str] = []
    cold = compose_certify(overrides(tmp_path, "sampling.temperature=0.01"))
    with pytest.raises(InputError, match="draws=256: too few at this temperature"):
        certify(cold, lambda what, *_: messages.append(what))
    assert not messages


def test_a_certificate_is_not_written_over(tmp_path: Path) -> None:
    certificate().write(tmp_path)
    with pytest.raises(InputError, match="already holds a certificate"):
        certify(compose_certify(overrides(tmp_path)), lambda *_: None)


def test_a_bug_of_the_engine_itself_is_no_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference for texts must not come from the code that wrote them. Here the self-test at load has found nothing."""
    monkeypatch.setattr("specbench.models.load.check_forward", lambda model, least: {})
    config = compose_certify(overrides(tmp_path / "shifted", "method=[pld]", "limit=2", "sampling.max_new_tokens=48"))
    with shift_positions():
        result, _ = certify(config, lambda *_: None)
    assert {v.method: v.class_ for v in result.greedy} == {"autoregressive": "exact so far", "pld": "bug"}
    assert result.noise["greedy"] < 0.01


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("~method.autoregressive", "every method is compared with autoregressive"),
        ("sampling.temperature=0", "expected a number from 0.01 to 10"),
        ("level=1e-9", "expected a probability, at least 0.0001"),
        ("draws=10", "at least 256"),
        ("out=/proc/nowhere/at/all", "nowhere"),
    ],
)
def test_bad_input_of_certify_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises((InputError, OSError), match=message):
        certify(compose_certify(overrides(tmp_path, override)), lambda *_: None)


def test_texts_of_one_token_are_checked(tmp_path: Path) -> None:
    result, _ = certify(compose_certify(overrides(tmp_path, "sampling.max_new_tokens=1", "method=[]")), lambda *_: None)
    assert result.passed


@pytest.mark.parametrize("path", sorted(OWN_FOLDERS[0].glob(f"*/{FILE}")), ids=lambda path: path.parent.name)
def test_a_reference_certificate_is_what_its_folder_is_called(path: Path) -> None:
    result = read_certificate(path)
    exact = [verdict.evidence for verdict in [*result.greedy, *result.sampled] if verdict.class_ == "exact"]
    assert exact and all(seen.weigh("exact") == ("exact" if seen.tokens else "exact so far") for seen in exact)
    target = result.config["target"]
    name = f"{target['shape'] or target['name']}-{result.about['dtype']}"
    assert path.parent.name in (name, f"{name}-1", f"{name}-2") and result.passed  # or halves of the presets
    assert target["dtype"] in ("auto", result.about["dtype"])
    assert (path.parent / "certificate.md").read_text().startswith("# Certificate: ")


@pytest.mark.parametrize("first", sorted(OWN_FOLDERS[0].glob(f"*-1/{FILE}")), ids=lambda path: path.parent.name)
def test_two_halves_are_one_certificate(first: Path) -> None:
    """They share the baseline alone; target, code and settings are the same."""
    name = first.parent.name.removesuffix("-1")
    halves = [read_certificate(first.parent.with_name(f"{name}-{half}") / FILE) for half in (1, 2)]
    methods = [set(half.config["method"]) for half in halves]
    assert methods[0] & methods[1] == {"autoregressive"}
    settings = [{key: value for key, value in half.config.items() if key != "method"} for half in halves]
    assert settings[0] == settings[1]
    same = ("code_sha256", "versions", "target_sha256", "dtype")
    assert [halves[0].about[key] for key in same] == [halves[1].about[key] for key in same]
