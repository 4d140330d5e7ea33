"""Drafters that are not methods: they know the answer, and so measure what an engine makes of drafts."""

from specbench.decoding.drafter import Drafter


class Yardstick(Drafter):
    """Rows of a method that is one, or has one among its parts, are labelled synthetic."""
