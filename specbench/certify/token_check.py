"""Check whether every token of a text is the one that the target would write, given the same random numbers.

Greedy: the argmax. Sampled with drafts that are not drawn: the token in whose interval of the cumulative distribution the turn's
next random number falls. A token's `misfit` is its distance from that: 0 without rounding, else at most the target's own rounding
error, measured as its difference from itself when the same tokens pass through forwards of different shapes.
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
from specbench.models.logits import is_finite
from specbench.records.evidence import CONFIDENCE

SIZES = (1, 12, 60)  # tokens per forward: autoregressive decoding, a short draft, a long one
QUANTILE = 0.999
BEYOND = 1e9  # stands in for a misfit that is not a number
LEAST_NOISE = {torch.float64: 1e-9, torch.float32: 1e-4}  # lower bound of the noise: a few texts may show none


@dataclass(frozen=True)
class GeneratedText:
    """The output after a prompt, and the sampling that drew it."""

    prompt: list[int]
    output: list[int]
    sampling: Sampling


@dataclass(frozen=True)
class Noise:
    """The misfit that rounding explains: twice the 99.9th percentile of the target's own error between forward shapes."""

    greedy: float  # in logits: the gap between the two best tokens
    sampled: float  # in probability: anywhere in the cumulative distribution


@torch.inference_mode()
def compute_logits(target: LanguageModel, text: GeneratedText, size: int | None = None) -> Tensor:
    """Return (n, V) float32 logits of each output token, by transformers' own attention and cache, never by the code under test.

    In forwards of `size` tokens after the prompt; None: all at once.
    """
    ids = torch.tensor([text.prompt + text.output[:-1]], device=target.device)
    with target.use_original_attention() as model:
        if size is None:
            whole: Tensor = model(ids, use_cache=False, logits_to_keep=len(text.output)).logits[0].float()
            return whole
        out = model(ids[:, : len(text.prompt)], use_cache=True, logits_to_keep=1)
        logits = [out.logits[0]]
        for start in range(len(text.prompt), ids.shape[1], size):
            out = model(ids[:, start : start + size], use_cache=True, past_key_values=out.past_key_values)
            logits.append(out.logits[0])
    return torch.cat(logits).float()


def measure_noise(target: LanguageModel, texts: Sequence[GeneratedText], sampling: Sampling) -> Noise:
    """Measure over every token of the texts. sampling: above temperature 0. Raises InputError where logits are not finite."""
    gaps, cdfs = [], []
    for text in texts:
        whole, *others = (compute_logits(target, text, size) for size in (None, *SIZES))
        if not all(map(is_finite, (whole, *others))):
            raise InputError("the target's logits are not finite numbers: its texts cannot be checked")
        best = whole.topk(2).indices
        for other in others:
            gaps.append((_gap(whole, best) - _gap(other, best)).abs())
            cdfs.append((_compute_cdf(whole, sampling) - _compute_cdf(other, sampling)).abs().amax(dim=-1))
    least = LEAST_NOISE.get(target.dtype, 1e-2)
    greedy, sampled = (2 * float(torch.cat(errors).double().quantile(QUANTILE)) for errors in (gaps, cdfs))
    return Noise(max(greedy, least), max(sampled, least))


def _gap(logits: Tensor, best: Tensor) -> Tensor:
    """Return (n,): the logit of the first token of each pair less the second's, for logits (n, V) and pairs (n, 2)."""
    two = logits.gather(1, best)
    return two[:, 0] - two[:, 1]


