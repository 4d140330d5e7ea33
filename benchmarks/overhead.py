"""The share of a turn spent outside the models' forwards: drafting logic, verification, bookkeeping."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from transformers import PreTrainedModel

from benchmarks.embedded import Opened, opened
from specbench.decoding.language_model import LanguageModel


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


def shares(methods: Sequence[str], *overrides: str) -> dict[str, float]:
    """Method -> share of its turns' time outside the forwards of the target, of draft models and of thinned targets."""
    there, watch = opened(f"method=[{','.join(methods)}]", *overrides), Stopwatch()
    own = [getattr(drafter, "model", None) for drafter in there.drafters.values()]
    with watch.watching([there.target.model, *(model for model in own if isinstance(model, LanguageModel))]):
        return {label: _outside(there, label, watch) for label in there.drafters}


def _outside(there: Opened, label: str, watch: Stopwatch) -> float:
    there.generate(label, there.prompts[0])
    watch.seconds, total = 0.0, 0.0
    for prompt in there.prompts:
        out = there.generate(label, prompt)
        total += out.prefill_s + out.decode_s
    return 1 - watch.seconds / total
