"""A run: its schedule, its timing, its files."""
