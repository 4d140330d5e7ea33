"""The share of a step that choosing takes, after the target's forward: greedy, and sampled with top-p."""

from unittest.mock import patch

from benchmarks.embedded import opened
from benchmarks.overhead import Stopwatch
from specbench.decoding import drafter
from specbench.decoding.sampling import Sampling
from specbench.decoding.verify import Verifier

METHODS = ("medusa_spec_bench", "eagle_spec_bench")  # trees of 64 nodes, and of 26 whose drafts are drawn
RULES = {"greedy": Sampling(max_new_tokens=128), "sampled": Sampling(temperature=1.0, top_p=0.9, max_new_tokens=128, seed=1)}
BOUNDS = {"greedy": 2, "sampled": 4}  # per cent of a step


def shares(*overrides: str) -> dict[tuple[str, str], float]:
    """(method, rule) -> time in `verify` over all decoding time."""
    there, found = opened(f"method=[{','.join(METHODS)}]", *overrides), {}
    for name, sampling in RULES.items():
        for label in METHODS:
            watch, total = Stopwatch(), 0.0
            with patch.object(drafter, "make_verifier", _watched(watch)):
                there.engine.generate(label, there.prompts[0], sampling)
                watch.seconds = 0.0
                for prompt in there.prompts:
                    total += there.engine.generate(label, prompt, sampling).decode_s
            found[label, name] = watch.seconds / total
    return found


def _watched(watch: Stopwatch):  # type: ignore[no-untyped-def]
    right = drafter.make_verifier

    def make_timed(*given: object) -> Verifier:
        return _Timed(right(*given), watch)  # type: ignore[arg-type]

    return make_timed


class _Timed:
    """A verifier whose `verify` is timed."""

    def __init__(self, verifier: Verifier, watch: Stopwatch) -> None:
        self.first = verifier.choose_first
        self.pick = verifier.pick
        self.rank = verifier.rank
        self.verify = watch.timed(verifier.verify)


def main() -> None:
    for (label, rule), share in shares("target.shape=100m").items():
        print(f"{label}, {rule}: {100 * share:.2f} % of a step (bound {BOUNDS[rule]} %)")


if __name__ == "__main__":
    main()
