"""Counts of drafters on recorded answers; no model is loaded."""
