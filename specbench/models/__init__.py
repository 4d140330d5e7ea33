"""Load targets and draft models by name."""
