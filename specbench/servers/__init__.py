"""Servers that generate text: what each kind is asked and says, a client, and processes that are started and ended."""
