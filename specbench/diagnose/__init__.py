"""What a machine can do, and what one forward costs on it."""
