"""A drafter's network at the sizes of a target that was expanded at load (specbench.zoo.expand): it drafts the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from specbench.errors import InputError
from specbench.models.expand import NEVER, READS_HIDDEN, HeadMap, TensorFiller, add_bias
from specbench.models.load import check_room

if TYPE_CHECKING:
    from specbench.drafters.network import DraftNetwork, Network, TargetShape

DRAFT_VOCABULARY = 32_000  # of a drafter that has one of its own, as published ones have for the same targets
CONSTANT = 100.0


def expand_network(network: Network, base: TargetShape, shape: TargetShape, dtype: torch.dtype, device: torch.device) -> Network:
    """The same drafts for a target that was expanded at load from `base` to `shape`, on its device.

    Raises InputError for a network that is not as wide as the target it was trained for, and where memory does not hold it.
    """
    if (hidden := network.config.get("hidden_size", base.hidden_size)) != base.hidden_size:
        raise InputError(f"a drafter with a hidden size of {hidden} cannot be expanded: its target has one of {base.hidden_size}")
    shape = replace(shape, num_hidden_layers=base.num_hidden_layers)  # its taps count the layers of the target it knows
    with torch.device("meta"):
        large = type(network)(network.config | _expand_config(network.config, base, shape), shape).to(dtype)
        heads = _find_unbiased_heads(large) if shape.vocab_size > base.vocab_size else {}
        for name, head in heads.items():
            if large.packs:
                large.set_submodule(name, add_bias(head))
    check_room(large, dtype, device, large.packs, type(network).__name__)
    large.to_empty(device=device)
    small = network.state_dict()
    small |= {f"{name}.bias": torch.zeros(len(small[f"{name}.weight"])) for name in heads}
    old, new = (getattr(one, "layer_config", sizes) for one, sizes in ((network, base), (large, shape)))
    lay = TensorFiller(HeadMap(old, new), device)
    for name, weight in large.named_parameters():
        beside = next((count for end, count in network.beside.items() if name.endswith(end)), 1)
        lay(name, weight, small[name], name.endswith(network.writes_hidden), beside)
    for name, buffer in large.named_buffers():  # vocabulary maps: all else is as in a network before it is trained
        buffer.zero_()
        if name in small:
            buffer[: len(small[name])] = small[name]
    if heads and not large.packs:
        _silence_new_tokens(large, base)
    return large


def _find_unbiased_heads(network: DraftNetwork) -> dict[str, nn.Linear]:
    """Linear layers that give tokens' logits: all that are no part of a decoder layer and do not write hidden dimensions."""
    found = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear) and module.bias is None}
    known = tuple(end.removesuffix(".weight") for end in (*network.writes_hidden, *READS_HIDDEN))
    return {name: module for name, module in found.items() if not name.endswith(known)}


@torch.no_grad()
def _silence_new_tokens(network: DraftNetwork, base: TargetShape) -> None:
    """Keep new tokens from being drafted by heads whose products take no bias, Medusa's.

    Their blocks add SiLU(W h + b), and SiLU(CONSTANT) is CONSTANT: b makes a spare hidden dimension constant, which new tokens'
    rows read as NEVER. Raises InputError where no dimension is to spare.
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


def _expand_config(config: Mapping[str, Any], base: TargetShape, shape: TargetShape) -> dict[str, Any]:
    """What changes in a drafter's config.json."""
    changed = {key: value for key, value in asdict(shape).items() if key in config and key != "num_hidden_layers"}
    if "rms_norm_eps" in changed:
        changed["rms_norm_eps"] = config["rms_norm_eps"] * base.hidden_size / shape.hidden_size
    if config.get("draft_vocab_size") == base.vocab_size:
        changed["draft_vocab_size"] = min(shape.vocab_size, DRAFT_VOCABULARY)
    return changed
