"""Records to numbers. Pure: no model, no torch."""
