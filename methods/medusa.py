"""Medusa (Cai et al. 2024, section 2.1): extra heads on the target's last hidden state, one per position; a static tree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from specbench.decoding.drafter import SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree
from specbench.decoding.tree_batch import pad_rows
from specbench.decoding.verify import Verification
from specbench.drafters.config_keys import MOST, Rule, require_equal, require_whole
from specbench.drafters.lesson import Lesson, LessonLoss, cross_entropy
from specbench.drafters.network import Checkpoint, DraftNetwork, TargetShape
from specbench.drafters.tree_heads import TreeHeads

DECAY = 0.8  # lambda_k = 0.8^k weights the loss of head k (section 2.2.1)


class ResBlock(nn.Module):
    """h + SiLU(W h + b)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + nn.functional.silu(self.linear(hidden))


class MedusaHeads(DraftNetwork):
    """Head i reads the hidden state that the root was chosen from, and predicts the token i + 1 places after the root."""

    files = ("medusa_lm_head.pt",)
    writes_hidden = ("linear.weight", "linear.bias")
    packs = False

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__(config, shape)
        for head in range(config["medusa_num_heads"]):
            blocks = [ResBlock(shape.hidden_size) for _ in range(config["medusa_num_layers"])]
            self.add_module(str(head), nn.Sequential(*blocks, nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)))

    @classmethod
    def list_keys(cls, shape: TargetShape) -> Mapping[str, Rule]:
        sizes = {name: require_equal(getattr(shape, name), "the target's") for name in ("hidden_size", "vocab_size")}
        return {**dict.fromkeys(("medusa_num_heads", "medusa_num_layers"), require_whole(most=MOST)), **sizes}

    @classmethod
    def create_config(cls, shape: TargetShape) -> dict[str, Any]:
        return {"medusa_num_heads": 4, "medusa_num_layers": 1}

    @classmethod
    def normalise_checkpoint(cls, config: dict[str, Any], tensors: dict[str, Tensor], shape: TargetShape) -> Checkpoint:
        """Count the heads in the checkpoint: published config.json files always say two."""
        numbers = {name.split(".")[0] for name in tensors}
        return config | {"medusa_num_heads": len(numbers), "medusa_num_layers": config.get("medusa_num_layers", 1)}, tensors

    def __len__(self) -> int:
        return len(self._modules)

    def init_weights(self, target: LanguageModel) -> None:
        """Start every head as a copy of the target's (section 2.1.1)."""
        heads: list[Any] = list(self.children())
        for head in heads:
            nn.init.zeros_(head[0].linear.weight)
            nn.init.zeros_(head[0].linear.bias)
            head[-1].weight.data.copy_(target.head.get_parameter("weight"))

    def prepare(self) -> None:
        """Stack the weights of all heads, so that one product serves them all; the heads become views of the stack."""
        heads: list[Any] = list(self.children())
        self._blocks = []
        for i in range(self.config["medusa_num_layers"]):
            linears = [head[i].linear for head in heads]
            weights = _stack_parameters([linear.weight for linear in linears])  # (heads, H, H)
            self._blocks.append((weights, _stack_parameters([linear.bias for linear in linears])))
        self._logits = _stack_parameters([head[-1].weight for head in heads])  # (heads, V, H)

    def compute_logits(self, hidden: Tensor, heads: int) -> Tensor:
        """hidden (B, H) -> logits (heads, B, V) of the first `heads` heads."""
        read = hidden.expand(heads, -1, -1)
        for weight, bias in self._blocks:
            read = read + nn.functional.silu(torch.baddbmm(bias[:heads, None], read, weight[:heads].mT))
        return torch.bmm(read, self._logits[:heads].mT)

    def compute_loss(self, lesson: Lesson) -> LessonLoss:
        """L = sum over k of lambda_k * (cross-entropy of head k), lambda_k = 0.8^k (section 2.2.1)."""
        losses, right = [], []
        for i, head in enumerate(self.children()):
            mask, tokens = lesson.select_ahead(i + 2)
            loss, share = cross_entropy(head(lesson.hidden[mask]), tokens)
            losses.append(DECAY ** (i + 1) * loss)
            right.append(share)
        return LessonLoss(torch.stack(losses).sum(), right)


def _stack_parameters(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Stack one parameter per head -> (heads, ...); each parameter becomes a view of its part."""
    stacked = torch.stack([parameter.data for parameter in parameters])
    for parameter, view in zip(parameters, stacked, strict=True):
        parameter.data = view
    return stacked


@dataclass
class MedusaState:
    """hidden (1, H): the hidden state that the root (1,) was chosen from."""

    hidden: Tensor
    root: Tensor


class Medusa(TreeHeads):
    """All expanded nodes of a depth have the same children: the best tokens of that depth's head."""

    network_class: ClassVar = MedusaHeads

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> MedusaState:
        return MedusaState(out.hidden[-1:], self.to_tensor(prompt[-1:]))

    def draft_tokens(self, states: list[MedusaState], budgets: list[int]) -> Tensor:
        shape, hidden = self.tree.cut(max(budgets)), pad_rows([state.hidden for state in states])[:, 0]
        logits = self.network.compute_logits(hidden.to(self.network.dtype), shape.depth)
        best: Tensor = logits.topk(self.tree.width).indices  # (depth, B, width)
        return best[shape.depths[1:] - 1, :, shape.ranks[1:]].T

    def observe(self, state: MedusaState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        last = verified.path[-1]
        state.hidden, state.root = out.hidden[last : last + 1], verified.token_ids[-1:]
