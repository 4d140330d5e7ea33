"""What the steps of a training are made of: its plan, the batches, the lesson of each, and the optimizers."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from specbench.decoding.language_model import LanguageModel
from specbench.drafters.lesson import Lesson
from specbench.drafters.network import DraftNetwork
from specbench.errors import InputError
from specbench.models.texts import Text
from specbench.training.muon import Muon


@dataclass(frozen=True)
class TrainingPlan:
    """batch_tokens: tokens per forward; accumulate: forwards per step; rate, muon: peak rates of AdamW and of Muon."""

    epochs: float
    batch_tokens: int
    accumulate: int
    rate: float
    muon: float | None
    precision: str
    save_every: int
    seed: int


class Batches:
    """Batches of texts of similar length, of about `tokens` tokens with padding, shuffled every epoch."""

    def __init__(self, texts: list[Text], tokens: int, longest: int) -> None:
        fitting = [text for text in texts if _count_tokens(text) <= longest and len(text.answer_ids) > 1]
        fitting.sort(key=_count_tokens)
        if not fitting:
            raise InputError(f"no answer of two tokens or more in a conversation of at most {longest}")
        self.batches: list[list[Text]] = [[]]
        for text in fitting:
            if (len(self.batches[-1]) + 1) * _count_tokens(text) > tokens and self.batches[-1]:
                self.batches.append([])
            self.batches[-1].append(text)

    def __len__(self) -> int:
        return len(self.batches)

    def list_largest(self) -> list[list[Text]]:
        """Return the batch of the most tokens, padding included, and the batch of the most answer tokens, once if it is one."""
        padded = max(self.batches, key=lambda batch: len(batch) * max(map(_count_tokens, batch)))
        answered = max(self.batches, key=count_answers)
        return [padded] if padded is answered else [padded, answered]

    def get_batch(self, place: int, seed: int) -> list[Text]:
        """Return batch number `place` in the seed's order."""
        return self.batches[_shuffle(len(self), seed)[place]]


@lru_cache(maxsize=2)
def _shuffle(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def count_answers(texts: list[Text]) -> int:
    return sum(len(text.answer_ids) for text in texts)


def _count_tokens(text: Text) -> int:
    return len(text.prompt_ids) + len(text.answer_ids)


def build_lesson(texts: list[Text], target: LanguageModel, taps: tuple[int, ...]) -> Lesson:
    """Run the target over the texts. taps: the network's; the final norm's output is added to them."""
    ids = [text.prompt_ids + text.answer_ids for text in texts]
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids], device=target.device)
    answers = torch.zeros_like(padded, dtype=torch.bool)
    for row, text in enumerate(texts):
        answers[row, len(text.prompt_ids) : len(ids[row])] = True
    last = target.config.num_hidden_layers
    target.tap((*taps, last))
    states = target.read_hidden(padded)
    hidden = target.config.hidden_size
    return Lesson(padded, answers, states[..., :-hidden].float(), states[..., -hidden:], target.head)


def build_optimizers(network: DraftNetwork, plan: TrainingPlan) -> list[torch.optim.Optimizer]:
    """Return AdamW for all, or Muon for the matrices between hidden dimensions and AdamW for the rest."""
    vocabulary, trained = network.shape.vocab_size, list_trained(network)
    matrices = [p for p in trained if p.ndim == 2 and vocabulary not in p.shape] if plan.muon else []
    others = [p for p in trained if not any(p is matrix for matrix in matrices)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=plan.rate, betas=(0.9, 0.95), weight_decay=0.0)]
    if plan.muon and matrices:
        optimizers.append(Muon(matrices, lr=plan.muon))
    return optimizers


def list_trained(network: DraftNetwork) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
