"""Numbers from records. Pure: no model, no torch."""
