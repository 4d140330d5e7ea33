"""Prompt lookup against scanning all tokens at every step."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from methods.pld import NgramIndex, PromptLookup
from specbench.decoding.language_model import TargetOutput
from specbench.decoding.verify import Verification
from specbench.errors import InputError
from tests.methods_under_test import drafter_of
from tests.tiny import NO_CONTEXT, tiny_language_model

Scan = Callable[[list[int]], list[int]]


def spec_bench(tokens: list[int]) -> list[int]:
    """Spec-Bench's rule: of three, two, one last tokens the leftmost place with ten tokens behind it; else token 100."""
    length = len(tokens)
    for g in (3, 2, 1):
        for i in range(length - g + 1):
            if tokens[i : i + g] == tokens[-g:] and i + g + 10 <= length and i + g < length - g:
                return tokens[i + g : i + g + 10]
    return [100]


def most_recent(tokens: list[int]) -> list[int]:
    """The rule of pld.yaml: of three, then two last tokens the latest earlier place, and up to ten tokens behind it."""
    length = len(tokens)
    for g in (3, 2):
        for i in reversed(range(length - g)):
            if tokens[i : i + g] == tokens[-g:]:
                return tokens[i + g : i + g + 10]
    return []


def oldest_short(tokens: list[int]) -> list[int]:
    """Four tokens behind the first place of one or two tokens, fewer where the text ends."""
    length = len(tokens)
    for g in (2, 1):
        for i in range(length - g):
            if tokens[i : i + g] == tokens[-g:]:
                return tokens[i + g : i + g + 4]
    return []


def beyond(tokens: list[int]) -> list[int]:
    """As most_recent, but what is copied is copied again from the text that it makes, until there are ten tokens."""
    copy: list[int] = []
    if most_recent(tokens):
        start = next(i for i in range(len(tokens)) if is_source(tokens, i))
        text = list(tokens)
        while len(copy) < 10:
            copy.append(text[start + len(copy)])
            text.append(copy[-1])
    return copy


def is_source(tokens: list[int], place: int) -> bool:
    """Whether the rule of most_recent copies from this place."""
    for g in (3, 2):
        found = [i + g for i in range(len(tokens) - g) if tokens[i : i + g] == tokens[-g:]]
        if found:
            return place == found[-1]
    return False


def lookup(max_ngram: int, min_ngram: int, length: int, match: str, full: bool) -> PromptLookup:
    return PromptLookup(max_ngram, min_ngram, length, match, full, filler=None)  # type: ignore[arg-type]


RULES: dict[str, tuple[Callable[[], Any], Scan]] = {
    "last, not full": (lambda: lookup(3, 2, 10, "last", full=False), most_recent),
    "pld_spec_bench": (lambda: drafter_of("pld_spec_bench", "llama"), spec_bench),
    "pld_beyond": (lambda: drafter_of("pld_beyond", "llama"), beyond),
    "first, not full": (lambda: lookup(2, 1, 4, "first", full=False), oldest_short),
}


def grown(rng: random.Random, alphabet: int, pieces: int) -> list[list[int]]:
    """A prompt of 1 to 20 tokens and further pieces of 1 to 12, as verification commits them."""
    sizes = [rng.randint(1, 20)] + [rng.randint(1, 12) for _ in range(pieces)]
    return [[rng.randrange(alphabet) for _ in range(size)] for size in sizes]


def offered(drafter: PromptLookup, scan: Scan, seed: int, alphabet: int) -> int:
    """How many drafts were looked up; every one equals the scan's."""
    prompt, *pieces = grown(random.Random(seed), alphabet, pieces=12)
    state = drafter.start(list(prompt), TargetOutput(torch.empty(0)), NO_CONTEXT)
    tokens, found = list(prompt), 0
    for piece in [[], *pieces]:
        drafter.observe(state, drafter.draft(state, 99), TargetOutput(torch.empty(0)), Verification([0], 0, piece))
        tokens += piece
        expected = scan(tokens)
        found += int(expected not in ([], [100]))
        assert drafter.copy_match(state) == expected, f"seed {seed}: behind {tokens}"
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("alphabet", [2, 4, 10])
def test_lookups_equal_a_scan_while_the_text_grows(rule: str, alphabet: int) -> None:
    make, scan = RULES[rule]
    drafter = make()
    drafter.bind(tiny_language_model("llama", layers=1))
    assert sum(offered(drafter, scan, seed, alphabet) for seed in range(60)) > 60, "the texts repeat themselves"


