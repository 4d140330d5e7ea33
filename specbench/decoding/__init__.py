"""The algorithm: trees, verification, the KV store, attention, the loop. Autoregressive decoding is its degenerate case."""
