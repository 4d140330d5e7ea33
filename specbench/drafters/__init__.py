"""Building blocks of methods: networks, checkpoints, layers, key-value stores, skip sets."""
