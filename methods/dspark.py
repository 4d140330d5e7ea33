"""DSpark (DeepSeek 2026): DFlash's block, with a head that reads the token drafted before each row, and one that ends the draft.

The Markov head adds to a row's logits a bias that depends on the token before it, so drafts can be drawn one after another
without another forward. The confidence head predicts whether a row will be accepted.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from methods.dflash import DECAY, DFlash, DFlashNetwork
from specbench.bounds import Length, Probability
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.tree import DraftTree
from specbench.drafters.chains import Chains
from specbench.drafters.config_keys import FLAG, Rule, require_name, require_whole
from specbench.drafters.keeping import UnreadState
from specbench.drafters.lesson import Lesson, LessonLoss
from specbench.drafters.network import Checkpoint, TargetShape
from specbench.errors import InputError

KINDS = ("vanilla", "gated", "rnn")
RANK, LARGEST_RANK = 256, 4096
TOKENS, DISTANCE, CONFIDENCE = 0.1, 0.9, 1.0  # weights of the parts of the loss


class MarkovHead(nn.Module):
    """A bias over the draft vocabulary from the token before a row. kind: what else it reads.

    vanilla: W2 W1[token]. gated: W2 (gate * W1[token]), where the gate also reads the row's hidden state. rnn: a state that
    passes from row to row reads both.
    """

    def __init__(self, kind: str, tokens: int, drafted: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.kind = kind
        self.markov_w1, self.markov_w2 = nn.Embedding(tokens, rank), nn.Linear(rank, drafted, bias=False)
        if kind == "gated":
            self.gate_proj = nn.Linear(hidden + rank, rank)
        if kind == "rnn":
            self.joint_proj = nn.Linear(2 * rank + hidden, 3 * rank)

    def forward(self, token: Tensor, hidden: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """token (...) before a row, hidden (..., H) of the row, memory (..., rank) of the row before -> bias (..., V), memory."""
        read = self.markov_w1(token)
        if self.kind == "gated":
            read = self.gate_proj(torch.cat([hidden, read], dim=-1)).sigmoid() * read
        elif self.kind == "rnn":
            memory = torch.zeros_like(read) if memory is None else memory
            gate, candidate, out = self.joint_proj(torch.cat([memory, read, hidden], dim=-1)).chunk(3, dim=-1)
            memory = gate.sigmoid() * memory + (1 - gate.sigmoid()) * candidate.tanh()
            read = out.tanh()
        return self.markov_w2(read), memory


class ConfidenceHead(nn.Module):
    """The logit of a row's acceptance, from its hidden state and, if `rank`, the embedding of the token before it."""

    def __init__(self, hidden: int, rank: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden + rank, 1)

    def forward(self, hidden: Tensor, embedding: Tensor | None) -> Tensor:
        """hidden (..., H), embedding (..., rank) of the token before -> (...)."""
        read = hidden if embedding is None else torch.cat([hidden, embedding.to(hidden.dtype)], dim=-1)
        return cast(Tensor, self.proj(read)[..., 0])


