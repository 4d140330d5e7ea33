"""Expand a drafter's network to the sizes of a target that was expanded at load (specbench.models.expand): it drafts the same."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from specbench.drafters.network import DraftNetwork, Network, TargetShape
from specbench.errors import InputError
from specbench.models.expand import NEVER, READS_HIDDEN, HeadMap, TensorFiller, add_bias, check_frequencies
from specbench.models.load import check_room

DRAFT_VOCABULARY = 32_000  # of drafters with a draft vocabulary, as in the published ones for the same targets
CONSTANT = 100.0  # of the spare hidden dimension, see _silence_new_tokens


def expand_network(network: Network, base: TargetShape, shape: TargetShape, dtype: torch.dtype, device: torch.device) -> Network:
    """Return a network with the same drafts for a target that was expanded at load from `base` to `shape`, on its device.

    Raises InputError if the network is not as wide as the target it was trained for, or does not fit in memory.
    """
    if (hidden := network.config.get("hidden_size", base.hidden_size)) != base.hidden_size:
        raise InputError(f"a drafter with a hidden size of {hidden} cannot be expanded: its target has {base.hidden_size}")
    shape = replace(shape, num_hidden_layers=base.num_hidden_layers)  # its taps count the layers of the original target
    with torch.device("meta"):
        large = type(network)(network.config | expand_config(network.config, base, shape), shape).to(dtype)
        heads = _find_unbiased_heads(large) if shape.vocab_size > base.vocab_size else {}
        for name, head in heads.items():
            if large.packs:
                large.set_submodule(name, add_bias(head))
    check_room(large, dtype, device, large.packs, type(network).__name__)
    large.to_empty(device=device)
    small = network.state_dict()
    small |= {f"{name}.bias": torch.zeros(len(small[f"{name}.weight"])) for name in heads}
    old, new = getattr(network, "layer_config", base), getattr(large, "layer_config", shape)
    if hasattr(network, "layer_config"):
        check_frequencies(old, new)
    fill = TensorFiller(HeadMap(old, new), device, qk_norms=any(name.endswith("k_norm.weight") for name in small))
    for name, weight in large.named_parameters():
        vectors, others = (
            next((count for suffix, count in counts.items() if name.endswith(suffix)), otherwise)
            for counts, otherwise in ((network.hidden_vectors, 1), (network.other_inputs, 0))
        )
        fill(name, weight, small[name], name.endswith(network.writes_hidden), vectors, others)
    for name, buffer in large.named_buffers():  # vocabulary maps
        buffer.zero_()
        if name in small:
            buffer[: len(small[name])] = small[name]
    if heads and not large.packs:
        _silence_new_tokens(large, base)
    return large


def _find_unbiased_heads(network: DraftNetwork) -> dict[str, nn.Linear]:
    """Return the linear layers that compute logits: those outside decoder layers that do not write hidden dimensions."""
    linears = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear) and module.bias is None}
    others = tuple(suffix.removesuffix(".weight") for suffix in (*network.writes_hidden, *READS_HIDDEN))
    return {name: module for name, module in linears.items() if not name.endswith(others)}


@torch.no_grad()
def _silence_new_tokens(network: DraftNetwork, base: TargetShape) -> None:
    """Keep Medusa's heads, which have no output bias, from drafting new tokens.

    Their blocks add SiLU(W h + b), and SiLU(CONSTANT) = CONSTANT: b sets a spare hidden dimension to a constant, from which the
    new tokens' rows compute the logit NEVER. Raises InputError if there is no spare dimension.
    """
    tokens, spare = base.vocab_size, base.hidden_size
    if network.shape.hidden_size == spare:
        raise InputError("shape: heads without a bias need more hidden dimensions for more tokens")
    heads: Any = network.children()
    for head in heads:
        *blocks, logits = head.children()
        for block in blocks:
            block.linear.bias[spare] = CONSTANT
        logits.weight[:, spare] = 0
        logits.weight[tokens:, spare] = NEVER / (CONSTANT * len(blocks))


def expand_config(config: Mapping[str, Any], base: TargetShape, shape: TargetShape) -> dict[str, Any]:
    """Return the entries of a drafter's config.json that change."""
    changed = {key: value for key, value in asdict(shape).items() if key in config and key != "num_hidden_layers"}
    if "rms_norm_eps" in changed:
        changed["rms_norm_eps"] = config["rms_norm_eps"] * base.hidden_size / shape.hidden_size
        changed["qk_norm_eps"] = config["rms_norm_eps"], config["rms_norm_eps"] * base.head_dim / shape.head_dim
    if config.get("draft_vocab_size") == base.vocab_size:
        changed["draft_vocab_size"] = (
            min(shape.vocab_size, DRAFT_VOCABULARY) if config.get("own_head", True) else shape.vocab_size
        )
    return changed
