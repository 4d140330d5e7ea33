"""From a name to a loaded target."""
