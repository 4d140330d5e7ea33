"""Which blocks of a run were disturbed and are to be measured again, within the time that this may take."""

from collections.abc import Iterable, Sequence

from specbench.analysis.disturbance import find_disturbed
from specbench.records.attempts import get_attempt_key, select_complete, select_counted
from specbench.records.trial import BlockKey, Trial
from specbench.running.schedule import Arm

MORE_TIME = 0.2  # of the time of all first attempts so far: what all later ones may take
MOST_ATTEMPTS = 3  # at one block


class Attempts:
    """All attempts at the turns of a run, from its file: what a killed run had spent and measured is known when it is resumed."""

    def __init__(self, trials: Iterable[Trial], arms: Sequence[Arm]) -> None:
        self._trials = list(trials)
        self._labels = {arm.label for arm in arms}
        self._cold = {arm.label for arm in arms if arm.state == "cold"}

    def add(self, trial: Trial) -> None:
        self._trials.append(trial)

    def list_disturbed(self, repeats: int) -> list[BlockKey]:
        """Return the disturbed blocks of the first repeats that may be measured again, those with the fewest attempts first.

        A block in which only a warm arm was disturbed is none of them, nor one that holds a method that is not among the arms:
        all of a block is measured again, or nothing.
        """
        complete = select_complete(self._trials)
        counted = select_counted(complete)
        reasons = find_disturbed(complete, counted)
        others = {trial.block for trial in counted if trial.method not in self._labels}
        made: dict[BlockKey, set[int]] = {}
        for trial in complete:
            made.setdefault(trial.block, set()).add(trial.attempt)
        hit = {t.block: None for t in counted if t.method in self._cold and get_attempt_key(t) in reasons}  # in their order
        chosen = [block for block in hit if block[0] < repeats and block not in others and len(made[block]) < MOST_ATTEMPTS]
        return sorted(chosen, key=lambda block: len(made[block]))

    def count_attempts(self, block: BlockKey) -> int:
        """Return the number of the last attempt, broken off or not."""
        return max(trial.attempt for trial in self._trials if trial.block == block)

    def can_afford(self, block: BlockKey) -> bool:
        """Whether there is time to measure a block again, if that takes as long as its turns took at their fastest."""
        fastest: dict[str, float] = {}
        for trial in self._trials:
            if trial.block[1:] == block[1:] and trial.method in self._cold:
                fastest[trial.method] = min(trial.seconds, fastest.get(trial.method, trial.seconds))
        first = sum(trial.seconds for trial in self._trials if trial.attempt == 1)
        later = sum(trial.seconds for trial in self._trials if trial.attempt > 1)
        return later + sum(fastest.values()) <= MORE_TIME * first
