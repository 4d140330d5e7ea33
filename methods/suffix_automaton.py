"""The suffix automaton of a text that grows (Blumer et al. 1985): where the longest repeated end of the text stood before."""

from typing import NamedTuple


class SuffixMatch(NamedTuple):
    """The longest end of the text that stood in it before: its length, and the place behind its earlier occurrence."""

    length: int
    end: int


class SuffixAutomaton:
    """States are numbers, 0 the empty string; a state's strings end at the same places. Amortised constant time per token.

    recent: of the earlier places the one seen last where that same match was the longest; else the very first one.
    """

    def __init__(self, recent: bool) -> None:
        self.tokens: list[int] = []
        self.recent = recent
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]  # the state of the longest end of a state's strings that stands elsewhere too
        self._length = [0]  # of a state's longest string
        self._end = [0]  # the place behind the occurrence to copy from
        self._last = 0  # the state of the whole text

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            self._add(token)

    def _add(self, token: int) -> None:
        if self.recent:
            self._end[self._link[self._last]] = len(self.tokens)
        self.tokens.append(token)
        at, self._last = self._last, self._add_state({}, len(self.tokens), len(self.tokens))
        while at >= 0 and token not in self._next[at]:
            self._next[at][token] = self._last
            at = self._link[at]
        self._link[self._last] = 0 if at < 0 else self._split_state(at, token)

    def _add_state(self, followers: dict[int, int], length: int, end: int) -> int:
        self._next.append(followers)
        self._link.append(0)
        self._length.append(length)
        self._end.append(end)
        return len(self._next) - 1

    def _split_state(self, at: int, token: int) -> int:
        """The state of `at`'s longest string and the token, split off from longer ones that do not end here."""
        found, length = self._next[at][token], self._length[at] + 1
        if self._length[found] == length:
            return found
        short = self._add_state(dict(self._next[found]), length, self._end[found])
        self._link[short], self._link[found] = self._link[found], short
        while at >= 0 and self._next[at].get(token) == found:
            self._next[at][token] = short
            at = self._link[at]
        return short

    @property
    def transitions(self) -> int:
        return sum(map(len, self._next))

    @property
    def match(self) -> SuffixMatch:
        return self._build_match(self._link[self._last])

    def find_shorter(self, room: int) -> SuffixMatch:
        """The longest match with `room` tokens between its earlier end and the last token, or the shortest match of all."""
        at = self._link[self._last]
        while len(self.tokens) - 1 - self._end[at] < room and self._link[at] > 0:
            at = self._link[at]
        return self._build_match(at)

    def _build_match(self, state: int) -> SuffixMatch:
        return SuffixMatch(self._length[state], self._end[state]) if state > 0 else SuffixMatch(0, 0)
