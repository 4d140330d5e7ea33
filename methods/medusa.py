"""Medusa (Cai et al. 2024, section 2.1): extra heads on the target's last hidden state, one per position ahead; a static tree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from specbench.decoding.drafter import SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification
from specbench.drafters.lesson import Lesson, LessonLoss, cross_entropy
from specbench.drafters.network import DraftNetwork, TargetShape
from specbench.drafters.tree_heads import TreeHeads

DECAY = 0.8  # of a head's weight in the loss with each position further ahead (section 2.2.1)


class ResBlock(nn.Module):
    """h + SiLU(W h + b)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + nn.functional.silu(self.linear(hidden))


class MedusaHeads(DraftNetwork):
    """Head i reads the hidden state that the target wrote the root from, and predicts the token i + 1 places behind the root."""

    files = ("medusa_lm_head.pt",)
    writes_hidden = ("linear.weight", "linear.bias")
    packs = False

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__(config, shape)
        for head in range(config["medusa_num_heads"]):
            blocks = [ResBlock(shape.hidden_size) for _ in range(config["medusa_num_layers"])]
            self.add_module(str(head), nn.Sequential(*blocks, nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)))

    @classmethod
    def create_config(cls, shape: TargetShape) -> dict[str, Any]:
        return {"medusa_num_heads": 4, "medusa_num_layers": 1}

    @classmethod
    def normalise_checkpoint(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Published config.json files say two heads whatever lies beside them: what lies there counts."""
        numbers = {name.split(".")[0] for name in tensors}
        return config | {"medusa_num_heads": len(numbers), "medusa_num_layers": config.get("medusa_num_layers", 1)}, tensors

    def __len__(self) -> int:
        return len(self._modules)

    def init_weights(self, target: LanguageModel) -> None:
        """Every head begins as the target's own (section 2.1.1)."""
        for head in self.children():
            block, logits = head[0], head[-1]  # type: ignore[index]
            nn.init.zeros_(block.linear.weight)
            nn.init.zeros_(block.linear.bias)
            logits.weight.data.copy_(target.head.weight)  # type: ignore[union-attr, arg-type]

    def prepare(self) -> None:
        """Lay equal weights of all heads side by side, so that one product serves all; the heads keep looking at them."""
        heads: list[Any] = list(self.children())
        self._blocks = [
            (
                _stack_parameters([head[i].linear.weight for head in heads]),
                _stack_parameters([head[i].linear.bias for head in heads]),
            )
            for i in range(self.config["medusa_num_layers"])
        ]
        self._logits = _stack_parameters([head[-1].weight for head in heads])  # (heads, V, H)

    def compute_logits(self, hidden: Tensor, heads: int) -> Tensor:
        """hidden (1, H) -> (heads, V) of the first heads."""
        read = hidden.expand(heads, 1, -1)
        for weight, bias in self._blocks:
            read = read + nn.functional.silu(torch.baddbmm(bias[:heads, None], read, weight[:heads].mT))
        return torch.bmm(read, self._logits[:heads].mT)[:, 0]

    def compute_loss(self, lesson: Lesson) -> LessonLoss:
        """Cross-entropy of every head, each DECAY times the weight of the one before."""
        losses, right = [], []
        for i, head in enumerate(self.children()):
            there, tokens = lesson.select_ahead(i + 2)
            loss, share = cross_entropy(head(lesson.hidden[there]), tokens)
            losses.append(DECAY ** (i + 1) * loss)
            right.append(share)
        return LessonLoss(torch.stack(losses).sum(), right)


def _stack_parameters(parameters: Sequence[nn.Parameter]) -> Tensor:
    """(heads, ...) of one parameter a head, which from then on looks at its part."""
    stacked = torch.stack([parameter.data for parameter in parameters])
    for parameter, view in zip(parameters, stacked, strict=True):
        parameter.data = view
    return stacked


@dataclass
class MedusaState:
    """hidden (1, H): what the target's head read when it wrote the root."""

    hidden: Tensor
    root: int


class Medusa(TreeHeads):
    """All parents of a depth have the same children."""

    network_class: ClassVar = MedusaHeads

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> MedusaState:
        return MedusaState(out.hidden[-1:], prompt[-1])

    def draft(self, state: MedusaState, budget: int) -> DraftTree:
        shape, root = self.tree.cut(budget), self.to_tensor([state.root])
        if shape.depth == 0:
            return DraftTree.chain(root)
        logits = self.network.compute_logits(state.hidden.to(self.network.dtype), shape.depth)
        best = logits.topk(self.tree.width).indices  # (depth, width)
        return shape.build_tree(torch.cat([root, best[shape.depths[1:] - 1, shape.ranks[1:]]]))

    def observe(self, state: MedusaState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        last = verified.path[-1]
        state.hidden, state.root = out.hidden[last : last + 1], verified.next_token
