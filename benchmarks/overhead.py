"""The share of a turn spent outside the models' forwards: drafting logic, verification, bookkeeping.

A profiled run counts the forwards of a draft model as drafting; here they are left out too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from benchmarks.embedded import Opened, opened
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.network import DraftNetwork


class Stopwatch:
    """Adds up the time inside models' own calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def watching(self, calls: list[tuple[Any, str]]) -> Iterator[None]:
        """calls: what to time, as an object and the name of its attribute that is called."""
        before = [(owner, name, vars(owner).get(name)) for owner, name in calls]
        for owner, name in calls:
            vars(owner)[name] = self.timed(getattr(owner, name))
        try:
            yield
        finally:
            for owner, name, own in before:
                del vars(owner)[name]
                vars(owner).update({} if own is None else {name: own})

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += perf_counter() - begun

        return timed


def shares(methods: Sequence[str], *overrides: str) -> dict[str, float]:
    """Method -> share of its turns' time outside the forwards of target, draft models, thinned targets and draft networks."""
    there, watch = opened(f"method=[{','.join(methods)}]", *overrides), Stopwatch()
    own = [call for drafter in there.drafters.values() for call in _models(drafter)]
    with watch.watching([(there.target.model.model, "forward"), *own]):
        return {label: _outside(there, label, watch) for label in there.drafters}


def _models(drafter: Drafter) -> Iterator[tuple[Any, str]]:
    if isinstance(model := getattr(drafter, "model", None), LanguageModel):
        yield model.model, "forward"
    if isinstance(network := getattr(drafter, "network", None), DraftNetwork):
        yield network, "forward"
        yield network, "logits"
    for part in drafter.parts:
        yield from _models(part)


def _outside(there: Opened, label: str, watch: Stopwatch) -> float:
    there.generate(label, there.prompts[0])
    watch.seconds, total = 0.0, 0.0
    for prompt in there.prompts:
        out = there.generate(label, prompt)
        total += out.prefill_s + out.decode_s
    return 1 - watch.seconds / total
