"""The computer: devices, energy, load, locks. Knows nothing of models."""
