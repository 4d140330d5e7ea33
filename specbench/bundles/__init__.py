"""Bundles: a finished run in one file that a stranger can check."""
