"""Regression tracking: whether a run does what a reference did, as fast."""
