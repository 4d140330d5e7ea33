"""The project's own promises about speed and memory, each printed as a ratio measured in one run."""
