"""Generate one answer, and say what it took."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypedDict

from specbench.analysis import acceptance
from specbench.api.loading import LoadedMethod, LoadedTarget
from specbench.api.prompts import Prompt, encode_prompt
from specbench.decoding.loop import CapacityError, Generation
from specbench.errors import InputError
from specbench.models.chat import decode_answer
from specbench.models.target import Target
from specbench.setup.objects import build_sampling
from specbench.setup.sampling import change_sampling, check_seed

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SamplingOptions(TypedDict, total=False):
    """The settings of `sampling.` on the command line, with its defaults."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    min_new_tokens: int | None
    ignore_eos: bool | None
    stop: list[str] | None


@dataclass(frozen=True)
class Answer:
    """One answer. Per-step lists have one entry per step; seconds are those of this one call, without any warm-up."""

    text: str
    output_ids: list[int] = field(repr=False)
    prompt_ids: list[int] = field(repr=False)
    finish_reason: str  # eos, stop_string, length or capacity
    drafted: list[int] = field(repr=False)  # per step: draft tokens
    depth: list[int] = field(repr=False)  # per step: of the deepest draft token
    accepted: list[int] = field(repr=False)  # per step: draft tokens kept
    committed: list[int] = field(repr=False)  # per step: tokens written
    draft_forwards: int = field(repr=False)
    prefill_s: float
    decode_s: float

    @property
    def new_tokens(self) -> int:
        return len(self.output_ids)

    @property
    def steps(self) -> int:
        """Drafts that were verified; prefill, which writes the first token, is none."""
        return len(self.committed)

    @property
    def mean_accepted_tokens(self) -> float:
        """Tokens committed per step; nan without a step."""
        return acceptance.micro([self._steps])

    @property
    def acceptance_rate(self) -> float:
        """Accepted draft tokens / depth of the drafts offered; nan without a draft."""
        return acceptance.depth_rate([self._steps])

    @property
    def seconds(self) -> float:
        return self.prefill_s + self.decode_s

    @property
    def _steps(self) -> acceptance.Steps:
        return acceptance.Steps(self.depth, self.drafted, self.accepted, self.committed)


def generate(
    source: LoadedMethod | LoadedTarget, prompt: Prompt, *, seed: int = 0, **sampling: Unpack[SamplingOptions]
) -> Answer:
    """Return the answer of a method, or of a target's autoregressive decoding, to one prompt.

    prompt: a text, which becomes the user's message in the target's chat format; messages of role and content; or token ids.
    seed: of temperatures above 0. Raises InputError.
    """
    if not isinstance(source, (LoadedMethod, LoadedTarget)):
        found = type(source).__name__
        raise InputError(f"generate: expected what load_target or load_method returned, found {found}")
    method = source.baseline if isinstance(source, LoadedTarget) else source
    loaded, target = method.target, method.target.target
    check_seed(seed)
    settings = change_sampling(loaded.settings.sampling, sampling)
    chosen = replace(build_sampling(settings, target), seed=seed)
    ids = encode_prompt(prompt, target)
    try:
        out = method.engine.generate(method.label, ids, chosen)
    except CapacityError as error:
        raise InputError(f"prompt: {error}") from None
    return _build_answer(out, ids, target)


def _build_answer(out: Generation, ids: list[int], target: Target) -> Answer:
    assert out.finish_reason is not None
    return Answer(
        text=decode_answer(target.chat, target.tokenizer, out.output_ids),
        output_ids=out.output_ids,
        prompt_ids=ids,
        finish_reason=out.finish_reason,
        drafted=out.drafted,
        depth=out.depth,
        accepted=out.accepted,
        committed=out.committed,
        draft_forwards=out.draft_forwards,
        prefill_s=out.prefill_s,
        decode_s=out.decode_s,
    )
