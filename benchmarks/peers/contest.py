"""Arms that decode the same prompts in turns; every answer is compared with specbench's."""

from time import sleep

from benchmarks.peers.arms import Arm, Job
from benchmarks.peers.results import Turn
from specbench.cli.output import print_lines
from specbench.machine.load import LoadMeter
from specbench.records.trial import BASELINE

PAUSE = 0.2  # seconds between turns: an engine's threads may spin for a while after their last work


class Contest:
    """Lets arms decode in turns. texts: of specbench's autoregressive decoding, or of the first arm, by prompt."""

    def __init__(self, job: Job, arms: list[Arm]) -> None:
        self.job, self.arms = job, arms
        self.texts: dict[int, list[int]] = {}
        self.turns: list[Turn] = []
        self._load = LoadMeter(job.target.model.device)
        self._processes = frozenset[int]().union(*(arm.processes for arm in arms))

    def run(self, rounds: int) -> None:
        """Run the warm-up and the rounds. The order of arms moves on by one with every prompt."""
        for number in range(rounds + 1):
            for prompt in range(len(self.job.prompts)):
                shift = (number + prompt) % len(self.arms) if number else 0
                for arm in self.arms[shift:] + self.arms[:shift]:
                    self.turns.append(self._run_turn(arm, number, prompt))
            print_lines(
                f"{'warm-up' if number == 0 else f'round {number}'}: {len(self.arms)} arms, {len(self.job.prompts)} prompts"
            )

    def _run_turn(self, arm: Arm, number: int, prompt: int) -> Turn:
        sleep(PAUSE)
        self._load.start(foreign=self._processes - arm.processes)
        answer = arm.decode(self.job.prompts[prompt])
        disturbed = self._load.stop(arm.worker == "caller").find_reasons()
        text = strip_end(answer.ids, self.job.sampling.stop_token_ids)
        expected = self.texts.setdefault(prompt, text)
        counts = (len(answer.ids), answer.tokens, answer.seconds, answer.drafted)
        return Turn(number, arm.engine, arm.method, prompt, *counts, find_difference(text, expected), disturbed)

    def find_notes(self) -> list[str]:
        """Return how many timed turns were disturbed, and each drafting arm that reports no drafts."""
        timed = [turn for turn in self.turns if turn.round > 0]
        disturbed = sum(bool(turn.disturbed) for turn in timed)
        notes = [f"something else used the machine during {disturbed} of {len(timed)} timed turns"] if disturbed else []
        drafted = {arm.label: [turn.drafted for turn in self.turns if turn.label == arm.label] for arm in self.arms}
        silent = [arm.label for arm in self.arms if arm.method != BASELINE and set(drafted[arm.label]) <= {0}]
        return notes + [f"{label} drafted nothing" for label in silent]


def strip_end(ids: list[int], stops: tuple[int, ...]) -> list[int]:
    """Return an answer without the token that ended it, which some engines leave out."""
    return ids[:-1] if ids and ids[-1] in stops else ids


def find_difference(text: list[int], expected: list[int]) -> int | None:
    """Return the place of the first token that differs; None if all are equal."""
    if text == expected:
        return None
    return next((i for i, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), min(len(text), len(expected)))
