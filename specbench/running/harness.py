"""Run a schedule: warm-up, repeats, disturbed blocks again, resuming, records to disk. Knows no method and no task by name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from specbench.decoding.loop import CapacityError, Generation
from specbench.errors import format_error
from specbench.machine.devices import get_peak_memory, reset_peak_memory
from specbench.machine.energy import Meters
from specbench.machine.load import LoadMeter
from specbench.models.chat import count_retokenised, decode_answer, render_prompt
from specbench.models.target import Target
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE, PER_STEP, BlockKey, Prompt, QuestionId, Trial, TrialKey, hash_ids
from specbench.records.trial_rules import parse_trial
from specbench.running.announce import bound_prompt
from specbench.running.attempts import Attempts
from specbench.running.schedule import Arm, Block, Schedule, form_groups, schedule_blocks
from specbench.watch import Watcher
from tasks.question import Question
from tasks.suite import Suite

WARM_UP_TOKENS = 24

Outcome = tuple[Generation, Mapping[str, Any]] | BaseException  # of a turn: what was generated and measured, or why nothing


class NoContextError(Exception):
    """An earlier turn failed, so this one has nothing to continue from."""


@dataclass
class Harness:
    """Runs the missing trials of a schedule into a run directory. `finished` holds the first attempts on disk.

    Every later turn continues from these, whatever is measured again.
    """

    run: RunDirectory
    target: Target
    suite: Suite
    questions: list[Question]
    arms: list[Arm]
    schedule: Schedule
    watcher: Watcher
    finished: dict[TrialKey, Trial] = field(default_factory=dict, init=False)
    _prompts: dict[tuple[QuestionId, int, str], list[int]] = field(default_factory=dict, init=False)  # question, turn, source
    _recorded: set[tuple[QuestionId, int, str]] = field(default_factory=set, init=False)  # question, turn, sha256

    def __post_init__(self) -> None:
        self._meters = Meters(self.target.model.device)
        self._load = LoadMeter(self.target.model.device)
        self._attempts = Attempts([], self.arms)
        self._groups = form_groups(self.questions, self.schedule.batch)

    def run_schedule(self) -> None:
        """Run the missing trials, and after each repeat the blocks again that were disturbed.

        Keeps the trials on disk, except those of a warm arm's unfinished repeat.
        """
        total = len(self._list_turns()) * self.schedule.repeats * len(self.arms)
        on_disk = self.run.read_attempts()
        self.finished = self._select_finished(on_disk)
        self._attempts = Attempts(on_disk, self.arms)
        self._recorded = {(prompt.question_id, prompt.turn, prompt.sha256) for prompt in self.run.read_prompts()}
        self.watcher.begin(self.run.path, total, len(self.finished))
        if len(self.finished) < total or self._list_affordable(self.schedule.repeats):
            self._warm_up()
        for repeat in range(self.schedule.repeats):
            for arm in self.arms:
                arm.engine.reset(arm.method)
            for block in schedule_blocks(self._groups, self.arms, repeat, self.schedule.seed):
                self._run_block(block)
            self._measure_again(repeat + 1)

    def _select_finished(self, on_disk: list[Trial]) -> dict[TrialKey, Trial]:
        """Return the first attempts that belong to this schedule. A warm arm needs all of a repeat, run by one process."""
        done = {trial.key: trial for trial in on_disk if trial.attempt == 1}
        kept: dict[TrialKey, Trial] = {}
        for arm, repeat in product(self.arms, range(self.schedule.repeats)):
            keys: list[TrialKey] = [(arm.label, repeat, question, turn) for question, turn in self._list_turns()]
            existing = {key: done[key] for key in keys if key in done}
            if arm.state == "cold" or len(existing) == len(keys):
                kept |= existing
        return kept

    def _list_turns(self) -> list[tuple[QuestionId, int]]:
        return [(question.id, turn) for question in self.questions for turn in range(len(question.turns))]

    def _warm_up(self) -> None:
        """Run each task's longest first prompts through every arm, for a few tokens: the run's shapes and its memory."""
        by_task: dict[str, list[list[int]]] = {}
        for question in self.questions:
            by_task.setdefault(question.task, []).append(self._render_prompt(question, 0, BASELINE))
        longest = [sorted(prompts, key=len, reverse=True)[: self.schedule.batch] for prompts in by_task.values()]
        sampling = self.schedule.sampling
        longest_prompt = self._bound_prompt()
        short = replace(sampling, max_new_tokens=min(WARM_UP_TOKENS, sampling.max_new_tokens))
        for arm in self.arms:
            self.watcher.show_status(f"warming up {arm.label}")
            for prompts in longest:
                try:
                    arm.engine.reserve(longest_prompt, sampling, self.schedule.batch)
                    arm.engine.generate_group(arm.method, prompts, [short] * len(prompts))
                except (Exception, SystemExit):  # its trial will report the error
                    continue

    def _bound_prompt(self) -> int:
        """Return an upper bound of prompt tokens: whole conversations in which every answer has its maximum length."""
        target = self.target
        longest = bound_prompt(self.questions, target.chat, target.tokenizer, self.schedule.sampling.max_new_tokens)
        return min(longest, self.target.model.context - 1)

    def _run_block(self, block: Block) -> None:
        for order, arm in enumerate(block.order):
            keys = [(arm.label, block.repeat, question.id, block.turn) for question in block.group.questions]
            if block.attempt == 1 and all(key in self.finished for key in keys):
                continue
            trials = self._run_turn(arm, block, order)
            self.run.append_trials(*trials)
            self._attempts.add(*trials)
            for trial in trials:
                self.finished.setdefault(trial.key, trial)
                self.watcher.add_trial(trial)

    def _measure_again(self, repeats: int) -> None:
        """Measure the disturbed blocks of the first repeats again, while there is time for it."""
        every = range(repeats)
        while blocks := self._list_affordable(repeats):
            planned = {b.key: b for r in every for b in schedule_blocks(self._groups, self.arms, r, self.schedule.seed)}
            for block in blocks:
                if self._attempts.can_afford(block):
                    self.watcher.show_status(f"measuring {len(blocks)} disturbed blocks again")
                    self._run_block(planned[block].plan_again(self._attempts.count_attempts(block) + 1))

    def _list_affordable(self, repeats: int) -> list[BlockKey]:
        return list(filter(self._attempts.can_afford, self._attempts.list_disturbed(repeats)))

    def _run_turn(self, arm: Arm, block: Block, order: int) -> list[Trial]:
        """Decode a turn of the block's questions side by side; return a record for each. What fails becomes an error row."""
        prompts: dict[QuestionId, list[int]] = {}
        outcomes: dict[QuestionId, Outcome] = {}
        for question in block.group.questions:
            try:
                prompts[question.id] = self._get_prompt(arm, block, question)
            except (Exception, SystemExit) as error:  # of any method, and the run continues
                outcomes[question.id] = error
        outcomes |= self._decode(arm, block, prompts)
        return [
            self._record(arm, block, order, place, prompts.get(question.id, []), outcomes[question.id])
            for place, question in enumerate(block.group.questions)
        ]

    def _decode(self, arm: Arm, block: Block, prompts: Mapping[QuestionId, list[int]]) -> dict[QuestionId, Outcome]:
        """Return, by question, what was generated with what was measured, or the error."""
        samplings = [self.schedule.get_sampling(block, one) for one in block.group.questions if one.id in prompts]
        if not prompts:
            return {}
        try:
            reset_peak_memory(self.target.model.device)
            self._meters.start()
            self._load.start()
            outs = arm.engine.generate_group(arm.method, list(prompts.values()), samplings)
            load = self._load.stop(arm.engine.in_process)
            measured = {**asdict(self._meters.stop()), "disturbed": load.find_reasons()}
            measured["peak_memory_bytes"] = get_peak_memory(self.target.model.device) if arm.engine.in_process else None
        except (Exception, SystemExit) as error:
            return dict.fromkeys(prompts, error)
        return {question: out.error or (out, measured) for question, out in zip(prompts, outs, strict=True)}

    def _record(self, arm: Arm, block: Block, order: int, place: int, ids: list[int], outcome: Outcome) -> Trial:
        """Return the record of a question's turn; an error row if its text cannot be read, or its record."""
        question = block.group.questions[place]
        about = {
            **self._describe_trial(arm, block, place),
            "order": order,
            "prompt_tokens": len(ids),
            "prompt_sha256": hash_ids(ids),
        }
        try:
            if isinstance(outcome, BaseException):
                raise outcome
            out, measured = outcome
            results = {**measured, **self._collect_results(arm, block, question, out)}
            return parse_trial(Trial(**about, **results).to_row())
        except (Exception, SystemExit) as error:
            return parse_trial(Trial(**about, **_describe_failure(error)).to_row())

    def _describe_trial(self, arm: Arm, block: Block, place: int) -> dict[str, Any]:
        group, question = block.group, block.group.questions[place]
        return {
            "run_id": self.run.name,
            "suite": self.suite.name,
            "task": question.task,
            "category": question.category,
            "question_id": question.id,
            "turn": block.turn,
            "context": self.schedule.context,
            "method": arm.label,
            "seed": self.schedule.get_seed(block.repeat),
            "repeat": block.repeat,
            "state": arm.state,
            "kind": arm.kind,
            "attempt": block.attempt,
            "arms": len(block.order) * len(group.questions) if block.attempt > 1 else None,
            "batch": len(group.questions),
            "group": group.number,
            "place": None if group.number is None else place,
        }

    def _get_prompt(self, arm: Arm, block: Block, question: Question) -> list[int]:
        """Return prompt ids (T,), recorded in prompts.jsonl the first time. Raises NoContextError."""
        own = self.schedule.context == "own" and block.turn > 0
        source = arm.label if own else BASELINE
        key = (question.id, block.turn, source)
        if key not in self._prompts:
            self._prompts[key] = self._render_prompt(question, block.turn, source)
            self._record_prompt(question, block.turn, self._prompts[key], source if own else None)
        return self._prompts[key]

    def _render_prompt(self, question: Question, turn: int, source: str) -> list[int]:
        conversation: list[tuple[str, str | None]] = []
        for earlier in range(turn):
            ids = self.finished[(source, 0, question.id, earlier)].output_ids
            if ids is None:
                raise NoContextError(f"turn {earlier + 1} of {source} failed, so turn {turn + 1} has no context")
            conversation.append((question.turns[earlier], decode_answer(self.target.chat, self.target.tokenizer, ids)))
        return render_prompt(self.target.chat, [*conversation, (question.turns[turn], None)], self.target.tokenizer)

    def _record_prompt(self, question: Question, turn: int, ids: list[int], method: str | None) -> None:
        key = (question.id, turn, hash_ids(ids))
        if key not in self._recorded:
            self._recorded.add(key)
            strata = dict(question.strata) or None
            prompt = Prompt(question_id=question.id, turn=turn, prompt_ids=ids, sha256=key[2], method=method, strata=strata)
            self.run.append_prompt(prompt)

    def _collect_results(self, arm: Arm, block: Block, question: Question, out: Generation) -> dict[str, Any]:
        """Return counts, seconds and ids; of repeat 0's first attempts also write the text and its score to texts.jsonl."""
        text = decode_answer(self.target.chat, self.target.tokenizer, out.output_ids)
        if block.repeat == 0 and block.attempt == 1:
            score = self.suite.score(question, block.turn, text)
            self.run.append_text(arm.label, question.id, block.turn, text, score)
        return {
            "new_tokens": len(out.output_ids),
            "finish_reason": out.finish_reason,
            **(_collect_steps(out) if out.sees_steps else {}),
            "decode_s": out.decode_s,
            "draft_s": out.draft_s,
            "verify_s": out.verify_s,
            "output_ids": out.output_ids if block.repeat == 0 else None,
            "output_sha256": hash_ids(out.output_ids),
            "retokenised": count_retokenised(self.target.tokenizer, text) if arm.label == BASELINE else None,
        }


def _describe_failure(error: BaseException) -> dict[str, Any]:
    reason = "capacity" if isinstance(error, CapacityError) else "error"
    text = str(error) if isinstance(error, (CapacityError, NoContextError)) else format_error(error)
    return {"new_tokens": 0, "finish_reason": reason, "error": text}


def _collect_steps(out: Generation) -> dict[str, Any]:
    counts = {"steps": out.steps, "target_forwards": out.steps + 1, "draft_forwards": out.draft_forwards}
    return {**counts, **{name: getattr(out, name) for name in PER_STEP}, "prefill_s": out.prefill_s}
