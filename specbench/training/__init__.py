"""Trains drafters for any target: lessons from its own answers, one loop for every method, the authors' layouts as output."""
