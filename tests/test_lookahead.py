"""Lookahead against a reading of the rules without trees, masks or KV: every guess of the window is a forward of its own."""

import random

import pytest
import torch

from methods.lookahead import Lookahead, Pool
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from tests.methods_under_test import drafter_of
from tests.tiny import prompts, tiny_model

Steps = list[tuple[list[tuple[int, ...]], int]]  # per step: the guesses drafted, tokens committed


Grams = dict[int, list[tuple[int, ...]]]


class Slow:
    """methods.md 2.8 step by step: N, W, G as there, and the default's three departures."""

    def __init__(self, target: LanguageModel, drafter: Lookahead) -> None:
        self.target, self.drafter = target, drafter
        self.n, self.w, self.g = drafter.level, drafter.window, drafter.guesses

    def after(self, tokens: list[int]) -> int:
        with torch.inference_mode(), self.target.use_original_attention() as model:
            return int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())

    def decode(self, prompt: list[int], new: int) -> Steps:
        draw = random.Random(self.drafter.seed)
        rows = [[draw.choice(prompt) for _ in range(self.w + self.n - 3)]]
        pool: Grams = {}
        text = [*prompt, self.after(prompt)]
        if self.drafter.text_pool:
            self.learn(pool, text, 0)
        if self.drafter.prefill_row:
            guessed = [self.after(prompt + rows[0][: j + 1]) for j in range(len(rows[0]))]
            rows = [rows[0][1:], guessed]
        steps: Steps = []
        while len(text) < len(prompt) + new:
            root, budget = text[-1], len(prompt) + new - len(text) - 1
            guesses = [guess[:budget] for guess in pool.get(root, [])] if budget else []
            most = self.n - 1 if self.drafter.whole else self.n - 2
            best = max((self.hits(text, guess[:most]) for guess in guesses), default=0)
            guessed = [self.after(text + self.path(rows, j)) for j in range(len(rows[-1]))]
            rows = self.shifted(rows, guessed, root, pool)
            for _ in range(best + 1):
                text.append(self.after(text))
            if self.drafter.text_pool:
                self.learn(pool, text, len(text) - best - 1)
            steps.append((guesses, best + 1))
        return steps

    def hits(self, text: list[int], guess: tuple[int, ...]) -> int:
        count = 0
        while count < len(guess) and self.after([*text, *guess[:count]]) == guess[count]:
            count += 1
        return count

    def path(self, rows: list[list[int]], j: int) -> list[int]:
        """What the last row's place j sees behind the root, itself included: row 0 up to its column, then its column."""
        if len(rows) == 1:
            return rows[0][: j + 1]
        return rows[0][:j] + [row[j] for row in rows[1:]]

    def shifted(self, rows: list[list[int]], new: list[int], root: int, pool: Grams) -> list[list[int]]:
        if len(rows) < self.n - 1:
            return [row[1:] for row in rows] + [new[1:] if len(rows) > 1 else new]
        for i in range(len(new)):
            self.put(pool, root if i == 0 else rows[0][i - 1], (*(row[i] for row in rows[1:]), new[i]))
        return [rows[1][1:], *rows[2:], new]

    def learn(self, pool: Grams, text: list[int], old: int) -> None:
        for end in range(max(old, self.n - 1), len(text)):
            self.put(pool, text[end - self.n + 1], tuple(text[end - self.n + 2 : end + 1]))

    def put(self, pool: Grams, key: int, gram: tuple[int, ...]) -> None:
        kept = [one for one in pool.get(key, []) if one != gram]
        pool[key] = [*kept, gram][-self.g :]


SETTINGS = [
    (5, 7, 7, False, False, True),
    (5, 3, 2, True, True, False),
    (3, 1, 4, True, True, True),
    (4, 2, 2, True, False, False),
    (4, 5, 3, False, True, False),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_window_pool_and_acceptance_equal_the_slow_reading(settings: tuple[int, int, int, bool, bool, bool]) -> None:
    target = LanguageModel(tiny_model("llama", 2))
    drafter = Lookahead(*settings, 10)
    drafter.bind(target)
    target.tap(())
    slow, offered = Slow(target, drafter), 0
    for prompt in prompts(4, seed=8, longest=20):
        (out,) = generate(target, drafter, [prompt], Sampling(max_new_tokens=25))
        steps = slow.decode(prompt.tolist(), 25)
        assert out.committed == [committed for _, committed in steps]
        wasted = 0 if drafter.whole else 1
        drafted = [sum(len(guess) - wasted * (len(guess) == drafter.level - 1) for guess in guesses) for guesses, _ in steps]
        assert out.drafted == drafted
        offered += sum(drafted)
    assert offered, "the pool was asked"


def test_the_latest_guesses_stay_in_the_pool() -> None:
    pool = Pool(level=3, guesses=2)
    pool.add_text([5, 1, 2, 5, 3, 4, 5, 1, 2, 5, 6])
    assert pool.get_guesses(5) == [(3, 4), (1, 2)], "5 1 2 came again behind 5 3 4; 5 6 is no whole n-gram"
    pool.add(5, (7, 7))
    assert pool.get_guesses(5) == [(1, 2), (7, 7)] and pool.get_guesses(9) == []


def test_the_preset_never_accepts_a_guess_to_its_end() -> None:
    target = LanguageModel(tiny_model("llama", 1, seed=3))
    most = {}
    for label in ("lookahead", "lookahead_spec_bench"):
        drafter = drafter_of(label, "llama")
        drafter.bind(target)
        outs = [generate(target, drafter, [prompt], Sampling(max_new_tokens=100))[0] for prompt in prompts(6)]
        most[label] = max(max(out.committed) for out in outs)
    assert most == {"lookahead": 5, "lookahead_spec_bench": 4}
