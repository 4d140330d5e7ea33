"""Whether every token of a text is the one that the target writes there, given the same random numbers.

Greedy: the argmax. Sampled with drafts that are not drawn: the token in whose stretch of the cumulative distribution the turn's
next random number falls. How far a token is from that, its `misfit`, is 0 where the target is right to the last bit. Rounding
makes it a little more: as much as the target differs from itself when the same tokens go through it in another shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from specbench.decoding.language_model import LanguageModel
from specbench.decoding.sampling import Dice, Sampling, probabilities
from specbench.errors import InputError

SIZES = (1, 12, 60)  # nodes of a forward: autoregressive decoding's, and drafts short and long
QUANTILE = 0.999
BEYOND = 1e9  # a misfit that is no number
LEAST_NOISE = {torch.float64: 1e-9, torch.float32: 1e-4}  # where a few texts show none


@dataclass(frozen=True)
class GeneratedText:
    """What came behind a prompt, and what it was drawn with."""

    prompt: list[int]
    output: list[int]
    sampling: Sampling


@dataclass(frozen=True)
class Noise:
    """How far a misfit may be from 0 by rounding: twice the 99.9 % quantile of what the target differs from itself by."""

    greedy: float  # in logits: the gap between the two best tokens
    sampled: float  # in probability: anywhere of the cumulative distribution


@torch.inference_mode()
def compute_logits(target: LanguageModel, text: GeneratedText, size: int | None = None) -> Tensor:
    """(n, V) float32 in front of each token of the output, by transformers' own attention and cache: nothing of what is judged.

    In forwards of `size` tokens behind the prompt; None: all at once.
    """
    ids = torch.tensor([text.prompt + text.output[:-1]], device=target.device)
    with target.use_original_attention() as model:
        if size is None:
            return model(ids, use_cache=False, logits_to_keep=len(text.output)).logits[0].float()
        out = model(ids[:, : len(text.prompt)], use_cache=True, logits_to_keep=1)
        found = [out.logits[0]]
        for start in range(len(text.prompt), ids.shape[1], size):
            out = model(ids[:, start : start + size], use_cache=True, past_key_values=out.past_key_values)
            found.append(out.logits[0])
    return torch.cat(found).float()


def measure_noise(target: LanguageModel, texts: Sequence[GeneratedText], sampling: Sampling) -> Noise:
    """Over every token of the texts. sampling: at a temperature above 0. Raises InputError where logits are no numbers."""
    gaps, heights = [], []
    for text in texts:
        whole, *others = (compute_logits(target, text, size) for size in (None, *SIZES))
        if not whole.isfinite().any(dim=-1).all() or whole.isnan().any():
            raise InputError("the target's logits are no finite numbers: nothing can be said of its texts")
        best = whole.topk(2).indices
        for other in others:
            gaps.append((_gap(whole, best) - _gap(other, best)).abs())
            heights.append((_compute_cdf(whole, sampling) - _compute_cdf(other, sampling)).abs().amax(dim=-1))
    least = LEAST_NOISE.get(target.dtype, 1e-2)
    greedy, sampled = (2 * float(torch.cat(found).double().quantile(QUANTILE)) for found in (gaps, heights))
    return Noise(max(greedy, least), max(sampled, least))


def _gap(logits: Tensor, best: Tensor) -> Tensor:
    """(n, V), (n, 2) -> (n,): how much better the first token of each pair is."""
    two = logits.gather(1, best)
    return two[:, 0] - two[:, 1]


def _compute_cdf(logits: Tensor, sampling: Sampling) -> Tensor:
    """(n, V) cumulative probabilities by token id."""
    return probabilities(logits, sampling).double().cumsum(dim=-1)


def misfits(target: LanguageModel, text: GeneratedText) -> Tensor:
    """(n,): in logits when greedy, else in probability."""
    logits = compute_logits(target, text)
    tokens = torch.tensor(text.output, device=logits.device)[:, None]
    if text.sampling.temperature == 0:
        return logits.amax(dim=-1) - logits.gather(1, tokens)[:, 0]
    dice = Dice(text.sampling.seed, 0, target.device)
    drawn = torch.stack([dice.draw_uniform() for _ in text.output])
    heights = _compute_cdf(logits, text.sampling)
    heights = heights / heights[:, -1:]
    above = heights.gather(1, tokens)[:, 0]
    below = torch.where(tokens[:, 0] > 0, heights.gather(1, (tokens - 1).clamp(min=0))[:, 0], 0.0)
    return torch.maximum(below - drawn, drawn - above).clamp(min=0)  # also where rounding has put a token outside the nucleus


@dataclass(frozen=True)
class TokenCheck:
    """Texts of one method beside autoregressive's. first: where each that differs does so, with the target's top-2 gap there."""

    texts: int
    equal: int
    first: list[tuple[int, float]]
    worst: float  # misfit of any token of any text
    wrong: int  # texts with a token beyond the noise, or that end elsewhere than they should
    ended: int  # those that end elsewhere

    @property
    def class_(self) -> str:
        """exact: equal to the last token; tie: where they differ the target itself is undecided; bug: neither."""
        return "bug" if self.wrong else "exact" if self.equal == self.texts else "tie"


def check_tokens(
    target: LanguageModel, ours: Sequence[GeneratedText], theirs: Sequence[GeneratedText], bound: float
) -> TokenCheck:
    """bound: the noise, of the texts' kind. Equal texts are looked at as well: both may be wrong."""
    first, worst, wrong, ended = [], 0.0, 0, 0
    for own, other in zip(ours, theirs, strict=True):
        worst_here = float(misfits(target, own).nan_to_num(nan=BEYOND, posinf=BEYOND).max())
        elsewhere = not _ends_correctly(own, target.context)
        worst, wrong, ended = max(worst, worst_here), wrong + (worst_here > bound or elsewhere), ended + elsewhere
        if own.output != other.output:
            first.append(_find_divergence(target, own, other))
    return TokenCheck(len(ours), len(ours) - len(first), first, worst, wrong, ended)


def _ends_correctly(text: GeneratedText, context: int) -> bool:
    """At the first stop token, else at the limit or at the end of the context."""
    stops = [at for at, token in enumerate(text.output) if token in text.sampling.stop_token_ids]
    most = min(text.sampling.max_new_tokens, context - len(text.prompt))
    return len(text.output) <= most and (stops == [len(text.output) - 1] or (not stops and len(text.output) == most))


def _find_divergence(target: LanguageModel, own: GeneratedText, other: GeneratedText) -> tuple[int, float]:
    """Index of the first token that differs, and how much better the target's best token is there than its second."""
    pairs = zip(own.output, other.output, strict=False)
    at = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(own.output), len(other.output)))
    longer = max(own, other, key=lambda text: len(text.output))
    logits = compute_logits(target, GeneratedText(longer.prompt, longer.output[: at + 1], longer.sampling))[-1:]
    return at, float(_gap(logits, logits.topk(2).indices))


CONFIDENCE = 0.95


def bound_error_rate(wrong: int, texts: int) -> float:
    """Upper limit of the rate of wrong texts (Clopper & Pearson 1934, one-sided)."""
    return 1.0 if wrong >= texts else float(stats.beta.ppf(CONFIDENCE, wrong + 1, texts - wrong))
