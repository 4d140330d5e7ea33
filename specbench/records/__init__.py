"""What lies on disk, typed at the door."""
