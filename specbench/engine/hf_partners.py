"""Models that transformers' own generate needs to run a method of ours with the same weights, built from our networks."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from specbench.decoding.language_model import LanguageModel
from specbench.errors import InputError

BLOCKS = "muse_glimmer_assistant"  # transformers' model of DFlash's network
NAMES = {"fc.": "encoder.fc.", "hidden_norm.": "encoder.output_norm_enc."}  # of tensors there, where they differ


def build_block_drafter(label: str, network: Any, target: LanguageModel) -> PreTrainedModel:
    """Return transformers' own drafter with the weights of a DFlash network, float, on the target's device.

    Raises InputError if this version of transformers has none, or if the network drafts in a way that it does not support.
    """
    first, own = getattr(network, "first", None), ("lm_head", "embed_tokens")
    if not first or any(hasattr(network, name) for name in own):
        why = "its blocks draft from the root's row on" if first == 0 else f"it has {' or '.join(own)}, or is not a block drafter"
        raise InputError(f"engine.hf: method {label}: transformers' DFlash cannot run this checkpoint: {why}")
    layers = network.layer_config
    try:
        config = AutoConfig.for_model(
            BLOCKS,
            **{name: getattr(layers, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")},
            **{name: getattr(layers, name) for name in ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")},
            rope_parameters=layers.rope_parameters,
            max_position_embeddings=target.context,
            layer_types=["full_attention"] * layers.num_hidden_layers,
            block_size=network.block,
            mask_token_id=network.mask,
            target_layer_ids=[tap - 1 for tap in network.taps],
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        )
    except ValueError:
        raise InputError(f"engine.hf: method {label}: this version of transformers has no DFlash") from None
    build: Any = AutoModel.from_config
    with torch.device("meta"):
        model = build(config)
    tensors = {_rename(name): tensor for name, tensor in network.state_dict().items()}
    model.load_state_dict(tensors, assign=True)
    model.rotary_emb = type(model.rotary_emb)(config).to(target.device)
    partner: PreTrainedModel = model.eval()
    return partner


def _rename(name: str) -> str:
    return next((new + name[len(old) :] for old, new in NAMES.items() if name.startswith(old)), name)
