"""Networks that draft only some of the target's tokens, as in EAGLE-3: d2t holds each one's offset to its id in the target."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from specbench.drafters.lesson import Lesson
from specbench.drafters.network import DraftNetwork, TargetShape
from specbench.errors import InputError

MAPS = ("d2t", "t2d")


class MappedNetwork(DraftNetwork):
    """A network that has its own vocabulary if its config.json has a `draft_vocab_size` below the target's."""

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__(config, shape)
        self.draft_vocabulary: int = config.get("draft_vocab_size", shape.vocab_size)
        if self.maps:
            self.d2t = nn.Buffer(torch.zeros(self.draft_vocabulary, dtype=torch.long))
            self.t2d = nn.Buffer(torch.zeros(shape.vocab_size, dtype=torch.bool))

    @property
    def maps(self) -> bool:
        return self.draft_vocabulary < self.shape.vocab_size

    def to_target_tokens(self, tokens: Tensor) -> Tensor:
        """Map ids of the draft vocabulary, of any shape, to ids of the target's."""
        return tokens + self.d2t[tokens] if self.maps else tokens

    def to_draft_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Map ids of the target to ids of the draft vocabulary; return these, and which of the tokens it has (bool)."""
        if not self.maps:
            return tokens, torch.ones_like(tokens, dtype=torch.bool)
        places = self.t2d.cumsum(0) - 1
        return places[tokens].clamp(min=0), self.t2d[tokens]

    def to_target_logits(self, logits: Tensor) -> Tensor:
        """Return logits (..., draft vocabulary) over the target's vocabulary, (..., V): tokens never drafted have -inf."""
        if not self.maps:
            return logits
        known = torch.arange(self.draft_vocabulary, device=logits.device) + self.d2t
        return logits.new_full((*logits.shape[:-1], self.shape.vocab_size), -torch.inf).index_copy_(-1, known, logits)

    def choose_vocabulary(self, tokens: Tensor) -> None:
        """Draft only these ids of the target, (draft vocabulary,) ascending."""
        self.d2t.copy_(tokens - torch.arange(len(tokens), device=tokens.device))
        self.t2d[tokens] = True

    def select_drafted(self, values: Tensor) -> Tensor:
        """Return, of values of the target's tokens (..., V), such as probabilities, only those of drafted tokens."""
        return values[..., self.t2d] if self.maps else values

    def select_teacher(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the target's logits (n, V) over the draft vocabulary, and whether its best token is among them, (n,) bool.

        Only those rows are trained on.
        """
        if not self.maps:
            return logits, torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        return self.select_drafted(logits), self.t2d[logits.argmax(-1)]


def read_teacher(network: MappedNetwork, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Return the teacher's logits for every answer token but one at place 0, as `select_teacher` does."""
    mask, _ = lesson.select_ahead(1)
    return network.select_teacher(lesson.compute_teacher(mask, 1))


def check_maps(config: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the maps if the vocabularies are equal.

    Raises InputError for a d2t that maps a token to no id or two tokens to one id, and for a t2d that contradicts d2t.
    """
    vocabulary: int = config["vocab_size"]
    if config.get("draft_vocab_size", vocabulary) == vocabulary:
        return {name: tensor for name, tensor in tensors.items() if name not in MAPS}
    offsets, known = (tensors.get(name) for name in MAPS)
    if offsets is None or offsets.ndim != 1 or offsets.is_floating_point() or offsets.is_complex():
        return tensors  # refused by its shape or type
    tokens = torch.arange(len(offsets)) + offsets
    if not ((tokens >= 0) & (tokens < vocabulary)).all() or len(set(tokens.tolist())) < len(tokens):
        raise InputError(
            f"d2t maps to ids beyond the target's {vocabulary}, or several tokens to one id; expected offsets to distinct ids"
        )
    if known is None or known.shape != (vocabulary,) or known.dtype != torch.bool:
        return tensors
    if not torch.equal(known.nonzero()[:, 0], tokens.sort().values):
        raise InputError("t2d contradicts d2t: expected true for exactly the tokens that d2t maps to")
    return tensors
