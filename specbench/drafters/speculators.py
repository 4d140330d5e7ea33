"""Keys of a drafter's config.json that are nested in a mapping, as in vLLM's speculators and in DFlash's files."""

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING

from specbench.drafters.config_keys import format_value
from specbench.errors import InputError, suggest_choices

KIND, LAYERS = "speculators_model_type", "transformer_layer_config"
LAYER_TYPES = ("llama", "qwen3")
WITHOUT_EFFECT = frozenset(  # on drafting
    ("speculators_config", "speculators_version", "auto_map", "has_no_defaults_at_init", "embed_requires_grad", "loss_config")
)
SIZES = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers"),
    *("vocab_size", "rms_norm_eps", "hidden_act"),
)


def flatten_config(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return a config.json with the keys of its layers at the top level; any other layout is returned unchanged.

    kind: the type of speculator that is read. A size that is left out is transformers' default for that type of layer. Raises
    InputError for another kind of speculator or of layers, and for keys that contradict each other.
    """
    if KIND not in config:
        return dict(config)
    if config[KIND] != kind:
        raise InputError(f"{KIND}={format_value(config[KIND])}: expected {kind or 'none'} for this method")
    layers = config.get(LAYERS, {})
    if not isinstance(layers, dict):
        raise InputError(f"{LAYERS}={format_value(layers)}: expected a mapping")
    given = {key: value for key, value in layers.items() if value is not None and key != "tie_word_embeddings"}  # of the target
    flat = {key: value for key, value in config.items() if key not in (KIND, LAYERS, *WITHOUT_EFFECT)}
    for key, value in given.items():
        if flat.get(key, value) != value and key not in ("architectures", "model_type", "dtype", "transformers_version"):
            raise InputError(f"{key}={format_value(flat[key])} contradicts {LAYERS}.{key}={format_value(value)}")
    return {**_list_defaults(given), **given, **{key: value for key, value in flat.items() if value is not None}}


def lift_nested(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a config.json with the keys of one mapping at the top level, and without nulls. Raises InputError."""
    flat = {key: value for key, value in config.items() if value is not None}
    if not isinstance(nested := flat.pop(name, {}), dict):
        raise InputError(f"{name}={format_value(nested)}: expected a mapping")
    for key, value in nested.items():
        if flat.get(key, value) != value:
            raise InputError(
                f"{name}.{key}={format_value(value)} contradicts {key}={format_value(flat[key])}; expected one of them"
            )
    return {**flat, **nested}


def _list_defaults(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return transformers' sizes for this type of layers."""
    name = layers.get("model_type", "qwen3")
    if name not in LAYER_TYPES:
        raise InputError(f"{LAYERS}.model_type={format_value(name)}: expected {suggest_choices(str(name), LAYER_TYPES)}")
    defaults = CONFIG_MAPPING[name]()
    return {size: getattr(defaults, size) for size in SIZES}
