"""How the embedded models and their drafters were made (make zoo)."""
