"""Config becomes typed objects. No other room reads a config object."""