def _compute_cdf(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return (n, V) cumulative probabilities by token id."""
    return probabilities(logits, sampling).double().cumsum(dim=-1)


def misfits(target: LanguageModel, text: GeneratedText) -> Tensor:
    """Return (n,) misfits: in logits for greedy text, else in probability."""
    logits = _forbid_stops(compute_logits(target, text), text.sampling)
    tokens = torch.tensor(text.output, device=logits.device)[:, None]
    if text.sampling.temperature == 0:
        return logits.amax(dim=-1) - logits.gather(1, tokens)[:, 0]
    dice = Dice(text.sampling.seed, target.device)
    drawn = torch.stack([dice.draw_uniform() for _ in text.output])
    cdf = _compute_cdf(logits, text.sampling)
    cdf = cdf / cdf[:, -1:]
    above = cdf.gather(1, tokens)[:, 0]
    below = torch.where(tokens[:, 0] > 0, cdf.gather(1, (tokens - 1).clamp(min=0))[:, 0], 0.0)
    return torch.maximum(below - drawn, drawn - above).clamp(min=0)  # also for a token that rounding put outside the nucleus


def _forbid_stops(logits: Tensor, sampling: Sampling) -> Tensor:
    """(n, V) logits of the first n output tokens -> the same with -inf for stop tokens that come too early."""
    allowed = logits.clone()
    allowed[: sampling.min_new_tokens, list(sampling.stop_token_ids)] = -torch.inf
    return allowed


@dataclass(frozen=True)
class TokenCheck:
    """One method's texts against autoregressive decoding's. first: index and top-2 gap of each differing text's divergence."""

    texts: int
    equal: int
    first: list[tuple[int, float]]
    worst: float  # largest misfit of any token
    wrong: int  # texts with a token beyond the noise, or with a wrong end
    ended: int  # texts with a wrong end
    longest: int  # tokens of the longest text

    @property
    def class_(self) -> str:
        """exact: all equal; tie: where they differ the target itself is undecided; bug: neither."""
        return "bug" if self.wrong else "exact" if self.equal == self.texts else "tie"


def check_tokens(
    target: LanguageModel, ours: Sequence[GeneratedText], theirs: Sequence[GeneratedText], bound: float
) -> TokenCheck:
    """Check every token against `bound`, the noise. Equal texts are checked as well: both may be wrong."""
    first: list[tuple[int, float]] = []
    worst, wrong, ended = 0.0, 0, 0
    for text, other in zip(ours, theirs, strict=True):
        misfit = float(misfits(target, text).nan_to_num(nan=BEYOND, posinf=BEYOND).max())
        wrong_end = not _ends_correctly(text, target.context)
        worst = max(worst, misfit)
        wrong += misfit > bound or wrong_end
        ended += wrong_end
        if text.output != other.output:
            first.append(_find_divergence(target, text, other))
    longest = max(len(text.output) for text in ours)
    return TokenCheck(len(ours), len(ours) - len(first), first, worst, wrong, ended, longest)


def _ends_correctly(text: GeneratedText, context: int) -> bool:
    """Return whether it ends at the first stop token, or else at the limit or the end of the context."""
    stops = [index for index, token in enumerate(text.output) if token in text.sampling.stop_token_ids]
    most = min(text.sampling.max_new_tokens, context - len(text.prompt))
    return len(text.output) <= most and (stops == [len(text.output) - 1] or (not stops and len(text.output) == most))


def _find_divergence(target: LanguageModel, text: GeneratedText, other: GeneratedText) -> tuple[int, float]:
    """Return the index of the first differing token, and the gap between the target's two best logits there."""
    pairs = zip(text.output, other.output, strict=False)
    index = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text.output), len(other.output)))
    longer = max(text, other, key=lambda text: len(text.output))
    logits = compute_logits(target, GeneratedText(longer.prompt, longer.output[: index + 1], longer.sampling))
    logits = _forbid_stops(logits, longer.sampling)[-1:]
    return index, float(_gap(logits, logits.topk(2).indices))


def bound_error_rate(wrong: int, texts: int) -> float:
    """Return the one-sided upper limit of the rate of wrong texts (Clopper & Pearson 1934)."""
    return 1.0 if wrong >= texts else float(stats.beta.ppf(CONFIDENCE, wrong + 1, texts - wrong))
