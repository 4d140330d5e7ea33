"""Whether a method takes the same steps whatever it was asked before, as one must whose state lasts a turn."""

from collections.abc import Callable, Sequence

from specbench.decoding.loop import Generation

Generate = Callable[[list[int]], Generation]


def leaks(generate: Generate, prompts: Sequence[list[int]]) -> int:
    """How many of the prompts are answered in other steps when they come in reverse order."""
    forwards = [_steps(generate(prompt)) for prompt in prompts]
    backwards = [_steps(generate(prompt)) for prompt in reversed(prompts)]
    return sum(one != other for one, other in zip(forwards, reversed(backwards), strict=True))


def _steps(out: Generation) -> tuple[list[int], ...]:
    return out.output_ids, out.drafted, out.nodes, out.depth, out.accepted, out.committed
