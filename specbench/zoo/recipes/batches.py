"""Training batches of the mini suite: whole conversations of similar length, with the loss only on answers."""

import random
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specbench.zoo.recipes.drills import generate_drills
from specbench.zoo.recipes.tokenizer import ASSISTANT, USER
from tasks.mini.dialogue import Dialogue
from tasks.mini.generator import generate_dialogues

SHARES = {"mt_bench": 0.28, "translation": 0.12, "summarization": 0.17, "qa": 0.10, "math_reasoning": 0.18, "rag": 0.15}
IGNORED = -100
POOL = 256  # dialogues that are sorted by length together
Batch = tuple[Tensor, Tensor]  # (B, T) ids and labels
Row = tuple[list[int], list[int]]


def encode_dialogue(dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Return the chat's token ids and labels: the ids inside answers (their `</s>` included), -100 elsewhere."""
    ids, labels = [tokenizer.bos_token_id], [IGNORED]
    for exchange in dialogue.exchanges:
        question = tokenizer(USER + exchange.ask + ASSISTANT).input_ids
        answer = [*tokenizer(exchange.answer).input_ids, tokenizer.eos_token_id]
        ids += question + answer
        labels += [IGNORED] * len(question) + answer
    return ids, labels


def draw_pools(
    rng: random.Random, count: int, seed: int, smallest: float, drills: Mapping[str, float]
) -> Iterator[list[Dialogue]]:
    """Yield endless pools of `count` training dialogues of sizes from `smallest` to 1, mixed with drills by their shares."""
    shares = {task: share * (1 - sum(drills.values())) for task, share in SHARES.items()} | dict(drills)
    streams = {task: generate_dialogues(task, "train", seed, smallest) for task in SHARES}
    streams |= {name: generate_drills(name, seed) for name in drills}
    while True:
        yield [next(streams[task]) for task in rng.choices(list(shares), weights=list(shares.values()), k=count)]


def pad_rows(rows: list[Row], pad: int) -> Batch:
    """Pad ids and labels on the right, which a causal model never attends to."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows])
    return ids, labels


def iter_batches(
    tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int, smallest: float, drills: Mapping[str, float]
) -> Iterator[Batch]:
    """Yield endless batches of about `tokens` token ids."""
    rng = random.Random(seed)
    for dialogues in draw_pools(rng, POOL, seed, smallest, drills):
        pool = sorted((encode_dialogue(dialogue, tokenizer) for dialogue in dialogues), key=lambda row: len(row[0]))
        batches, start = [], 0
        while start < len(pool):
            end = start + 1
            while end < len(pool) and (end + 1 - start) * len(pool[end][0]) <= tokens:
                end += 1
            batches.append(pad_rows(pool[start:end], tokenizer.eos_token_id))
            start = end
        rng.shuffle(batches)
        yield from batches
