"""Methods as the context grows: mini questions after other dialogues, one run per prompt length.

The embedded target was trained on short dialogues: after long prompts the time of a step counts, not its acceptance.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.embedded import check_complete
from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.records.files import write_atomic
from specbench.records.trial import OVERALL
from specbench.running.execute import execute
from specbench.running.progress import ProgressDisplay
from specbench.setup.compose import compose_run
from specbench.setup.objects import load_target_tokenizer
from tasks.mini.generator import generate_dialogues
from tasks.mini.suite import Mini

LENGTHS = (1_000, 2_000, 4_000, 8_000, 16_000)  # tokens of a prompt, about
TASK = "qa"
METHODS = ("pld", "eagle2")


def write_questions(path: Path, length: int, count: int) -> None:
    """Write a file for suite=jsonl, each question after as many training dialogues as fit."""
    tokenizer, _ = load_target_tokenizer(compose_run(["target=mini"]).target)
    lines = []
    for number, question in enumerate(Mini(per_task=count).questions()):
        if question.task != TASK:
            continue
        room = length - len(tokenizer(question.turns[0]).input_ids)
        before: list[str] = []
        for dialogue in generate_dialogues(TASK, "train", number):  # different ones per question
            text = f"{dialogue.exchanges[0].ask}\n{dialogue.exchanges[0].answer}"
            room -= len(tokenizer(text).input_ids)
            if room < 0:
                break
            before.append(text)
        turn = "\n\n".join([*before, question.turns[0]])
        lines.append(json.dumps({"question_id": question.id, "category": TASK, "turns": [turn], "reference": question.reference}))
    write_atomic(path, "".join(f"{line}\n" for line in lines))


def measure(out: Path, lengths: Sequence[int], limit: int, *overrides: str) -> Table:
    """Make a run per length, resumed if interrupted; return ms per step, mean accepted tokens and speedup while decoding.

    Raises InputError for a length beyond the target's context.
    """
    columns = ("prompt tokens", "method", "ms per step", "mean accepted tokens", "speedup, decoding")
    table = Table(*columns, title="As the context grows")
    for length in lengths:
        file = out / f"{length}.jsonl"
        write_questions(file, length, limit)
        chosen = [f"method=[{','.join(METHODS)}]", f"task=[{TASK}]", "suite=jsonl", f"suite.path={file}", f"limit={limit}"]
        chosen += ["check_baseline=false", "sampling.max_new_tokens=64", *overrides, f"out={out / str(length)}"]
        with ProgressDisplay() as display:
            run = read_run(check_complete(execute(compose_run(chosen), display)))
        rows = summarise(run)
        for row in rows[rows["task"] == OVERALL].itertuples():
            turns = run.frame[run.frame["method"] == row.method]
            prompt, step = turns["prompt_tokens"].median(), 1e3 * turns["decode_s"].sum() / turns["steps"].sum()
            numbers = (f"{step:.2f}", f"{row.mean_accepted_tokens:.2f}", f"{row.speedup_decode:.2f}")
            table.add_row(f"{prompt:.0f}", str(row.method), *numbers)
    return table
