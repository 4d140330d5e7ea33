"""Numbers to tables, figures and pages. Pure: no model, no torch."""
