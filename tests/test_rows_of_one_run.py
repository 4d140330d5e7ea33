"""Rows that no one run can have written together are refused with file and line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specbench.analysis.loaded_run import read_run
from specbench.errors import InputError
from specbench.records.trial import Trial
from tests.fake_run import CONFIG, failed, trial, write_run


def pair(**changes: Any) -> list[Trial]:
    """Both methods' first turn, the second with other fields."""
    return [trial("autoregressive", [1, 1], 1.0), replace(trial("pld", [2], 0.5), **changes)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_tokens": 99}, "prompt_tokens is 99, but 5 in an earlier row of the same turn"),
        ({"prompt_sha256": "0" * 64}, "prompt_sha256 is not that of the same turn in an earlier row"),
        ({"turn": 9}, "turn is 9, but no earlier row has turn 8 of pld"),
        ({"context": "own"}, "context is own, but reference in an earlier row"),
        ({"kind": "imported"}, "kind is imported, but measured or synthetic in an earlier row"),
        ({"method": "ghost"}, "method is 'ghost', which config.yaml does not have"),
        ({"method": "x" * 201}, "method is 'x*…, expected text, not blank"),
        ({"method": " "}, "method is ' ', expected text, not blank"),
        ({"method": "pld\u202e"}, "method is .*, expected text, not blank, without control characters"),
    ],
)
def test_a_row_that_does_not_fit_the_others_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    run = write_run(tmp_path / "run", pair(**changes))
    run.write_config(CONFIG | {"method": {"autoregressive": {}, "pld": {}}})
    with pytest.raises(InputError, match=f"trials.jsonl:2: {said}"):
        read_run(run.path)


def test_what_runs_write_is_read(tmp_path: Path) -> None:
    """A turn that failed has no prompt; second turns differ with contexts of their own; yardsticks are of another kind."""
    second = {"context": "own", "turn": 1}
    trials = [
        trial("autoregressive", [1, 1], 1.0, context="own"),
        failed("pld", context="own", prompt_tokens=0),
        trial("oracle@hf", [2], 0.5, context="own", kind="synthetic"),
        trial("autoregressive", [1, 1], 1.0, **second),
        trial("oracle@hf", [2], 0.5, kind="synthetic", prompt_tokens=7, prompt_sha256="0" * 64, **second),
    ]
    run = write_run(tmp_path / "run", trials)
    run.write_config(CONFIG | {"method": {"pld": {}, "oracle": {}}})
    assert len(read_run(run.path).trials) == 5


def test_texts_and_prompts_are_those_of_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pair())
    run.write_config(CONFIG | {"method": {"pld": {}}})
    run.append_text("ghost", 1, 0, "text", None)
    with pytest.raises(InputError, match="texts.jsonl:1: method is 'ghost'"):
        read_run(run.path)
    (run.path / "texts.jsonl").unlink()
    (run.path / "prompts.jsonl").write_text('{"question_id":1,"turn":0,"prompt_ids":[3],"sha256":"%s"}\n' % ("0" * 64))
    with pytest.raises(InputError, match="prompts.jsonl:1: sha256 is not that of prompt_ids"):
        read_run(run.path)
