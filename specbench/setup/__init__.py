"""Turn a config into typed objects. No other room reads a config object.

compose: overrides to a config, and the config to settings. settings: the typed settings. rules: the values that they may have.
instantiate: check a YAML node against its class, and call it. objects: the target, tokenizer, methods and questions of settings.
fingerprints, provenance: where the numbers of a run come from.
"""
