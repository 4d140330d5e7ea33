"""Files on disk, parsed into types when they are read."""
