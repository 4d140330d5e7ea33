"""The computer: devices, energy, locks. Knows nothing of models."""
