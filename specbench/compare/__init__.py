"""Regression tracking: whether a run gives the same results as a reference, as fast."""
