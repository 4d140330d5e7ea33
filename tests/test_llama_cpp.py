"""A real llama.cpp server (the wheel xllamacpp) beside specbench's own loop: the same texts, steps and counts in float32."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from specbench.analysis.engines import END, find_step_difference, tabulate_engines
from specbench.analysis.load import tabulate_load
from specbench.analysis.loaded_run import LoadedRun, read_run
from specbench.errors import InputError
from specbench.exchange.gguf_file import export_gguf
from specbench.models.load import load_draft
from specbench.records.trial import Trial
from specbench.replay.run import replay_run
from specbench.running.execute import execute
from specbench.setup.compose import compose_run
from specbench.setup.objects import load_target, load_target_tokenizer
from tests.fake_engine import Quiet

# found, not imported: it would share torch's OpenMP runtime in this process
pytestmark = [pytest.mark.full, pytest.mark.skipif(find_spec("xllamacpp") is None, reason="needs the extra llama_cpp")]
FLOAT32 = ["target.dtype=float32", "engine.llama_cpp.values.numbers=-fa off -ctk f32 -ctv f32 -ctkd f32 -ctvd f32"]
EAGER = "engine.native.forward=eager"
SHORT = ["limit=1", "task=[mt_bench,rag]", "sampling.max_new_tokens=48", "check_baseline=false", "threads=1"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """A run of both engines."""
    out = tmp_path_factory.mktemp("both") / "run"
    return read_run(
        execute(compose_run(["engine=[native,llama_cpp]", "repeats=1", EAGER, *FLOAT32, *SHORT, f"out={out}"]), Quiet())
    )


def list_turns(run: LoadedRun, label: str) -> list[Trial]:
    return sorted(
        (trial for trial in run.trials if trial.method == label), key=lambda trial: (str(trial.question_id), trial.turn)
    )


def test_both_engines_agree_and_every_difference_is_explained(both: LoadedRun) -> None:
    """One test, so that one process makes the run."""
    for method in ("autoregressive", "sps", "pld"):
        check_texts(list_turns(both, method), list_turns(both, f"{method}@llama_cpp"))
    check_steps(list_turns(both, "sps"), list_turns(both, "sps@llama_cpp"))
    check_look_up(list_turns(both, "pld"), list_turns(both, "pld@llama_cpp"))
    check_clocks(list_turns(both, "sps@llama_cpp"))
    rows = {row["label"]: row for row in tabulate_engines(both).to_dict("records")}
    row = rows["sps@llama_cpp"]
    assert row["same_texts"] == row["compared_turns"] == 3 and str(row["reasons"]).partition(":")[0] in ("", END)
    servers = both.provenance["servers"]["llama_cpp"]
    assert set(servers) == {"autoregressive", "sps", "pld"} and servers["sps"]["url"].startswith("http://127.0.0.1:")


def check_texts(ours: list[Trial], theirs: list[Trial]) -> None:
    assert len(ours) == 3 and not any(trial.failed for trial in theirs)
    assert [trial.output_ids for trial in ours] == [trial.output_ids for trial in theirs]
    assert [trial.finish_reason for trial in ours] == [trial.finish_reason for trial in theirs]


def check_steps(ours: list[Trial], theirs: list[Trial]) -> None:
    """Equal but for the count of a drafted end of sequence, which llama.cpp takes for the target's own token."""
    for here, there in zip(ours, theirs, strict=True):
        difference = find_step_difference(there, here)
        assert here.committed == there.committed
        assert difference is None or (difference.reason == END and difference.step == here.steps), difference
        assert there.steps and sum(there.drafted or ()) > 0


def check_look_up(ours: list[Trial], theirs: list[Trial]) -> None:
    """llama.cpp looks for three tokens alone, specbench also for two."""
    drafts = [[drafted for trial in turns for drafted in trial.drafted or () if drafted] for turns in (ours, theirs)]
    assert 0 < len(drafts[1]) < len(drafts[0]) and max(drafts[1]) == 10


def check_clocks(turns: list[Trial]) -> None:
    for trial in turns:
        assert trial.client_first_s is not None and trial.client_last_s is not None and trial.decode_s is not None
        assert trial.client_last_s >= trial.client_first_s > 0
        assert trial.draft_forwards is None and trial.peak_memory_bytes is None


def test_a_server_alone_under_load_needs_no_model_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = compose_run([*FLOAT32, "engine=[llama_cpp]"])
    target = load_target(export.target)
    export_gguf(target.model, target.tokenizer, "mini", tmp_path / "mini.gguf")
    monkeypatch.setattr("specbench.setup.objects.load_target", lambda _: pytest.fail("the target was loaded"))
    loaded = ["engine=[llama_cpp]", f"engine.llama_cpp.values.model='{tmp_path}/mini.gguf'", "method=[pld]", "concurrency=2"]
    settings = compose_run([*loaded, "repeats=2", *FLOAT32, *SHORT, f"out={tmp_path}/run", "limit=2"])
    run = read_run(execute(settings, Quiet()))
    assert len(run.trials) == 2 * 2 * 6 and not any(trial.failed for trial in run.trials)
    assert {trial.client for trial in run.trials} == {0, 1} and all(trial.concurrency == 2 for trial in run.trials)
    assert not (tmp_path / "run" / ".gguf").exists()
    replayed, _, _ = replay_run(tmp_path / "run", compose_run(["method=[pld]", f"out={tmp_path}/replayed"]))
    assert len(read_run(replayed).trials) == 2 * 6 and {one.kind for one in read_run(replayed).trials} == {"replayed"}
    rows = {row["method"]: row for row in tabulate_load(run).to_dict("records")}
    assert rows["pld"]["passes"] == 2 and 0 < rows["pld"]["requests"] <= 4 * 2


def test_another_model_than_the_target_is_refused(tmp_path: Path) -> None:
    settings = compose_run(["engine=[llama_cpp]", *FLOAT32])
    draft = load_draft(settings.target.draft, "cpu", "pretrained")
    tokenizer, _ = load_target_tokenizer(settings.target)
    export_gguf(draft, tokenizer, "draft", tmp_path / "draft.gguf")
    wrong = ["engine=[llama_cpp]", f"engine.llama_cpp.values.model='{tmp_path}/draft.gguf'", "method=[pld]", *FLOAT32, *SHORT]
    with pytest.raises(InputError, match=r"the server of autoregressive at .*: its model has 0\.6 M weights, the target 6\.6 M"):
        execute(compose_run([*wrong, f"out={tmp_path}/run"]), Quiet())
