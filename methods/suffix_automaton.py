"""Suffix automata of growing texts (Blumer et al. 1985): the longest suffix that occurred earlier, and what followed a string."""

from typing import NamedTuple


class SuffixStates:
    """The states of an automaton over one or more texts. Amortised O(1) per token.

    States are numbers, 0 is that of the empty string; all strings of a state end at the same positions.
    """

    def __init__(self) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]  # suffix link: the state of the longest suffix that also occurs elsewhere
        self._length = [0]  # of a state's longest string

    def _extend(self, whole: int, token: int) -> int:
        """Return the state of a text that grows by a token. whole: the state of the text so far."""
        if token in self._next[whole]:  # another text continues like this
            return self._split_state(whole, token)
        longer = self._add_state(self._length[whole] + 1)
        state = whole
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = longer
            state = self._link[state]
        self._link[longer] = 0 if state < 0 else self._split_state(state, token)
        return longer

    def _add_state(self, length: int, original: int | None = None) -> int:
        """Return a new state without strings yet, or whose strings have so far ended where those of the original have."""
        self._next.append({} if original is None else dict(self._next[original]))
        self._link.append(0 if original is None else self._link[original])
        self._length.append(length)
        return len(self._next) - 1

    def _split_state(self, state: int, token: int) -> int:
        """Return the state of the state's longest string plus token, split off from longer strings that do not end here."""
        long, length = self._next[state][token], self._length[state] + 1
        if self._length[long] == length:
            return long
        short = self._link[long] = self._add_state(length, long)
        while state >= 0 and self._next[state].get(token) == long:
            self._next[state][token] = short
            state = self._link[state]
        return short


class SuffixMatch(NamedTuple):
    """The longest suffix of the text that occurred earlier: its length, and the position after its earlier occurrence."""

    length: int
    end: int


class SuffixAutomaton(SuffixStates):
    """Finds the longest suffix of one text that occurred earlier.

    recent: of the earlier occurrences use the last one at which this match was the longest; else the first one.
    """

    def __init__(self, recent: bool) -> None:
        super().__init__()
        self.tokens: list[int] = []
        self.recent = recent
        self._end = [0]  # the position after the occurrence to copy from
        self._last = 0  # the state of the whole text

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            self._add(token)

    def _add(self, token: int) -> None:
        if self.recent:
            self._end[self._link[self._last]] = len(self.tokens)
        self.tokens.append(token)
        self._last = self._extend(self._last, token)

    def _add_state(self, length: int, original: int | None = None) -> int:
        self._end.append(len(self.tokens) if original is None else self._end[original])
        return super()._add_state(length, original)

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
