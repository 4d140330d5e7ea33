"""The suffix automaton of a growing text (Blumer et al. 1985): finds the longest suffix that occurred earlier."""

from typing import NamedTuple


class SuffixMatch(NamedTuple):
    """The longest suffix of the text that occurred earlier: its length, and the position after its earlier occurrence."""

    length: int
    end: int


class SuffixAutomaton:
    """States are numbers, 0 the empty string; all strings of a state end at the same positions. Amortised O(1) per token.

    recent: of the earlier occurrences use the last one at which this match was the longest; else the first one.
    """

    def __init__(self, recent: bool) -> None:
        self.tokens: list[int] = []
        self.recent = recent
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]  # suffix link: the state of the longest suffix that also occurs elsewhere
        self._length = [0]  # of a state's longest string
        self._end = [0]  # the position after the occurrence to copy from
        self._last = 0  # the state of the whole text

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            self._add(token)

    def _add(self, token: int) -> None:
        if self.recent:
            self._end[self._link[self._last]] = len(self.tokens)
        self.tokens.append(token)
        state, self._last = self._last, self._add_state({}, len(self.tokens), len(self.tokens))
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = self._last
            state = self._link[state]
        self._link[self._last] = 0 if state < 0 else self._split_state(state, token)

    def _add_state(self, followers: dict[int, int], length: int, end: int) -> int:
        self._next.append(followers)
        self._link.append(0)
        self._length.append(length)
        self._end.append(end)
        return len(self._next) - 1

    def _split_state(self, state: int, token: int) -> int:
        """Return the state of the state's longest string plus token, split off from longer strings that do not end here."""
        long, length = self._next[state][token], self._length[state] + 1
        if self._length[long] == length:
            return long
        short = self._add_state(dict(self._next[long]), length, self._end[long])
        self._link[short], self._link[long] = self._link[long], short
        while state >= 0 and self._next[state].get(token) == long:
            self._next[state][token] = short
            state = self._link[state]
        return short

    @property
    def match(self) -> SuffixMatch:
        return self._build_match(self._link[self._last])

    def find_shorter(self, room: int) -> SuffixMatch:
        """Return the longest match with `room` tokens between its earlier end and the last token, else the shortest match."""
        state = self._link[self._last]
        while len(self.tokens) - 1 - self._end[state] < room and self._link[state] > 0:
            state = self._link[state]
        return self._build_match(state)

    def _build_match(self, state: int) -> SuffixMatch:
        return SuffixMatch(self._length[state], self._end[state]) if state > 0 else SuffixMatch(0, 0)
