"""Run a schedule: warm-up, repeats, disturbed blocks again, resuming, records to disk. Knows no method and no task by name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from specbench.decoding.loop import Generation
from specbench.engine.served import ServedGeneration
from specbench.machine.devices import get_peak_memory, reset_peak_memory
from specbench.machine.energy import Meters
from specbench.machine.load import OTHERS, LoadMeter
from specbench.models.chat import count_retokenised, decode_answer, render_prompt
from specbench.models.target import Target
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE, BlockKey, Prompt, QuestionId, Trial, TrialKey, hash_ids
from specbench.records.trial_rules import parse_trial
from specbench.running.announce import bound_prompt
from specbench.running.attempts import Attempts
from specbench.running.passes import Outcome, Pass
from specbench.running.results import NoContextError, collect_results, describe_failure
from specbench.running.schedule import (
    Arm,
    Block,
    Schedule,
    form_groups,
    order_groups,
    order_passes,
    order_questions,
    schedule_blocks,
)
from specbench.running.time_budget import TimeBudget
from specbench.watch import Watcher
from tasks.question import Question
from tasks.suite import Suite

WARM_UP_TOKENS = 24


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
    budget: TimeBudget = field(default_factory=TimeBudget)
    finished: dict[TrialKey, Trial] = field(default_factory=dict, init=False)
    _prompts: dict[tuple[QuestionId, int, str], list[int]] = field(default_factory=dict, init=False)  # question, turn, source
    _recorded: set[tuple[QuestionId, int, str]] = field(default_factory=set, init=False)  # question, turn, sha256
    _texts: dict[tuple[str, QuestionId, int], str] = field(default_factory=dict, init=False)  # arm, question, turn

    def __post_init__(self) -> None:
        self._meters = Meters(self.target.model.device)
        self._load = LoadMeter(self.target.model.device)
        self._attempts = Attempts([], self.arms)
        groups = form_groups(self.questions, self.schedule.batch)
        self._groups = order_groups(groups, self.schedule.seed) if self.budget.limited else groups
        self._hashes_texts = not all(arm.engine.returns_ids for arm in self.arms)

    def run_schedule(self) -> None:
        """Run the missing trials, and after each repeat the blocks again that were disturbed, as long as the budget has time.

        Keeps the trials on disk, except those of a warm arm's unfinished repeat.
        """
        total = len(self._list_turns()) * self.schedule.repeats * len(self.arms)
        on_disk = self.run.read_attempts()
        self.finished = self._select_finished(on_disk)
        self._attempts = Attempts(on_disk, self.arms)
        self._recorded = {(prompt.question_id, prompt.turn, prompt.sha256) for prompt in self.run.read_prompts()}
        self._texts = {(row["method"], row["question_id"], row["turn"]): row["text"] for row in self.run.read_texts()}
        self.watcher.begin(self.run.path, total, len(self.finished))
        if not self.budget.over and (len(self.finished) < total or self._list_affordable(self.schedule.repeats)):
            self._warm_up()
        for repeat in range(self.schedule.repeats):
            for arm in self.arms:
                arm.engine.reset(arm.method)
            if self.schedule.concurrency > 1:
                for arm in order_passes(self.arms, repeat, self.schedule.seed):
                    self._run_pass(arm, repeat)
                continue
            if not all(map(self._run_in_time, schedule_blocks(self._groups, self.arms, repeat, self.schedule.seed))):
                return
            self._measure_again(repeat + 1)

    def _select_finished(self, on_disk: list[Trial]) -> dict[TrialKey, Trial]:
        """Return the first attempts that belong to this schedule. A warm arm, or one under load, needs a repeat as a whole."""
        done = {trial.key: trial for trial in on_disk if trial.attempt == 1}
        kept: dict[TrialKey, Trial] = {}
        for arm, repeat in product(self.arms, range(self.schedule.repeats)):
            keys: list[TrialKey] = [(arm.label, repeat, question, turn) for question, turn in self._list_turns()]
            existing = {key: done[key] for key in keys if key in done}
            alone = arm.state == "cold" and self.schedule.concurrency == 1
            if alone or len(existing) == len(keys):
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
        longest_prompt = bound_prompt(self.questions, self.target.chat, self.target.tokenizer, sampling.max_new_tokens)
        longest_prompt = min(longest_prompt, self.target.model.context - 1)
        short = replace(sampling, max_new_tokens=min(WARM_UP_TOKENS, sampling.max_new_tokens))
        for number, arm in enumerate(self.arms, start=1):
            self.watcher.show_status(f"warming up {arm.label}, {number} of {len(self.arms)} methods")
            for prompts in longest:
                try:
                    arm.engine.reserve(longest_prompt, sampling, self.schedule.batch)
                    arm.engine.generate_group(arm.method, prompts, [short] * len(prompts))
                except (Exception, SystemExit):  # its trial will report the error
                    continue
        self.watcher.show_status("measuring", timed=True)

    def _run_in_time(self, block: Block) -> bool:
        """Run what is missing of a block; return False if the budget has no time for it."""
        missing = [arm for arm in block.order if not self._is_finished(arm, block)]
        if missing and not self.budget.admits(block):
            return False
        began = self.budget.clock()
        self._run_block(block)
        if len(missing) == len(block.order):
            self.budget.add(block, self.budget.clock() - began)
        return True

    def _is_finished(self, arm: Arm, block: Block) -> bool:
        keys = [(arm.label, block.repeat, question.id, block.turn) for question in block.group.questions]
        return block.attempt == 1 and all(key in self.finished for key in keys)

    def _run_block(self, block: Block) -> None:
        for order, arm in enumerate(block.order):
            if self._is_finished(arm, block):
                continue
            trials = self._run_turn(arm, block, order)
            self.run.append_trials(*trials)
            self._attempts.add(*trials)
            for trial in trials:
                self.finished.setdefault(trial.key, trial)
                self.watcher.add_trial(trial)

    def _run_pass(self, arm: Arm, repeat: int) -> None:
        """Run an arm's turns of one repeat by several clients at a time; record them once all are done."""
        if all((arm.label, repeat, question, turn) in self.finished for question, turn in self._list_turns()):
            return
        self.watcher.show_status(f"{arm.label}, {self.schedule.concurrency} requests at a time", timed=True)
        helpers = arm.engine.find_processes(arm.method)
        self._load.start(helpers=helpers or ())
        one_pass = Pass(arm, repeat, self.schedule, self._get_prompt, self._record_under_load)
        trials = one_pass.run(order_questions(self.questions, repeat, self.schedule.seed))
        load = self._load.stop(in_process=False)
        reasons = None if helpers is None else load.find_reasons()
        self.run.append_trials(*(trial if trial.failed else replace(trial, disturbed=reasons) for trial in trials))

    def _record_under_load(self, arm: Arm, block: Block, ids: list[int], outcome: Outcome) -> Trial:
        trial = self._record(arm, block, 0, 0, ids, outcome)
        self.finished[trial.key] = trial
        self.watcher.add_trial(trial)
        return trial

    def _measure_again(self, repeats: int) -> None:
        """Measure the disturbed blocks of the first repeats again, while there is time for it."""
        every = range(repeats)
        while not self.budget.spent and (blocks := self._list_affordable(repeats)):
            planned = {b.key: b for r in every for b in schedule_blocks(self._groups, self.arms, r, self.schedule.seed)}
            for block in blocks:
                if self._attempts.can_afford(block) and self.budget.admits(planned[block]):
                    self.watcher.show_status(f"measuring {len(blocks)} disturbed blocks again", timed=True)
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
            helpers = arm.engine.find_processes(arm.method)
            self._load.start(helpers=helpers or ())
            outs = arm.engine.generate_group(arm.method, list(prompts.values()), samplings)
            load = self._load.stop(arm.engine.in_process)
            reasons = None if helpers is None else load.find_reasons()
            measured = asdict(self._meters.stop()) if helpers is not None else {}  # another machine's are not known
            if turned_away := sum(out.turned_away for out in outs if isinstance(out, ServedGeneration)):
                reasons = [*(reasons or ()), f"{OTHERS}: the server was too busy {turned_away} times"]
            measured["disturbed"] = reasons
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
            return parse_trial(Trial(**about, **describe_failure(error)).to_row())

    def _describe_trial(self, arm: Arm, block: Block, place: int) -> dict[str, Any]:
        return {
            "run_id": self.run.name,
            "suite": self.suite.name,
            "context": self.schedule.context,
            "seed": self.schedule.get_seed(block.repeat),
            "concurrency": self.schedule.concurrency,
            **block.describe_turn(arm, place),
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
            before = self.finished[(source, 0, question.id, earlier)]
            if before.failed or before.new_tokens == 0:
                raise NoContextError(f"turn {earlier + 1} of {source} failed, so turn {turn + 1} has no context")
            conversation.append((question.turns[earlier], self._get_text(before)))
        return render_prompt(self.target.chat, [*conversation, (question.turns[turn], None)], self.target.tokenizer)

    def _get_text(self, trial: Trial) -> str:
        """Return the answer of a first repeat's turn."""
        if trial.output_ids is None:
            return self._texts[(trial.method, trial.question_id, trial.turn)]
        return decode_answer(self.target.chat, self.target.tokenizer, trial.output_ids)

    def _record_prompt(self, question: Question, turn: int, ids: list[int], method: str | None) -> None:
        key = (question.id, turn, hash_ids(ids))
        if key not in self._recorded:
            self._recorded.add(key)
            strata = dict(question.strata) or None
            prompt = Prompt(question_id=question.id, turn=turn, prompt_ids=ids, sha256=key[2], method=method, strata=strata)
            self.run.append_prompt(prompt)

    def _collect_results(self, arm: Arm, block: Block, question: Question, out: Generation) -> dict[str, Any]:
        """Return counts, seconds and ids; of repeat 0's first attempts also write the text and its score to texts.jsonl."""
        text = self._read_text(out)
        if block.repeat == 0 and block.attempt == 1:
            score = self.suite.score(question, block.turn, text)
            self.run.append_text(arm.label, question.id, block.turn, text, score)
            self._texts[(arm.label, question.id, block.turn)] = text
        results = collect_results(out, text, self._hashes_texts, self.schedule.concurrency > 1)
        if block.repeat > 0:
            results["output_ids"] = None
        if arm.label == BASELINE and results["output_sha256"] is not None:
            results["retokenised"] = count_retokenised(self.target.tokenizer, text)
        return results

    def _read_text(self, out: Generation) -> str:
        if isinstance(out, ServedGeneration) and out.text is not None:
            return out.text
        return decode_answer(self.target.chat, self.target.tokenizer, out.output_ids)
