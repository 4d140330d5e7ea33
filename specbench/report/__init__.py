"""Tables, figures and pages of runs. Pure: no model, no torch."""
