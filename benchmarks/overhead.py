"""The share of a turn spent outside models' forwards: drafting logic, verification, bookkeeping.

A profiled run counts a draft model's forwards as drafting; here they are left out too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from benchmarks.embedded import Bench, load_bench
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.network import DraftNetwork
from specbench.drafters.network_drafter import LayerDrafter


class Stopwatch:
    """Sums the time inside calls; one inside another counts once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    @contextmanager
    def watch(self, calls: list[tuple[Any, str]]) -> Iterator[None]:
        """Time calls, each given as an object and the name of the method called."""
        before = [(owner, name, vars(owner).get(name)) for owner, name in calls]
        for owner, name in calls:
            vars(owner)[name] = self.wrap(getattr(owner, name))
        try:
            yield
        finally:
            for owner, name, original in before:
                del vars(owner)[name]
                vars(owner).update({} if original is None else {name: original})

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun, self._depth = perf_counter(), self._depth + 1
            try:
                return call(*args, **kwargs)
            finally:
                self._depth -= 1
                self.seconds += 0 if self._depth else perf_counter() - begun

        return timed


def measure_shares(methods: Sequence[str], *overrides: str) -> dict[str, float]:
    """Return by method the share of its turns' time outside all forwards of target, draft models and draft networks."""
    bench, watch = load_bench(f"method=[{','.join(methods)}]", *overrides), Stopwatch()
    forwards = [call for drafter in bench.drafters.values() for call in _iter_forwards(drafter)]
    with watch.watch([*_iter_model(bench.target.model), *forwards]):
        return {label: _measure_outside(bench, label, watch) for label in bench.drafters}


def _iter_model(model: LanguageModel) -> Iterator[tuple[Any, str]]:
    yield model.model, "forward"
    yield model.runner, "run"


def _iter_forwards(drafter: Drafter) -> Iterator[tuple[Any, str]]:
    if isinstance(model := getattr(drafter, "model", None), LanguageModel):
        yield from _iter_model(model)
    if isinstance(drafter, LayerDrafter):
        yield drafter.runner, "run"
    if isinstance(network := getattr(drafter, "network", None), DraftNetwork):
        yield network, "forward"
        yield network, "compute_logits"
    for part in drafter.parts:
        yield from _iter_forwards(part)


def _measure_outside(bench: Bench, label: str, watch: Stopwatch) -> float:
    bench.generate(label, bench.prompts[0])
    watch.seconds, total = 0.0, 0.0
    for prompt in bench.prompts:
        out = bench.generate(label, prompt)
        total += out.prefill_s + out.decode_s
    return 1 - watch.seconds / total
