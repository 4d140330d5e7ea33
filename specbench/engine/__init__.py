"""Engines: they generate text."""
