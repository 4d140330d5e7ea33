"""How often strings occur in growing texts, and what followed them: the trie of suffix decoding, in an automaton's memory."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from methods.suffix_automaton import SuffixStates


class Followers:
    """The tokens that followed a string, most frequent first. Of equal ones, the order follows from how their counts changed."""

    def __init__(self, levels: dict[int, OrderedDict[int, None]]) -> None:
        self._levels = levels  # the tokens of each count
        self._most = max(levels, default=0)

    def __iter__(self) -> Iterator[int]:
        for count in sorted(self._levels, reverse=True):
            yield from self._levels[count]

    @property
    def best(self) -> int | None:
        return next(iter(self._levels[self._most])) if self._levels else None

    def copy(self) -> "Followers":
        return Followers({count: level.copy() for count, level in self._levels.items()})

    def raise_count(self, token: int, count: int) -> None:
        """Move a token from a count to the next. The first of its level is the first of the next one, any other the last."""
        first = count > 0 and self._leave(token, count)
        self._enter(token, count + 1, first)
        self._most = max(self._most, count + 1)

    def lower_count(self, token: int, count: int) -> None:
        """Move a token from a count to the one before, as the first there; one that no longer occurs is dropped."""
        self._leave(token, count)
        if count > 1:
            self._enter(token, count - 1, first=True)
        self._most = max(self._levels, default=0)

    def _enter(self, token: int, count: int, first: bool) -> None:
        level = self._levels.setdefault(count, OrderedDict())
        level[token] = None
        level.move_to_end(token, last=not first)

    def _leave(self, token: int, count: int) -> bool:
        """Take a token from its level; return whether it was the first there."""
        level = self._levels[count]
        first = next(iter(level)) == token
        del level[token]
        if not level:
            del self._levels[count]
        return first


@dataclass
class CountedText:
    """A text of SuffixCounts. whole: the state of all its tokens; recent: that of the last of them, as many as are counted.

    counted: until it is removed.
    """

    tokens: list[int] = field(default_factory=list)
    whole: int = 0
    recent: int = 0
    counted: bool = True


class Pattern(NamedTuple):
    """Suffixes of a context, of lengths from `shortest` to `longest`, that occur at the same positions of the texts."""

    state: int
    shortest: int
    longest: int


class SuffixCounts(SuffixStates):
    """Counts every string of at most `depth` tokens in several texts; each start of a string in a text is an occurrence.

    A trie of these strings has `depth` nodes per token. Strings that end at the same positions have equal counts and equal
    followers, so a state of the automaton represents all of their nodes.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.counts = [0]  # by state; of strings that are all longer than `depth` they are not kept
        self._followers: list[Followers | None] = [None]  # None: not more than one token has followed

    def append(self, text: CountedText, token: int) -> None:
        """Append a token to a text. Takes at most `depth` changes of counts, usually few."""
        text.whole = self._extend(text.whole, token)
        parent = self._find_suffix(text.recent, min(len(text.tokens), self.depth - 1))
        for state in self._iter_suffixes(parent):
            self._raise_follower(state, token)
        text.tokens.append(token)
        text.recent = self._next[parent][token]
        for state in self._iter_suffixes(text.recent):
            self.counts[state] += 1

    def remove(self, text: CountedText) -> None:
        """Subtract a text's counts. Its states remain in memory."""
        text.counted, recent = False, 0
        for place, token in enumerate(text.tokens):
            parent = self._find_suffix(recent, min(place, self.depth - 1))
            recent = self._next[parent][token]
            for state in self._iter_suffixes(parent):
                if (followers := self._followers[state]) is not None:
                    followers.lower_count(token, self.counts[self._next[state][token]])
            for state in self._iter_suffixes(recent):
                self.counts[state] -= 1

    def _add_state(self, length: int, original: int | None = None) -> int:
        self.counts.append(0 if original is None else self.counts[original])
        followers = None if original is None else self._followers[original]
        self._followers.append(followers and followers.copy())
        return super()._add_state(length, original)

    def _find_suffix(self, state: int, length: int) -> int:
        """Return the state of the last `length` tokens of a string of a state that is at least as long."""
        while state and self._length[self._link[state]] >= length:
            state = self._link[state]
        return state

    def _iter_suffixes(self, state: int) -> Iterator[int]:
        """Yield the state and those of its strings' suffixes, without the empty string."""
        while state:
            yield state
            state = self._link[state]

    def _raise_follower(self, state: int, token: int) -> None:
        """Note that a token follows a state's strings once more, before its count rises."""
        after, followers = self._next[state], self._followers[state]
        if followers is None:
            if len(after) == 1:
                return
            others = {self.counts[after[other]]: OrderedDict({other: None}) for other in after if other != token}
            others.pop(0, None)
            followers = self._followers[state] = Followers(others)
        followers.raise_count(token, self.counts[after[token]])

    def find(self, context: list[int]) -> Iterator[Pattern]:
        """Yield the suffixes of a context that occur, the longest first."""
        state = length = 0
        for token in context:
            while state and not self._occurs(state, token):
                state = self._link[state]
                length = self._length[state]
            if self._occurs(state, token):
                state, length = self._next[state][token], length + 1
        state = self._find_suffix(state, length)
        while state:
            shortest = self._length[self._link[state]] + 1
            yield Pattern(state, shortest, length)
            state, length = self._link[state], shortest - 1

    def _occurs(self, state: int, token: int) -> bool:
        longer = self._next[state].get(token)
        return longer is not None and self.counts[longer] > 0

    def follow(self, state: int, token: int) -> int:
        """Return the state of a state's strings plus token."""
        return self._next[state][token]

    def find_best(self, state: int) -> int | None:
        """Return the most frequent token after a state's strings."""
        if (followers := self._followers[state]) is not None:
            return followers.best
        return next((token for token, longer in self._next[state].items() if self.counts[longer]), None)

    def iter_followers(self, state: int) -> Iterator[int]:
        """Yield the tokens after a state's strings, the most frequent first."""
        followers = self._followers[state]
        return iter(followers) if followers is not None else (token for token in self._next[state] if self._occurs(state, token))
