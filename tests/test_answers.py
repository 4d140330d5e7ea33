"""Spec-Bench's answer files, there and back."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.errors import InputError
from specbench.exchange.spec_bench import export_answers, import_answers
from specbench.records.run_directory import RunDirectory
from tests.conftest import Cli
from tests.fake_run import made_up_trials, write_run

WORDS = "w"  # one token each


def run_with_texts(folder: Path) -> RunDirectory:
    """Texts whose words are the tokens that autoregressive's were counted as."""
    trials = made_up_trials({"pld": 0.4, "sps": 0.7}, ("writing", "qa"), questions=5)
    trials = [replace(trial, task="mt_bench" if trial.task == "writing" else trial.task) for trial in trials]
    recounted = {trial.key: 50 + int(trial.question_id) % 7 for trial in trials}
    run = write_run(folder, [replace(t, retokenised=recounted[t.key] if t.method == "autoregressive" else None) for t in trials])
    for trial in trials:
        if trial.repeat == 0:
            run.append_text(trial.method, trial.question_id, 0, " ".join([WORDS] * recounted[trial.key]), None)
    return run


def spec_bench_speedups(folder: Path, method: str) -> dict[str, float]:
    """As its speed.py computes them: slow and plain, from methods.md's description."""
    by_task: dict[str, list[float]] = defaultdict(list)
    for repeat in (1, 2):
        rates = {}
        for label in (method, "autoregressive"):
            rows = [
                json.loads(line) for line in (folder / f"model_answer_run_{repeat}" / f"{label}.jsonl").read_text().splitlines()
            ]
            for task, categories in {"mt_bench": ["writing"], "qa": ["qa"], "overall": ["writing", "qa"]}.items():
                speeds = []
                for choice in (row["choices"][0] for row in rows if row["category"] in categories):
                    recount = sum(len(("<s> " + text).split()) - 1 for text in choice["turns"])
                    tokens = recount if label == "autoregressive" else sum(choice["new_tokens"])
                    speeds.append(tokens / sum(choice["wall_time"]))
                rates[label, task] = np.array(speeds).mean()
        for task in ("mt_bench", "qa", "overall"):
            by_task[task].append(rates[method, task] / rates["autoregressive", task])
    return {task: float(np.mean(ratios)) for task, ratios in by_task.items()}


def test_an_export_gives_our_spec_bench_speedup_to_the_last_digit(tmp_path: Path) -> None:
    run = read_run(run_with_texts(tmp_path / "run").path)
    assert len(export_answers(run, tmp_path / "out")) == 6
    ours = summarise(run).set_index(["method", "task"])["speedup_spec_bench"]
    for method in ("pld", "sps"):
        for task, theirs in spec_bench_speedups(tmp_path / "out", method).items():
            assert ours[method, task] == pytest.approx(theirs, rel=1e-14)


def test_an_export_comes_back_as_a_run(tmp_path: Path) -> None:
    run = read_run(run_with_texts(tmp_path / "run").path)
    export_answers(run, tmp_path / "out")
    first = tmp_path / "out" / "model_answer_run_1"
    import_answers([first / "pld.jsonl"], [first / "autoregressive.jsonl"], None, RunDirectory(tmp_path / "back"))
    back = read_run(tmp_path / "back")
    rows = summarise(back).set_index(["method", "task"])
    ours = summarise(run).set_index(["method", "task"])
    assert set(rows["kind"]) == {"imported"} and rows.loc[("pld", "overall"), "identical"] == 1
    for task in ("mt_bench", "qa", "overall"):
        assert rows.loc[("pld", task), "mean_accepted_tokens"] == pytest.approx(ours.loc[("pld", task), "mean_accepted_tokens"])
        assert rows.loc[("pld", task), "speedup"] == pytest.approx(ours.loc[("pld", task), "speedup"], rel=0.05)


