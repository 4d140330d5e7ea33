"""Which blocks of a run were disturbed and are to be measured again, within the time that this may take."""

from collections.abc import Iterable, Sequence

from specbench.analysis.disturbance import find_disturbed
from specbench.records.attempts import get_attempt_key, select_complete, select_counted
from specbench.records.trial import BlockKey, QuestionId, Trial
from specbench.running.schedule import Arm

MORE_TIME = 0.2  # of the time of all first attempts so far: what all later ones may take
MOST_ATTEMPTS = 3  # at one block


class Attempts:
    """All attempts at the turns of a run, from its file: what a killed run had spent and measured is known when it is resumed."""

    def __init__(self, trials: Iterable[Trial], arms: Sequence[Arm]) -> None:
        self._labels = {arm.label for arm in arms}
        self._cold = {arm.label for arm in arms if arm.state == "cold"}
        self._trials: list[Trial] = []
        self._first = self._later = 0.0  # seconds
        self._fastest: dict[tuple[QuestionId, int], dict[str, float]] = {}  # seconds by unit and turn, then cold method
        self._groups: set[tuple[str, BlockKey, int]] = set()  # whose time has been counted
        self.add(*trials)

    def add(self, *trials: Trial) -> None:
        for trial in trials:
            self._trials.append(trial)
            if not self._is_counted(trial):
                self._count(trial)

    def _is_counted(self, trial: Trial) -> bool:
        """Whether another question of the trial's group has brought its time."""
        return trial.group is not None and (trial.method, trial.block, trial.attempt) in self._groups

    def _count(self, trial: Trial) -> None:
        self._first += trial.seconds * (trial.attempt == 1)
        self._later += trial.seconds * (trial.attempt > 1)
        if not trial.failed:
            self._groups.add((trial.method, trial.block, trial.attempt))
            if trial.method in self._cold:
                known = self._fastest.setdefault(trial.block[1:], {})
                known[trial.method] = min(trial.seconds, known.get(trial.method, trial.seconds))

    def list_disturbed(self, repeats: int) -> list[BlockKey]:
        """Return the disturbed blocks of the first repeats that may be measured again: fewest attempts first, then slowest.

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
        slow = self._measure_slowdowns(counted)
        return sorted(chosen, key=lambda block: (len(made[block]), -slow[block]))

    def _measure_slowdowns(self, counted: Iterable[Trial]) -> dict[BlockKey, float]:
        """Return, by block, the time of its cold arms over the fastest that is known of these turns."""
        taken: dict[BlockKey, dict[str, float]] = {}
        for trial in counted:
            if trial.method in self._cold:
                known = taken.setdefault(trial.block, {})
                known[trial.method] = max(trial.seconds, known.get(trial.method, 0.0))  # 0 of a question that failed alone
        seconds = {block: sum(known.values()) for block, known in taken.items()}
        return {block: total / self._estimate(block) for block, total in seconds.items() if total}

    def count_attempts(self, block: BlockKey) -> int:
        """Return the number of the last attempt, broken off or not."""
        return max(trial.attempt for trial in self._trials if trial.block == block)

    def can_afford(self, block: BlockKey) -> bool:
        """Whether there is time to measure a block again, if that takes as long as its turns took at their fastest."""
        return self._later + self._estimate(block) <= MORE_TIME * self._first

    def _estimate(self, block: BlockKey) -> float:
        return sum(self._fastest.get(block[1:], {}).values())
