"""The suffix automaton against scanning the whole text, and the drafts that come of it."""

import random

import pytest

from methods.sam_decoding import SamDecoding
from methods.suffix_automaton import Match, SuffixAutomaton
from tests.methods_under_test import target_of


def earlier(text: list[int]) -> dict[int, list[int]]:
    """By length, the places behind every earlier occurrence of the text's last tokens, overlapping ones too."""
    found: dict[int, list[int]] = {}
    for length in range(1, len(text)):
        ends = [end for end in range(length, len(text)) if text[end - length : end] == text[-length:]]
        if not ends:
            break
        found[length] = ends
    return found


def texts() -> list[list[int]]:
    rng = random.Random(4)
    made = [[rng.randrange(symbols) for _ in range(150)] for symbols in (1, 2, 3, 5, 20)]
    motif = [rng.randrange(50) for _ in range(17)]
    made.append([token for _ in range(8) for token in [*motif, rng.randrange(50)]])
    return made


@pytest.mark.parametrize("text", texts())
def test_the_match_is_the_longest_and_stands_where_it_says(text: list[int]) -> None:
    first, recent = SuffixAutomaton(recent=False), SuffixAutomaton(recent=True)
    seen: dict[tuple[int, ...], int] = {}
    for at, token in enumerate(text, start=1):
        first.extend([token])
        recent.extend([token])
        there = earlier(text[:at])
        longest = max(there, default=0)
        assert first.match == Match(longest, min(there[longest]) if longest else 0), at
        match = tuple(text[at - longest : at])
        assert recent.match.length == longest and (not longest or recent.match.end in there[longest])
        if match in seen:
            assert recent.match.end == seen[match], "the place seen last where this match was the longest"
        if longest:
            seen[match] = at


@pytest.mark.parametrize("text", texts())
@pytest.mark.parametrize("room", [3, 12])
def test_a_shorter_match_with_text_behind_it(text: list[int], room: int) -> None:
    automaton = SuffixAutomaton(recent=False)
    for at, token in enumerate(text, start=1):
        automaton.extend([token])
        firsts = {length: min(ends) for length, ends in earlier(text[:at]).items()}
        found = automaton.shorter(room)
        if not firsts:
            assert found == Match(0, 0)
        elif any(at - 1 - end >= room for end in firsts.values()):
            assert found.length == max(length for length, end in firsts.items() if at - 1 - end >= room), at
        assert found.length == 0 or found.end == firsts[found.length]


def drafted(drafter: SamDecoding, text: list[int], budget: int = 99) -> list[int]:
    drafter.bind(target_of("llama"))
    state = SuffixAutomaton(drafter.recent)
    state.extend(text)
    tree = drafter.draft(state, budget)
    assert tree.linear and tree.tokens[0] == text[-1]
    return tree.tokens[1:].tolist()


def test_drafts_grow_with_the_match_up_to_the_limits() -> None:
    text = [1, 2, 3, *range(10, 30), 1, 2, 3]
    sam = SamDecoding(length=12, factor=2.0, shortest=2, recent=True, full=False, static=None, static_bias=0)
    assert drafted(sam, text) == list(range(10, 16)), "twice a match of three"
    assert drafted(sam, text, budget=4) == [10, 11, 12, 13] and drafted(sam, text, budget=0) == []
    assert drafted(sam, [*text[:-3], 3]) == [], "a match of one is too short"
    assert drafted(SamDecoding(12, None, 2, True, False, None, 0), text) == list(range(10, 22))


def test_a_full_chain_climbs_to_a_match_with_enough_behind_it_and_is_filled_up() -> None:
    sam = SamDecoding(length=6, factor=None, shortest=2, recent=False, full=True, static=None, static_bias=0)
    text = [2, 3, 40, 41, 42, 43, 44, 45, 1, 2, 3, 50, 1, 2, 3]
    assert drafted(sam, text) == [40, 41, 42, 43, 44, 45], "behind 2 3, for behind 1 2 3 stand three tokens before the root"
    assert drafted(sam, [7, 8, 9, 7, 8]) == [9, 7, 0, 0, 0, 0], "the root itself is not copied"