def test_files_of_one_name_are_repeats(cli: Cli, tmp_path: Path) -> None:
    """By hand, as Spec-Bench's eval.py writes them: two runs of two questions, the first of two turns."""
    for repeat, pace in enumerate((1.0, 2.0), 1):
        folder = tmp_path / f"model_answer_temp0_run_{repeat}"
        folder.mkdir()
        (folder / "vicuna.jsonl").write_text(
            by_hand("vicuna", 81, "writing", [1] * 4, pace) + by_hand("vicuna", 241, "qa", [1] * 4, pace)
        )
        (folder / "eagle.jsonl").write_text(
            by_hand("eagle", 81, "writing", [3, 1], pace / 2) + by_hand("eagle", 241, "qa", [2, 2], pace / 4)
        )
    eagle, vicuna = (sorted(map(str, tmp_path.glob(f"*/{name}.jsonl"))) for name in ("eagle", "vicuna"))
    assert cli("import", *eagle, "--baseline", *vicuna, "--out", "run").status == 0
    rows = summarise(read_run(tmp_path / "run")).set_index(["method", "task"])
    assert set(rows["kind"]) == {"imported"} and set(rows["repeats"]) == {2}
    assert rows.loc[("eagle", "mt_bench"), "speedup"] == pytest.approx(2) and rows.loc[
        ("eagle", "qa"), "speedup"
    ] == pytest.approx(4)
    assert rows.loc[("eagle", "overall"), "mean_accepted_tokens"] == 2
    said = cli("report", "run")
    assert said.status == 0 and "imported" in said.out, said.err


def by_hand(model: str, question: int, category: str, lengths: list[int], seconds: float) -> str:
    """A line of an answer file; a question of MT-bench has two turns with half of the steps each."""
    turns = 2 if category == "writing" else 1
    each = len(lengths) // turns
    by_turn = [sum(lengths[each * turn : each * (turn + 1)]) for turn in range(turns)]
    times = [seconds * tokens / sum(lengths) for tokens in by_turn]
    choice = {"index": 0, "turns": ["w " * tokens for tokens in by_turn], "decoding_steps": [each] * turns}
    counts = {"new_tokens": by_turn, "wall_time": times, "accept_lengths": lengths}
    row = {"question_id": question, "category": category, "answer_id": "a", "model_id": model, "choices": [choice | counts]}
    return json.dumps(row | {"tstamp": 1.0}) + "\n"


def test_lines_that_are_no_answers_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question_id": 1, "category": "qa", "choices": [{"turns": ["x"]}]}\n')
    with pytest.raises(InputError, match="a.jsonl:1: not an answer: it has no decoding_steps or idxs"):
        import_answers([], [tmp_path / "a.jsonl"], None, RunDirectory(tmp_path / "back"))
    good = json.loads(by_hand("vicuna", 81, "qa", [1] * 4, 1.0))

    def counting(**changes: list[Any]) -> dict[str, Any]:
        return {"choices": [good["choices"][0] | changes]}

    at_once, failed = (counting(turns=[text], wall_time=[0.0]) for text in ("w", "ERROR"))
    for change, said in (
        ({"question_id": None}, "question_id is not"),
        ({"question_id": [81]}, "question_id is not"),
        ({"category": None}, "category is null, expected text, not blank"),
        (counting(decoding_steps=[-4]), "decoding_steps is below 0"),
        (counting(new_tokens=[-4]), "new_tokens is below 0"),
        (counting(accept_lengths=[1, 1, -1, 1]), "accept_lengths is below 0"),
        (at_once, "wall_time is not above 0"),
        (counting(new_tokens=[1000]), "accept_lengths add up to 4 tokens, but new_tokens to 1000"),
        (counting(new_tokens=[0]), "new_tokens is 0 in a turn whose text is not ERROR"),
        (counting(accept_lengths=[10**9, 1, 1, 1]), "accept_lengths add up to 1000000003 tokens, but new_tokens to 4"),
        (counting(accept_lengths=[0, 0, 0, 0]), "accept_lengths add up to 0 tokens, but new_tokens to 4"),
        (counting(decoding_steps=[7]), "accept_lengths holds 4 steps, but decoding_steps gives 7"),
    ):
        (tmp_path / "c.jsonl").write_text(json.dumps(good | failed) + "\n" + json.dumps(good | change) + "\n")
        with pytest.raises(InputError, match=f"c.jsonl:2: not an answer: {said}"):
            import_answers([], [tmp_path / "c.jsonl"], None, RunDirectory(tmp_path / "back"))
    with pytest.raises(InputError, match="no such file"):
        import_answers([], [tmp_path / "b.jsonl"], None, RunDirectory(tmp_path / "back"))
    run = write_run(tmp_path / "run", made_up_trials({"pld": 0.4}, ("qa",)))
    with pytest.raises(InputError, match="run holds no texts"):
        export_answers(read_run(run.path), tmp_path / "out")


