"""What a turn's record says of a generated sequence."""

from __future__ import annotations

from typing import Any

from specbench.decoding.loop import CapacityError, Generation
from specbench.engine.served import ServedGeneration
from specbench.errors import format_error
from specbench.records.trial import PER_STEP, hash_ids, hash_text


class NoContextError(Exception):
    """An earlier turn failed, so this one has nothing to continue from."""


def collect_results(out: Generation, text: str, hashes_texts: bool, under_load: bool = False) -> dict[str, Any]:
    """Return counts, seconds and ids. hashes_texts: the turn may be compared with one without ids.

    under_load: a server has several requests at a time, so that what counts is how long this process waited.
    """
    served = _collect_served(out, under_load) if isinstance(out, ServedGeneration) else {}
    ids = None if isinstance(out, ServedGeneration) and out.text is not None else out.output_ids
    return {
        "new_tokens": len(out.output_ids),
        "finish_reason": out.finish_reason,
        **(_collect_steps(out) if out.sees_steps else {}),
        "decode_s": out.decode_s,
        "draft_s": out.draft_s,
        "verify_s": out.verify_s,
        "output_ids": ids,
        "output_sha256": None if ids is None else hash_ids(ids),
        "text_sha256": hash_text(text) if hashes_texts else None,
        **served,
    }


def _collect_steps(out: Generation) -> dict[str, Any]:
    counts = {"steps": out.steps, "target_forwards": out.steps + 1, "draft_forwards": out.draft_forwards}
    return {**counts, **{name: getattr(out, name) for name in PER_STEP}, "prefill_s": out.prefill_s}


def _collect_served(out: ServedGeneration, under_load: bool) -> dict[str, Any]:
    """Return what only servers say, and null for what they never do."""
    sums = dict(out.sums or {})
    steps = sums.pop("steps", None)
    told: dict[str, Any] = {} if out.sums is None else {"sums": sums, "steps": steps}
    if steps is not None:
        told["target_forwards"] = steps + 1
    if out.text is not None:
        told["new_tokens"] = out.tokens
    clock = {"client_first_s": out.client_first_s, "client_last_s": out.client_last_s}
    times = {"prefill_s": out.prefill_s}
    if under_load:
        times = {"prefill_s": out.client_first_s, "decode_s": out.client_last_s - out.client_first_s}
    return {"draft_forwards": None, **times, **clock, **told}


def describe_failure(error: BaseException) -> dict[str, Any]:
    reason = "capacity" if isinstance(error, CapacityError) else "error"
    text = str(error) if isinstance(error, (CapacityError, NoContextError)) else format_error(error)
    return {"new_tokens": 0, "finish_reason": reason, "error": text}
