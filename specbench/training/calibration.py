"""The speed of a skip set: each calibration prompt is decoded with it and, next to that, autoregressively."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Sampling
from specbench.drafters.skipping import SkipSet
from specbench.drafters.skipping_drafter import SkippingDrafter


@dataclass(frozen=True)
class SkipSetTiming:
    """A skip set's sums over the prompts. kept: share of the target's parameters used for drafting; seconds include prefill.

    tokens_per_second, the objective: `rate` with the machine's drift since the search began divided out.
    """

    skipped: SkipSet
    kept: float
    tokens: int
    seconds: float
    baseline_tokens: int
    baseline_seconds: float
    drafted: int
    accepted: int
    committed: int
    steps: int
    number: int = 0
    tokens_per_second: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def baseline_rate(self) -> float:
        return self.baseline_tokens / self.baseline_seconds

    @property
    def speedup(self) -> float:
        return self.rate / self.baseline_rate

    def to_row(self) -> dict[str, Any]:
        """Return the measured values, for a journal of JSON."""
        return {name: value for name, value in asdict(self).items() if name not in ("number", "tokens_per_second")}

    @staticmethod
    def from_row(row: Mapping[str, Any], number: int, tokens_per_second: float) -> "SkipSetTiming":
        skipped = SkipSet(*(tuple(row["skipped"][name]) for name in ("attention", "mlp")))
        return SkipSetTiming(**{**row, "skipped": skipped}, number=number, tokens_per_second=tokens_per_second)


class Calibration:
    """Times skip sets on the prompts, (T,) each."""

    def __init__(
        self, target: LanguageModel, method: SkippingDrafter, prompts: Sequence[torch.Tensor], sampling: Sampling
    ) -> None:
        self.target, self.method = target, method
        self.prompts, self.sampling = prompts, sampling
        self.baseline = Autoregressive()
        self.baseline.bind(target)
        self.store = target.create_store(max(map(len, prompts)) + sampling.max_new_tokens)
        self._decode_both(max(prompts, key=len))  # warm-up

    def __call__(self, skipped: SkipSet) -> SkipSetTiming:
        """Time the skip set; both decodings of a prompt follow each other, so that a slow minute slows both."""
        self.method.skip(skipped)
        self.method.reset()
        slow, fast = zip(*map(self._decode_both, self.prompts), strict=True)
        return SkipSetTiming(skipped, self._compute_kept(), *_sum_outputs(fast), *_sum_outputs(slow), *_count_tokens(fast))

    def _decode_both(self, prompt: torch.Tensor) -> tuple[Generation, Generation]:
        return self._decode(self.baseline, prompt), self._decode(self.method, prompt)

    def _decode(self, drafter: Drafter, prompt: torch.Tensor) -> Generation:
        return generate(self.target, drafter, [prompt], self.sampling, self.store)[0]

    def _compute_kept(self) -> float:
        kept, total = (sum(p.numel() for p in owner.model.parameters()) for owner in (self.method.model, self.target))
        return float(kept / total)


def _sum_outputs(outs: Sequence[Generation]) -> tuple[int, float]:
    """Return new tokens and seconds."""
    return sum(len(out.output_ids) for out in outs), sum(out.prefill_s + out.decode_s for out in outs)


def _count_tokens(outs: Sequence[Generation]) -> tuple[int, int, int, int]:
    """Return drafted, accepted and committed tokens, and steps."""
    drafted, accepted, committed = (sum(sum(getattr(out, name)) for out in outs) for name in ("drafted", "accepted", "committed"))
    return drafted, accepted, committed, sum(out.steps for out in outs)