@pytest.mark.parametrize(
    ("lengths", "steps", "tokens"),
    [
        ([3, 4, 4], 3, 12),  # a specbench export: prefill's token is no step's
        ([4, 4, 4], 3, 12),  # EAGLE, Medusa
        ([5, 4, 4], 2, 12),  # Recycling: the prompt's last token counts, the breaking step does not
        ([1, 5, 5, 5], 4, 12),  # Lookahead: its last entry is not cut to the limit
        ([4, 4, 6], 3, 14),  # EAGLE-3, REST: tokens after the end of the text count
    ],
)
def test_what_programs_count_differently_is_no_contradiction(tmp_path: Path, lengths: list[int], steps: int, tokens: int) -> None:
    row = json.loads(by_hand("vicuna", 81, "qa", [1] * 12, 1.0))
    (tmp_path / "vicuna.jsonl").write_text(json.dumps(row) + "\n")
    row["choices"][0] |= {"decoding_steps": [steps], "new_tokens": [tokens], "accept_lengths": lengths}
    (tmp_path / "eagle.jsonl").write_text(json.dumps(row) + "\n")
    import_answers([tmp_path / "eagle.jsonl"], [tmp_path / "vicuna.jsonl"], None, RunDirectory(tmp_path / "back"))
    assert len(read_run(tmp_path / "back").trials) == 2


def test_one_text_has_not_a_hundred_times_the_tokens_of_the_baseline(tmp_path: Path) -> None:
    row = json.loads(by_hand("vicuna", 81, "qa", [1] * 4, 1.0))
    (tmp_path / "vicuna.jsonl").write_text(json.dumps(row) + "\n")
    row["choices"][0] |= {"new_tokens": [400], "decoding_steps": [4], "accept_lengths": [100] * 4}
    (tmp_path / "eagle.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="eagle.jsonl:1: .*new_tokens is 400 for a text that the baseline counts as 4$"):
        import_answers([tmp_path / "eagle.jsonl"], [tmp_path / "vicuna.jsonl"], None, RunDirectory(tmp_path / "back"))


def test_every_method_has_a_file_for_each_baseline(tmp_path: Path) -> None:
    """Else repeats would be paired with none."""
    files = [tmp_path / name for name in ("1/vicuna.jsonl", "2/vicuna.jsonl", "1/eagle.jsonl")]
    with pytest.raises(InputError, match="--baseline: 2 files, eagle has 1"):
        import_answers(files[2:], files[:2], None, RunDirectory(tmp_path / "back"))


def test_an_unfinished_run_is_exported_where_all_methods_have_a_question(tmp_path: Path) -> None:
    """Stopped before sps took question 104 again, and question 2 failed once."""
    whole = run_with_texts(tmp_path / "whole")
    trials = [trial for trial in whole.read_trials() if (trial.method, trial.repeat, trial.question_id) != ("sps", 1, 104)]
    trials = [replace(one, error="killed") if (one.method, one.question_id) == ("pld", 2) else one for one in trials]
    run = write_run(tmp_path / "run", trials)
    for row in whole.read_texts():
        run.append_text(**row)
    export_answers(read_run(run.path), tmp_path / "out")
    for repeat, left in ((1, {0, 1, 3, 4, 100, 101, 102, 103, 104}), (2, {0, 1, 3, 4, 100, 101, 102, 103})):
        for method in ("autoregressive", "pld", "sps"):
            lines = (tmp_path / "out" / f"model_answer_run_{repeat}" / f"{method}.jsonl").read_text().splitlines()
            assert {json.loads(line)["question_id"] for line in lines} == left, (method, repeat)
