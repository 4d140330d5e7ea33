"""Does a training fit in memory: estimated before it starts, since a CPU's allocator never refuses what the system then kills."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from specbench.drafters.network import DraftNetwork
from specbench.errors import InputError, is_out_of_memory
from specbench.machine.devices import get_free_memory

FLOAT = 4  # bytes; losses, gradients and optimizer states are float32
STATES = 3  # of a trained weight: its gradient and AdamW's two moments
VECTORS = 12  # hidden vectors that the gradient of one token's pass needs, at least
LEAST_ANSWERS = 0.25  # of a batch's tokens, assumed while the answers are not known


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes. fixed: whatever the batch. token: of each token of a batch; answer: of each of them that is part of an answer."""

    fixed: int
    token: int
    answer: int

    @staticmethod
    def of(network: DraftNetwork) -> "TrainingMemory":
        """Estimate from a network on any device; one on the meta device still needs its weights."""
        shape = network.shape
        trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
        weights = sum(weight.numel() for weight in network.parameters() if weight.is_meta)
        vectors = VECTORS + len(network.taps) + 1
        return TrainingMemory(
            fixed=FLOAT * (STATES * trained + weights),
            token=FLOAT * shape.hidden_size * vectors,
            answer=math.ceil(FLOAT * shape.vocab_size * network.count_logits()),
        )

    def sum(self, tokens: int, answers: int) -> int:
        return self.fixed + tokens * self.token + answers * self.answer


def check_memory(network: DraftNetwork, device: torch.device, tokens: int, answers: int, batch_tokens: int) -> None:
    """Raises InputError if a batch of so many tokens, some of them answers, does not fit in the free memory of the device."""
    memory, free = TrainingMemory.of(network), get_free_memory(device)
    if (needed := memory.sum(tokens, answers)) <= free:
        return
    room = (free - memory.fixed) * tokens // max(1, needed - memory.fixed)
    advice = f"expected at most about {room}" if room > 0 else "no batch is small enough"
    parts = f"{_format(memory.fixed)} for weights, gradients and AdamW, {_format(answers * memory.answer)} for logits"
    logits = f"{answers:,} answer tokens × {network.shape.vocab_size:,} ids"
    raise InputError(
        f"batch_tokens={batch_tokens}: {advice}: training needs {_format(needed)} on {device} ({parts} of {logits}), "
        f"where {_format(free)} are free"
    )


def _format(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


@contextmanager
def explain_exhaustion(device: torch.device, setting: str, advice: str) -> Iterator[None]:
    """Raise InputError where memory runs out, with the setting that asked for it and what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"{setting}: the memory of {device} ran out; {advice}") from None
