"""The multi-token prediction modules in a target's own files, under the names of its family."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from methods.mtp_layers import TargetLayers
from specbench.drafters.checkpoints import INDEX, OURS, read_index
from specbench.drafters.network import FULL, Checkpoint
from specbench.errors import InputError, format_error

MODULES = "num_nextn_predict_layers"
DEEPSEEK = {"enorm": "enorm", "hnorm": "hnorm", "eh_proj": "eh_proj", "shared_head.norm": "norm"}
MIMO = {"token_layernorm": "enorm", "hidden_layernorm": "hnorm", "input_proj": "eh_proj", "final_layernorm": "norm"}
QWEN = {"pre_fc_norm_embedding": "enorm", "pre_fc_norm_hidden": "hnorm", "fc": "eh_proj", "norm": "norm"}
SHARED = ("embed_tokens.weight", "shared_head.head.weight", "rotary_emb.inv_freq")  # copies of the target's
EXPERTS = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def find_module(name: str, layers: int) -> tuple[int, str, str] | None:
    """Return a tensor's module, its name in it, and its family, if it belongs to a module. layers: of the target."""
    if (found := re.fullmatch(r"(?:model\.)?layers\.(\d+)\.(.*)", name)) and int(found[1]) >= layers:
        return int(found[1]) - layers, _rename(found[2], DEEPSEEK), "deepseek"
    if found := re.fullmatch(r"(?:model\.)?mtp_layers\.(\d+)\.(.*)", name):
        return int(found[1]), _rename(found[2], MIMO), "mimo"
    if found := re.fullmatch(r"mtp\.layers\.(\d+)\.(.*)", name):
        return int(found[1]), f"block.{found[2]}", "qwen"
    if found := re.fullmatch(r"mtp\.(.*)", name):
        return 0, _rename(found[1], QWEN), "qwen"
    return None


def _rename(name: str, parts: Mapping[str, str]) -> str:
    stem = name.removesuffix(".weight")
    return f"{parts[stem]}.weight" if stem in parts else f"block.{name}"


def read_modules(layers: TargetLayers) -> Checkpoint:
    """Return a config.json for the modules in the target's files, and their tensors. Raises InputError if there are none."""
    config: Any = layers.config
    families: set[str] = set()
    tensors: dict[str, Tensor] = {}
    for (number, name, family), tensor in _iter_tensors(layers.place, config.num_hidden_layers):
        families.add(family)
        tensors[f"layers.{number}.{name}"] = tensor
    if not tensors:
        place = layers.place[0] or "a random target"
        raise InputError(f"checkpoint=target: {place} has no multi-token prediction modules; expected a folder or random")
    modules = 1 + max(int(name.split(".")[1]) for name in tensors)
    if "qwen" in families and modules > 1:
        raise InputError(f"checkpoint=target: {modules} modules that share a projection are not supported; expected one")
    if getattr(config, "sliding_window", None) and FULL not in (getattr(config, "layer_types", None) or ()):
        raise InputError(f"checkpoint=target: modules with a sliding window of {config.sliding_window} are not supported")
    first, chained = families == {"mimo"}, modules > 1 or families != {"deepseek"}
    return {MODULES: modules, "mtp_hidden_states_first": first, "chain_hidden_post_norm": chained}, fuse_experts(tensors)


def _iter_tensors(place: tuple[str, str | None], layers: int) -> Iterator[tuple[tuple[int, str, str], Tensor]]:
    """Yield find_module's result and the tensor, for the modules' tensors; an index's files without any are not opened."""
    index = _find_file(place, f"{OURS}{INDEX}")
    held = read_index(index) if index else {}
    for file in sorted({file for name, file in held.items() if find_module(name, layers)}) if index else [OURS]:
        if (path := _find_file(place, file)) is None:
            continue
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    if (found := find_module(name, layers)) and not name.endswith(SHARED):
                        yield found, opened.get_tensor(name)
        except Exception as error:  # of any type: bytes in another format
            raise InputError(f"{path}: cannot be read: {format_error(error, longest=160)}") from None


def _find_file(place: tuple[str, str | None], name: str) -> Path | None:
    """Return a target's file, downloading it if necessary; None if it has no such file."""
    folder, revision = place
    if not folder:
        return None
    options: Any = dict.fromkeys((f"_raise_exceptions_for_{what}" for what in ("missing_entries", "gated_repo")), False)
    found = cached_file(folder, name, revision=revision, **options)
    return Path(found) if found else None


def fuse_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the E experts of a layer in one, as transformers holds them. Raises InputError.

    gate_proj and up_proj (F, H) each become gate_up_proj (E, 2 F, H), down_proj (H, F) becomes (E, H, F).
    """
    parts: dict[str, dict[tuple[str, int], Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if found := EXPERTS.fullmatch(name):
            parts.setdefault(found[1], {})[found[3], int(found[2])] = tensor
        else:
            rest[name] = tensor
    for name, experts in parts.items():
        numbers = sorted({number for _, number in experts})
        if len(experts) != 3 * len(numbers):
            raise InputError(f"checkpoint=target: {name} has experts without one of gate_proj, up_proj and down_proj")
        gates = [torch.cat([experts["gate", number], experts["up", number]]) for number in numbers]
        rest[f"{name}.gate_up_proj"] = torch.stack(gates)
        rest[f"{name}.down_proj"] = torch.stack([experts["down", number] for number in numbers])
    return rest