class DSparkNetwork(DFlashNetwork):
    """DFlash's network, a Markov head unless its rank is 0, and perhaps a confidence head."""

    speculators = "dspark"

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__(config, shape)
        rank, hidden = self.config["markov_rank"], self.layer_config.hidden_size
        if rank:
            self.markov_head = MarkovHead(self.config["markov_head_type"], shape.vocab_size, self.draft_vocabulary, rank, hidden)
        self.reads_token = self.config["confidence_head_with_markov"]
        if self.config["enable_confidence_head"]:
            self.confidence_head = ConfidenceHead(hidden, rank if self.reads_token else 0)
        self.other_inputs = {"markov_head.gate_proj.weight": rank, "confidence_head.proj.weight": rank if self.reads_token else 0}

    @classmethod
    def list_head_keys(cls) -> Mapping[str, Rule]:
        return {
            "projector_type": require_name(("dspark",)),
            "markov_rank": require_whole(0, LARGEST_RANK),
            "markov_head_type": require_name(KINDS),
            **dict.fromkeys(("enable_confidence_head", "confidence_head_with_markov"), FLAG),
        }

    @classmethod
    def create_config(cls, shape: TargetShape) -> dict[str, Any]:
        heads = {"markov_rank": min(RANK, shape.hidden_size), "markov_head_type": KINDS[0]}
        heads |= {"enable_confidence_head": True, "confidence_head_with_markov": True}
        return {**super().create_config(shape), "block_size": 7, "sample_from_anchor": True, **heads}

    @classmethod
    def normalise_checkpoint(cls, config: dict[str, Any], tensors: dict[str, Tensor], shape: TargetShape) -> Checkpoint:
        """Note which heads it has, where its config does not say; drafts begin with the root's row."""
        embedding = tensors.get("markov_head.markov_w1.weight")
        rank = config.get("markov_rank", embedding.shape[-1] if embedding is not None else 0)
        confident = config.get("enable_confidence_head", "confidence_head.proj.weight" in tensors)
        defaults = {"sample_from_anchor": True, "markov_head_type": KINDS[0], "confidence_head_with_markov": rank > 0}
        config = {**defaults, **config, "markov_rank": rank, "enable_confidence_head": confident}
        if not rank and not confident:
            raise InputError("neither a Markov head nor a confidence head: this is DFlash's network; expected method=dflash")
        if confident and config["confidence_head_with_markov"] and not rank:
            raise InputError("confidence_head_with_markov=true needs a Markov head, which markov_rank=0 leaves out")
        if rank and config["markov_head_type"] == "rnn" and not config["sample_from_anchor"]:
            raise InputError("markov_head_type=rnn with sample_from_anchor=false is not supported; expected true")
        return super().normalise_checkpoint(config, tensors, shape)

    def step(
        self, row: int, token: Tensor, hidden: Tensor, logits: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return a row's logits (..., V) after a token (...), and what passes to the next row, (..., rank) or null as `memory`.

        hidden (..., rows, H), logits (..., rows, V): of all rows. V: the draft vocabulary.
        """
        if not self.config["markov_rank"]:
            return logits[..., row, :], memory
        bias, memory = self.markov_head(token, hidden[..., row, :], memory)
        return logits[..., row, :] + bias, memory

    def compute_confidence(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """tokens (..., rows) before each row, hidden (..., rows, H) -> logits of acceptance (..., rows)."""
        return cast(Tensor, self.confidence_head(hidden, self.markov_head.markov_w1(tokens) if self.reads_token else None))

    def compute_loss(self, lesson: Lesson) -> LessonLoss:
        """The tokens' cross-entropy, the distance of the distributions, and the confidence's loss, labelled by acceptance."""
        blocks, hidden = self.read_blocks(lesson)
        logits, memory, rows = self.compute_logits(hidden), None, []
        for row in range(hidden.shape[2]):
            biased, memory = self.step(row, blocks.before[..., row], hidden, logits, memory)
            rows.append(biased.float())
        logits = torch.stack(rows, dim=2)
        expected = self.select_drafted(blocks.compute_teacher(lesson).float().softmax(-1))
        distance = (logits.softmax(-1) - expected).abs().sum(-1) + 1 - expected.sum(-1)  # (B, A, rows), over all tokens
        labels, known = self.to_draft_tokens(blocks.labels)
        weights = blocks.weigh(DECAY)
        total = weights.sum().clamp(min=1)
        entropy = nn.functional.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none").view(weights.shape)
        loss = (weights * (TOKENS * known * entropy + DISTANCE * distance)).sum() / total
        if self.config["enable_confidence_head"]:
            accepted = (1 - distance.detach() / 2).clamp(0, 1)
            confidence = self.compute_confidence(blocks.before, hidden).float()
            wrong = nn.functional.binary_cross_entropy_with_logits(confidence, accepted, reduction="none")
            loss = loss + CONFIDENCE * (weights * wrong).sum() / total
        return LessonLoss(loss, blocks.average(self.to_target_tokens(logits.argmax(-1)) == blocks.labels))


class DSpark(DFlash):
    """Draws the rows of a block one after another. confidence: end the draft before the first row below it; 0: never."""

    network_class: ClassVar[type[Any]] = DSparkNetwork
    draws = True

    def __init__(self, checkpoint: str | None, draft_tokens: Length | None, confidence: Probability, dtype: str) -> None:
        super().__init__(checkpoint, draft_tokens, dtype)
        self.confidence = confidence

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        if self.confidence > 0 and not self.network.config["enable_confidence_head"]:
            raise InputError(f"confidence={self.confidence}: the checkpoint has no confidence head; expected 0")

    def pick_drafts(self, states: list[UnreadState], hidden: Tensor, lengths: list[int]) -> list[DraftTree]:
        network, logits, memory, before = self.network, self.network.compute_logits(hidden), None, []
        chains = Chains([state.context.verifier for state in states], [state.root for state in states], lengths)
        for row in range(chains.deepest):
            before.append(chains.tokens)
            biased, memory = network.step(row, chains.tokens, hidden, logits, memory)
            chains.pick(network.to_target_logits(biased))
        if self.confidence > 0:
            chains.cut(self._count_sure(torch.stack(before, dim=1), hidden))
        return chains.build_trees()

    def _count_sure(self, before: Tensor, hidden: Tensor) -> list[int]:
        """Return how many rows come before the first unsure one. before (B, rows): tokens; hidden (B, rows, H).

        What a row's confidence reads does not depend on its own token.
        """
        sure = self.network.compute_confidence(before, hidden).sigmoid() >= self.confidence
        counts: list[int] = sure.cumprod(dim=1).sum(dim=1).tolist()
        return counts
