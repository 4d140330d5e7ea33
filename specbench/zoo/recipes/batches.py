"""Training batches of the mini suite: whole conversations, loss on the answers alone, similar lengths together."""

import random
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specbench.zoo.recipes.drills import generate_drills
from specbench.zoo.recipes.tokenizer import ASSISTANT, USER
from tasks.mini.dialogue import Dialogue
from tasks.mini.generator import WRITERS, generate_dialogues

SHARES = {"mt_bench": 0.28, "translation": 0.12, "summarization": 0.17, "qa": 0.10, "math_reasoning": 0.18, "rag": 0.15}
IGNORED = -100


def encode_dialogue(dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids of the chat and labels, which are the ids inside answers (their `</s>` too) and -100 elsewhere."""
    ids, labels = [tokenizer.bos_token_id], [IGNORED]
    for exchange in dialogue.exchanges:
        asked = tokenizer(USER + exchange.ask + ASSISTANT).input_ids
        answered = [*tokenizer(exchange.answer).input_ids, tokenizer.eos_token_id]
        ids += asked + answered
        labels += [IGNORED] * len(asked) + answered
    return ids, labels


def _draw_pool(
    streams: dict[str, Iterator[Dialogue]],
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
    drills: Mapping[str, float],
    count: int,
) -> list:
    shares = {task: share * (1 - sum(drills.values())) for task, share in SHARES.items()} | dict(drills)
    tasks = rng.choices(list(shares), weights=list(shares.values()), k=count)
    return [encode_dialogue(next(streams[task]), tokenizer) for task in tasks]


def pad_rows(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """(B, T) ids and labels, padded on the right: a causal model never looks there."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows])
    return ids, labels


def iter_batches(
    tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int, smallest: float, drills: Mapping[str, float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of about `tokens` token ids; dialogues of sizes from `smallest` to 1, and drills by their shares."""
    rng = random.Random(seed)
    streams = {task: generate_dialogues(task, "train", seed, smallest) for task in WRITERS} | {
        name: generate_drills(name, seed) for name in drills
    }
    while True:
        pool = sorted(_draw_pool(streams, tokenizer, rng, drills, 256), key=lambda row: len(row[0]))
        made, start = [], 0
        while start < len(pool):
            end = start + 1
            while end < len(pool) and (end + 1 - start) * len(pool[end][0]) <= tokens:
                end += 1
            made.append(pad_rows(pool[start:end], tokenizer.eos_token_id))
            start = end
        rng.shuffle(made)
        yield from made
