"""Drafters that are not methods: they know the answer, and measure what an engine gains from drafts."""

from specbench.decoding.drafter import Drafter


class Yardstick(Drafter):
    """Base class; results of a method that is a yardstick, or has one as a part, are labelled synthetic."""
