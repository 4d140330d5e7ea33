"""The suffix automaton against scanning the whole text, and the drafts that come of it."""

import random

import pytest
import torch

from methods.rest import Rest
from methods.sam_decoding import SamDecoding, SamState
from methods.suffix_automaton import SuffixAutomaton, SuffixMatch
from specbench.datastore.build import build_in_memory
from specbench.decoding.language_model import TargetOutput
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification
from tests.methods_under_test import target_of
from tests.tiny import NO_CONTEXT


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
        assert first.match == SuffixMatch(longest, min(there[longest]) if longest else 0), at
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
        found = automaton.find_shorter(room)
        if not firsts:
            assert found == SuffixMatch(0, 0)
        elif any(at - 1 - end >= room for end in firsts.values()):
            assert found.length == max(length for length, end in firsts.items() if at - 1 - end >= room), at
        assert found.length == 0 or found.end == firsts[found.length]


@pytest.mark.parametrize("text", texts())
def test_an_update_takes_constant_work_on_average(text: list[int]) -> None:
    """At most three transitions per token (Blumer et al. 1985), so that the work of all updates is linear in the text."""
    automaton = SuffixAutomaton(recent=True)
    for token in text:
        automaton.extend([token])
        assert sum(map(len, automaton._next)) <= 3 * len(automaton.tokens)


def started(drafter: SamDecoding, text: list[int]) -> SamState:
    drafter.bind(target_of("llama"))
    return drafter.start(text, TargetOutput(torch.zeros(1, 128)), NO_CONTEXT)


def drafted(drafter: SamDecoding, text: list[int], budget: int = 99) -> list[int]:
    tree = drafter.draft(started(drafter, text), budget)
    assert tree.linear and tree.tokens[0] == text[-1]
    return tree.tokens[1:].tolist()


def test_drafts_grow_with_the_match_up_to_the_limits() -> None:
    text = [1, 2, 3, *range(10, 30), 1, 2, 3]
    sam = SamDecoding(length=12, factor=2.0, shortest=2, recent=True, full=False, trial=None, static=None)
    assert drafted(sam, text) == list(range(10, 16)), "twice a match of three"
    assert drafted(sam, text, budget=4) == [10, 11, 12, 13] and drafted(sam, text, budget=0) == []
    assert drafted(sam, [*text[:-3], 3]) == [], "a match of one is too short"
    assert drafted(SamDecoding(12, None, 2, True, False, None, None), text) == list(range(10, 22))


def test_a_full_chain_climbs_to_a_match_with_enough_behind_it_and_is_filled_up() -> None:
    sam = SamDecoding(length=5, factor=None, shortest=2, recent=False, full=True, trial=None, static=None)
    text = [2, 3, 40, 41, 42, 43, 44, 45, 1, 2, 3, 50, 1, 2, 3]
    assert drafted(sam, text) == [40, 41, 42, 43, 44], "behind 2 3, for behind 1 2 3 stand three tokens before the root"
    assert drafted(sam, [7, 8, 9, 7, 8]) == [9, 7, 0, 0, 0], "the root itself is not copied"


def committed(drafter: SamDecoding, state: SamState, accepted: int, tokens: list[int]) -> None:
    """A step whose first `accepted` draft tokens were right."""
    verified = Verification(list(range(accepted + 1)), tokens[-1], tokens)
    drafter.observe(state, DraftTree.chain(torch.tensor([0])), TargetOutput(torch.zeros(1, 128)), verified)


def test_on_trial_a_copy_is_drafted_once_one_has_proved_right_and_no_more_after_a_bad_one() -> None:
    sam = SamDecoding(length=6, factor=None, shortest=2, recent=True, full=False, trial=4, static=None)
    state = started(sam, [1, 2, *range(10, 20), 3, 4, *range(30, 40), 1, 2])
    steps = [
        ([], 0, [10, 11]),  # watched, two of four right so far
        ([], 0, [12]),
        ([], 0, [13]),  # all four came: from here on it drafts
        ([14, 15, 16, 17, 18, 19], 6, [14, 15, 16, 17, 18, 19, 3]),
        ([4, 30, 31, 32, 33, 34], 1, [4, 99]),  # one accepted, less than half of four
        ([], 0, [3, 4]),
        ([], 0, [30, 98]),  # this watched copy was wrong at its second token
        ([], 0, [97]),
    ]
    for place, (expected, accepted, tokens) in enumerate(steps):
        assert sam.draft(state, 99).tokens.tolist()[1:] == expected, f"step {place}"
        committed(sam, state, accepted, tokens)


@pytest.mark.parametrize(("here", "static"), [([6, 7], True), ([5, 6, 7], False), ([4, 5, 6, 7], False)])
def test_the_longer_match_drafts(here: list[int], static: bool) -> None:
    """Three tokens match in the store; of equal matches prompt and answer's own counts."""
    rest = Rest("random", 16, 2, "spread", 64, 3, 8, "none", None)
    sam = SamDecoding(8, None, 1, True, False, None, rest)
    state = started(sam, [*here, 50, 51, *[4, 5, 6, 7][-max(3, len(here)) :]])
    rest.datastore = build_in_memory([[5, 6, 7, 60, 61, 62], [5, 6, 7, 60, 61, 63]], 128)
    tokens = sam.draft(state, 99).tokens[1:].tolist()
    assert tokens == [60, 61, 62, 63] if static else tokens[:2] == [50, 51]
    assert sam.nodes == 1 + 8 and sam.parts == (rest,)


def walked(automaton: SuffixAutomaton, tokens: list[int]) -> tuple[int, int]:
    """The authors' cursor: the state and length of the longest end of `tokens` that stands in the automaton's text."""
    state, length = 0, 0
    for token in tokens:
        while state and token not in automaton._next[state]:
            state = automaton._link[state]
            length = automaton._length[state]
        if token in automaton._next[state]:
            state, length = automaton._next[state][token], length + 1
    return state, length


def test_a_suffix_array_finds_what_an_automaton_of_the_same_texts_finds() -> None:
    rng = random.Random(6)
    text = [rng.randrange(6) for _ in range(400)]
    store, query = build_in_memory([text], 6), [rng.randrange(6) for _ in range(200)]
    automaton = SuffixAutomaton(recent=False)
    automaton.extend(text)
    for end in range(2, len(query)):
        state, length = walked(automaton, query[:end])
        match = store.find(query[:end], longest=64, shortest=1)
        assert match is not None and match.length == length, end
        places = store.chunks[0].suffixes[match.ranges[0][1] : match.ranges[0][2]]
        assert min(places) + length == automaton._end[state], "the first place behind it"
