"""The share of a turn spent outside the models' forwards: drafting logic, verification, bookkeeping."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from transformers import PreTrainedModel

from specbench.compose import composed
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import Sampling
from specbench.engine.native import Native
from specbench.prompts import render
from specbench.run import built, questions_of, target_of


class Stopwatch:
    """Adds up the time inside a model's own call."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def watching(self, models: list[LanguageModel]) -> Iterator[None]:
        calls = [model.model for model in models]
        for model, call in zip(models, calls, strict=True):
            model.model = self._timed(call)  # type: ignore[assignment]
        try:
            yield
        finally:
            for model, call in zip(models, calls, strict=True):
                model.model = call

    def _timed(self, call: PreTrainedModel) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += perf_counter() - begun

        return timed


def shares(*overrides: str, limit: int = 1) -> dict[str, float]:
    """Method -> share of its turns' time outside the forwards of target and draft model."""
    config = composed([*overrides, "target=mini", "suite=mini", "method=[pld,sps]"])
    target, suite = target_of(config.target), built(config.suite)
    questions = questions_of(suite, list(config.task), limit, 0)
    drafters = {label: built(settings) for label, settings in config.method.items()}
    engine = Native(profile=False)
    engine.open(target.model, drafters)
    watch = Stopwatch()
    sampling = Sampling(max_new_tokens=256, stop_token_ids=target.model.eos_ids)
    prompts = [render(target.chat, [(question.turns[0], None)], target.tokenizer) for question in questions]
    with watch.watching([target.model, drafters["sps"].model]):
        return {label: _outside(engine, label, prompts, sampling, watch) for label in drafters}


def _outside(engine: Native, label: str, prompts: list[list[int]], sampling: Sampling, watch: Stopwatch) -> float:
    engine.generate(label, prompts[0], sampling)
    watch.seconds, total = 0.0, 0.0
    for prompt in prompts:
        out = engine.generate(label, prompt, sampling)
        total += out.prefill_s + out.decode_s
    return 1 - watch.seconds / total
