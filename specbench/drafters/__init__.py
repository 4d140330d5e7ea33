"""What methods are built on: networks, checkpoints, layers, key-value stores, skip sets."""