@pytest.mark.parametrize("match", ["first", "last"])
def test_an_index_grown_in_pieces_equals_one_built_at_once(match: str) -> None:
    rng = random.Random(3)
    for _ in range(50):
        pieces = grown(rng, alphabet=3, pieces=6)
        index = NgramIndex(list(pieces[0]), range(3, 0, -1), match)  # type: ignore[arg-type]
        for piece in pieces[1:]:
            index.extend(piece)
        whole = NgramIndex([token for piece in pieces for token in piece], range(3, 0, -1), match)  # type: ignore[arg-type]
        assert index.tokens == whole.tokens
        assert [index.find(size) for size in (3, 2, 1)] == [whole.find(size) for size in (3, 2, 1)]


def start(drafter: PromptLookup, prompt: list[int]) -> NgramIndex:
    drafter.bind(tiny_language_model("llama", layers=1))
    return drafter.start(prompt, TargetOutput(torch.empty(0)), NO_CONTEXT)


def test_a_draft_is_the_root_and_no_more_than_the_budget() -> None:
    drafter = lookup(3, 2, 10, "last", full=False)
    state = start(drafter, [5, 6, 7, 8, 9, 5, 6])
    for budget, expected in [(99, [7, 8, 9, 5, 6]), (5, [7, 8, 9, 5, 6]), (3, [7, 8, 9]), (0, [])]:
        tree = drafter.draft(state, budget)
        assert tree.tokens.tolist() == [6, *expected] and tree.linear
    assert state.tokens == [5, 6, 7, 8, 9, 5, 6], "drafting changes nothing"


def test_the_filler_is_cut_by_the_budget_too() -> None:
    drafter: Any = drafter_of("pld_spec_bench", "llama")
    state = start(drafter, [5, 6, 7])
    assert drafter.draft(state, 4).tokens.tolist() == [7, 100] and drafter.draft(state, 0).tokens.tolist() == [7]


def test_spec_bench_wants_ten_tokens_behind_a_match() -> None:
    drafter: Any = drafter_of("pld_spec_bench", "llama")
    for between, expected in [(6, [100]), (7, [*range(10, 17), 1, 2, 3])]:
        state = start(drafter, [1, 2, 3, *range(10, 10 + between), 1, 2, 3])
        assert drafter.copy_match(state) == expected, f"{between} + 3 tokens stand behind the first 1 2 3"


def test_spec_bench_takes_the_oldest_and_the_default_the_latest_place() -> None:
    text = [1, 2, 3, *range(20, 32), 1, 2, 3, *range(40, 52), 1, 2, 3]
    for label, first in [("pld_spec_bench", 20), ("pld", 40)]:
        drafter: Any = drafter_of(label, "llama")
        assert drafter.copy_match(start(drafter, text))[:4] == list(range(first, first + 4))


def test_the_latest_full_place_is_not_kept_and_therefore_refused() -> None:
    with pytest.raises(InputError, match="match=first"):
        lookup(2, 1, 4, "last", full=True)


def test_a_filler_that_the_target_does_not_have_is_refused() -> None:
    target = tiny_language_model("llama")
    PromptLookup(max_ngram=3, min_ngram=2, length=4, match="last", full=False, filler=target.vocabulary - 1).bind(target)
    drafter = PromptLookup(max_ngram=3, min_ngram=2, length=4, match="last", full=False, filler=target.vocabulary)
    with pytest.raises(InputError, match=f"filler={target.vocabulary}: the target has tokens 0 to {target.vocabulary - 1}"):
        drafter.bind(target)
