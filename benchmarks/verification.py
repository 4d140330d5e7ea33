"""The share of a step that verification takes after the target's forward: greedy, and sampled with top-p."""

from collections.abc import Callable
from copy import copy
from typing import Any
from unittest.mock import patch

from benchmarks.embedded import load_bench
from benchmarks.overhead import Stopwatch
from specbench.decoding.sampling import Sampling
from specbench.decoding.verify import Verifier

METHODS = ("medusa_spec_bench", "eagle_spec_bench")  # trees of 64 nodes, and of 26 whose drafts are drawn
RULES = {"greedy": Sampling(max_new_tokens=128), "sampled": Sampling(temperature=1.0, top_p=0.9, max_new_tokens=128, seed=1)}
BOUNDS = {"greedy": 2, "sampled": 4}  # per cent of a step


def measure_shares(*overrides: str) -> dict[tuple[str, str], float]:
    """Return by (method, rule) the time in `verify` over all decoding time."""
    bench, shares = load_bench(f"method=[{','.join(METHODS)}]", *overrides), {}
    for name, sampling in RULES.items():
        for label in METHODS:
            watch, total, drafter = Stopwatch(), 0.0, bench.drafters[label]
            with patch.object(drafter, "verifier", _time_verifiers(drafter.verifier, watch)):
                bench.engine.generate(label, bench.prompts[0], sampling)
                watch.seconds = 0.0
                for prompt in bench.prompts:
                    total += bench.engine.generate(label, prompt, sampling).decode_s
            shares[label, name] = watch.seconds / total
    return shares


def _time_verifiers(make: Callable[..., Verifier], watch: Stopwatch) -> Callable[..., Verifier]:
    def make_timed(*arguments: Any) -> Verifier:
        verifier = copy(make(*arguments))
        verifier.verify = watch.wrap(verifier.verify)  # type: ignore[method-assign]
        return verifier

    return make_timed


def main() -> None:
    for (label, rule), share in measure_shares("target.shape=100m").items():
        print(f"{label}, {rule}: {100 * share:.2f} % of a step (bound {BOUNDS[rule]} %)")


if __name__ == "__main__":
    main()
