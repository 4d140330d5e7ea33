"""The arms of this process: specbench's own engine and transformers' `generate`, on one loaded target."""

from collections.abc import Iterator
from contextlib import ExitStack
from time import perf_counter
from typing import Any

from benchmarks.peers.arms import Answer, Arm, Job
from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.drafter import Drafter
from specbench.engine.base import Engine
from specbench.engine.hf import TransformersGenerate
from specbench.running.checks import check_drafters
from specbench.setup.instantiate import instantiate
from specbench.setup.objects import instantiate_methods


def open_native(job: Job, stack: ExitStack) -> Iterator[Arm]:
    """Yield specbench's own arms, timed by its own clock."""
    drafters = _instantiate_drafters(job)
    engine = instantiate(job.settings.engine["native"], Engine, "engine.native")
    engine.open(job.target.model, drafters)
    engine.reserve(max(map(len, job.prompts)), job.sampling)

    def decode(method: str, prompt: list[int]) -> Answer:
        out = engine.generate(method, prompt, job.sampling)
        return Answer(out.output_ids, len(out.output_ids) - 1, out.decode_s, sum(out.drafted))

    for method in job.methods:
        yield Arm("specbench", method, lambda prompt, method=method: decode(method, prompt), worker="caller")  # type: ignore[misc]


class FirstTokens:
    """A streamer of `generate` that notes when the first new tokens came, and how many: under a draft it may be several."""

    def __init__(self) -> None:
        self._puts = 0

    def put(self, tokens: Any) -> None:
        """Take the prompt, then new tokens as they are committed."""
        self._puts += 1
        if self._puts == 2:
            self.count, self.at = tokens.numel(), perf_counter()

    def end(self) -> None:
        self.ended = perf_counter()


def open_transformers(job: Job, stack: ExitStack) -> Iterator[Arm]:
    """Yield the arms of transformers' `generate`, timed by a streamer."""
    engine = instantiate(job.settings.engine["hf"], TransformersGenerate, "engine.hf")
    engine.open(job.target.model, dict.fromkeys(job.methods, Autoregressive()))
    plain = dict(engine.methods)

    def decode(method: str, prompt: list[int]) -> Answer:
        watch = FirstTokens()
        engine.methods = {method: {**plain[method], "streamer": watch}}
        out = engine.generate(method, prompt, job.sampling)
        return Answer(out.output_ids, len(out.output_ids) - watch.count, watch.ended - watch.at)

    for method in job.methods:
        yield Arm("transformers", method, lambda prompt, method=method: decode(method, prompt), worker="caller")  # type: ignore[misc]


def _instantiate_drafters(job: Job) -> dict[str, Drafter]:
    drafters = instantiate_methods({method: job.settings.method[method] for method in job.methods})
    check_drafters(drafters, job.settings.target, job.target.tokenizer)
    return drafters
