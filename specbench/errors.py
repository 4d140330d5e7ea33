"""The one exception of bad input."""


class InputError(Exception):
    """A user's mistake: one line on stderr, exit status 2."""
