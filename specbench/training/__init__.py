"""Trains drafters for any target on its own answers, in one loop for every method, and writes the authors' layouts."""
