"""The share of a step that verification takes after the target's forward: greedy, and sampled with top-p."""

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from benchmarks.embedded import load_bench
from benchmarks.overhead import Stopwatch
from specbench.decoding import loop, verify
from specbench.decoding.sampling import Sampling

METHODS = ("medusa_spec_bench", "eagle_spec_bench")  # trees of 64 nodes, and of 26 whose drafts are drawn
RULES = {"greedy": Sampling(max_new_tokens=128), "sampled": Sampling(temperature=1.0, top_p=0.9, max_new_tokens=128, seed=1)}
BOUNDS = {"greedy": 2, "sampled": 4}  # per cent of a step


def measure_shares(*overrides: str) -> dict[tuple[str, str], float]:
    """Return by (method, rule) the time of verification over all decoding time."""
    bench, shares = load_bench(f"method=[{','.join(METHODS)}]", *overrides), {}
    watch = Stopwatch()
    calls: list[tuple[Any, str]] = [
        (loop, "examine_group"),
        (verify.SamplingVerifier, "verify"),
        (verify.GreedyVerifier, "conclude"),
    ]
    with ExitStack() as patches:
        for owner, name in calls:
            patches.enter_context(patch.object(owner, name, watch.wrap(getattr(owner, name))))
        for name, sampling in RULES.items():
            for label in METHODS:
                bench.engine.generate(label, bench.prompts[0], sampling)
                watch.seconds = 0.0
                total = sum(bench.engine.generate(label, prompt, sampling).decode_s for prompt in bench.prompts)
                shares[label, name] = watch.seconds / total
    return shares


def main() -> None:
    for (label, rule), share in measure_shares("target.shape=100m").items():
        print(f"{label}, {rule}: {100 * share:.2f} % of a step (bound {BOUNDS[rule]} %)")


if __name__ == "__main__":
    main()
