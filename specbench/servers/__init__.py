"""Servers that generate text: the requests and replies of each kind, a client, and processes that are started and ended."""
