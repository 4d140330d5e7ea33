"""Methods as the context grows: mini questions behind other dialogues, up to a number of tokens, one run for each length.

The embedded target was trained on short dialogues: behind long prompts the time of a step counts, its acceptance says little.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.embedded import whole
from specbench.analysis.loaded_run import read_run
from specbench.analysis.metrics import OVERALL
from specbench.analysis.summary import summarise
from specbench.cli.parser import console
from specbench.records.files import write_atomic
from specbench.running.execute import execute
from specbench.running.progress import ProgressDisplay
from specbench.setup.compose import compose_run
from specbench.setup.objects import load_target_tokenizer
from tasks.mini.generator import generate_dialogues
from tasks.mini.suite import Mini

LENGTHS = (1_000, 2_000, 4_000, 8_000, 16_000)  # tokens of a prompt, about
TASK = "qa"
METHODS = ("pld", "eagle2")


def questions(path: Path, length: int, count: int) -> None:
    """A file for suite=jsonl. Training dialogues stand in front, as many as fit, so that lookups have much to search."""
    tokenizer, _ = load_target_tokenizer(compose_run(["target=mini"]).target)
    lines = []
    for number, question in enumerate(Mini(per_task=count).questions()):
        if question.task != TASK:
            continue
        room = length - len(tokenizer(question.turns[0]).input_ids)
        before: list[str] = []
        for dialogue in generate_dialogues(TASK, "train", number):  # others for each question
            text = f"{dialogue.exchanges[0].ask}\n{dialogue.exchanges[0].answer}"
            room -= len(tokenizer(text).input_ids)
            if room < 0:
                break
            before.append(text)
        turn = "\n\n".join([*before, question.turns[0]])
        lines.append(json.dumps({"question_id": question.id, "category": TASK, "turns": [turn], "reference": question.reference}))
    write_atomic(path, "".join(f"{line}\n" for line in lines))


def measure(out: Path, lengths: Sequence[int], limit: int, *overrides: str) -> Table:
    """A run for every length, resumed if cut; milliseconds a step, mean accepted tokens and speedup while decoding.

    Raises InputError for a length that the target's context does not hold.
    """
    shown = Table(
        "prompt tokens", "method", "ms a step", "mean accepted tokens", "speedup, decoding", title="As the context grows"
    )
    for length in lengths:
        file = out / f"{length}.jsonl"
        questions(file, length, limit)
        chosen = [f"method=[{','.join(METHODS)}]", f"task=[{TASK}]", "suite=jsonl", f"suite.path={file}", f"limit={limit}"]
        config = compose_run(
            [*chosen, "check_baseline=false", "sampling.max_new_tokens=64", *overrides, f"out={out / str(length)}"]
        )
        with ProgressDisplay(console) as display:
            run = read_run(whole(execute(config, display)))
        rows = summarise(run)
        for row in rows[rows["task"] == OVERALL].itertuples():
            turns = run.frame[run.frame["method"] == row.method]
            prompt, step = turns["prompt_tokens"].median(), 1e3 * turns["decode_s"].sum() / turns["steps"].sum()
            numbers = (f"{step:.2f}", f"{row.mean_accepted_tokens:.2f}", f"{row.speedup_decode:.2f}")
            shown.add_row(f"{prompt:.0f}", str(row.method), *numbers)
    return shown
