"""Whether a run's counts follow from its ids: methods that read only tokens are replayed on the answers that they wrote.

The run may be a stranger's. Only the classes in TOKEN_ONLY are built, because none of their settings names a file or a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specbench.analysis.loaded_run import LoadedRun
from specbench.decoding.drafter import Drafter
from specbench.errors import InputError
from specbench.exchange.ids import Turn
from specbench.records.certificates import ENGINE
from specbench.records.stripped import MARK
from specbench.records.trial import PER_STEP, Prompt, Trial
from specbench.replay.recorded_target import replay_answers
from specbench.replay.sources import build_recorded
from specbench.setup.fingerprints import hash_method_code, hash_shared_code
from specbench.setup.instantiate import TARGET, instantiate, iter_nodes

TOKEN_ONLY = (
    "specbench.decoding.autoregressive.Autoregressive",
    "methods.pld.PromptLookup",
    "methods.sam_decoding.SamDecoding",
    "methods.suffix.SuffixDecoding",
    "methods.oracle.Oracle",
)
COUNTS = ("new_tokens", "steps", *PER_STEP)
OTHER_CODE = "; the run names other code than this version's, so check it with the commit that it names"
LONGEST = 2**18  # tokens of a prompt and its answer that are replayed


@dataclass(frozen=True)
class CountCheck:
    """What a replay of one method found. turns: replayed; differing: of these; why: it could not be replayed, or empty."""

    method: str
    turns: int = 0
    differing: int = 0
    first: str = ""  # of those that differ
    why: str = ""

    @property
    def failed(self) -> bool:
        """Whether the recorded counts are not those of the method."""
        return self.differing > 0

    def __str__(self) -> str:
        if self.why:
            return f"{self.method}: not replayed: {self.why}"
        if self.differing:
            return f"{self.method}: {self.differing} of {self.turns} replayed turns take other steps than recorded: {self.first}"
        return f"{self.method}: all {self.turns} replayed turns take the recorded steps"


def check_counts(run: LoadedRun, prompts: Iterable[Prompt]) -> list[CountCheck]:
    """Replay every method of a run that can be. Nothing is raised: what cannot be replayed says why."""
    ids = {prompt.sha256: prompt.prompt_ids for prompt in prompts if prompt.prompt_ids}
    outputs = {trial.output_sha256: trial.output_ids for trial in run.trials if trial.output_ids}
    methods = dict.fromkeys(trial.method for trial in run.trials)
    return [_check_method(run, method, ids, outputs) for method in methods]


def _check_method(run: LoadedRun, method: str, prompts: Mapping[str, list[int]], outputs: Mapping[Any, list[int]]) -> CountCheck:
    trials = [trial for trial in run.trials if trial.method == method]
    if why := _find_obstacle(run, method, trials):
        return CountCheck(method, why=why)
    limit = run.config["sampling"]["max_new_tokens"]
    turns = [
        (trial, build_recorded(trial, prompts[trial.prompt_sha256], outputs[trial.output_sha256], limit))
        for trial in trials
        if not trial.failed and trial.prompt_sha256 in prompts and trial.output_sha256 in outputs
    ]
    if not turns:
        return CountCheck(method, why="no turn has the ids of its prompt and its answer")
    if any(len(answer.prompt) + len(answer.output) > LONGEST for _, answer in turns):
        return CountCheck(method, why=f"a turn has more than {LONGEST:,} tokens")
    warm = any(trial.state == "warm" for trial in trials)
    if warm and len(turns) < len(trials):
        return CountCheck(method, why="it learns from turn to turn, and some have no ids")
    node = run.config["method"][method]
    try:
        differing = list(_find_differing(method, node, turns, warm))
    except InputError as problem:
        differing = [str(problem)]
    if not differing:
        return CountCheck(method, len(turns))
    known = (run.provenance.get("codes") or {}).get(method), run.provenance.get("code_sha256")
    same_code = known == (hash_method_code(node), hash_shared_code())
    return CountCheck(method, len(turns), len(differing), differing[0] + OTHER_CODE * (not same_code))


def _find_obstacle(run: LoadedRun, method: str, trials: Sequence[Trial]) -> str:
    """Return why a method cannot be replayed, or an empty text."""
    nodes = list(iter_nodes((run.config.get("method") or {}).get(method)))
    engine = next(iter((run.config.get("engine") or {}).values()), None) or {}
    if run.provenance.get(MARK):
        return "the run holds hashes in place of prompts and answers"
    if "@" in method or engine.get(TARGET) != ENGINE:
        return "another engine ran it"
    if len(nodes) != 1 or nodes[0][TARGET] not in TOKEN_ONLY:
        return "it needs more than the ids of prompts and answers"
    if not isinstance((run.config.get("sampling") or {}).get("max_new_tokens"), int):
        return "config.yaml does not say sampling.max_new_tokens"
    if trials[0].batch > 1 and any(trial.state == "warm" for trial in trials):
        return "it learns from the questions beside it"
    return ""


def _find_differing(method: str, node: Mapping[str, Any], turns: Sequence[Turn], warm: bool) -> Iterator[str]:
    """Yield, in words, each turn whose replay takes other steps than recorded. Raises InputError where none can end as it did."""
    drafter = instantiate(node, Drafter, f"method.{method}")
    rounds: dict[int, list[Turn]] = {}
    for trial, answer in turns:
        rounds.setdefault(trial.repeat if warm else 0, []).append((trial, answer))
    for together in rounds.values():
        outs = replay_answers(method, drafter, [answer for _, answer in together])
        for (trial, _), out in zip(together, outs, strict=True):
            replayed = {name: getattr(out, name) for name in COUNTS if name != "new_tokens"} | {"new_tokens": len(out.output_ids)}
            for name in COUNTS:
                if getattr(trial, name) != replayed[name]:
                    yield f"{name} of question {trial.question_id}, turn {trial.turn}, repeat {trial.repeat}"
                    break
