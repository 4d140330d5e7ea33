"""Execute a run: its schedule, its timing, its files."""
