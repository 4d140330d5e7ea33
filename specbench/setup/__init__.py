"""Turn a config into typed objects. No other room reads a config object.

compose: overrides to a config, and the config to settings. overrides: the words of a command line; words: also made of values of
Python. launching: Hydra's own config. settings: the typed settings; sampling: those of one answer. rules: the values that they
may have. instantiate: check a YAML node against its place and class, and call it. location: find that class. questions: the suite
and its questions. objects: the target, its tokenizer, the methods. fingerprints, provenance: where a run's numbers come from.
"""
