"""The multi-token prediction modules in a target's own files, under the names of its family."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from specbench.drafters.checkpoints import INDEX, OURS, find_folder
from specbench.drafters.target_layers import TargetLayers
from specbench.errors import InputError, format_error
from specbench.records.files import read_object

MODULES = "num_nextn_predict_layers"
PARTS = {"enorm": "enorm", "hnorm": "hnorm", "eh_proj": "eh_proj", "shared_head.norm": "norm"}
NEXT = {"pre_fc_norm_embedding": "enorm", "pre_fc_norm_hidden": "hnorm", "fc": "eh_proj", "norm": "norm"}
MIMO = {"token_layernorm": "enorm", "hidden_layernorm": "hnorm", "input_proj": "eh_proj", "final_layernorm": "norm"}
SHARED = ("embed_tokens.weight", "shared_head.head.weight", "rotary_emb.inv_freq")  # copies of the target's
EXPERTS = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def find_modules(name: str, layers: int) -> tuple[int, str, str] | None:
    """Return a tensor's module, its name in it, and its family, if it belongs to one. layers: of the target."""
    if (found := re.fullmatch(r"(?:model\.)?layers\.(\d+)\.(.*)", name)) and int(found[1]) >= layers:
        return int(found[1]) - layers, _rename(found[2], PARTS), "deepseek"
    if found := re.fullmatch(r"(?:model\.)?mtp_layers\.(\d+)\.(.*)", name):
        return int(found[1]), _rename(found[2], MIMO), "mimo"
    if found := re.fullmatch(r"mtp\.layers\.(\d+)\.(.*)", name):
        return int(found[1]), f"block.{found[2]}", "qwen3_next"
    if found := re.fullmatch(r"mtp\.(.*)", name):
        return 0, _rename(found[1], NEXT), "qwen3_next"
    return None


def _rename(name: str, parts: Mapping[str, str]) -> str:
    stem = name.removesuffix(".weight")
    return f"{parts[stem]}.weight" if stem in parts else f"block.{name}"


def read_modules(layers: TargetLayers) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a config.json for the modules in the target's files, and their tensors. Raises InputError if it has none."""
    assert layers.config is not None
    count = layers.config.num_hidden_layers
    families: set[str] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in _iter_tensors(find_folder(layers.folder), count):
        found = find_modules(name, count)
        assert found is not None
        families.add(found[2])
        tensors[f"layers.{found[0]}.{found[1]}"] = tensor
    if not tensors:
        raise InputError(f"checkpoint=target: {layers.folder} has no multi-token prediction modules; expected a folder or random")
    modules = 1 + max(int(name.split(".")[1]) for name in tensors)
    if "qwen3_next" in families and modules > 1:
        raise InputError(f"checkpoint=target: {modules} modules that share a projection are not supported; expected one")
    first, chained = families == {"mimo"}, modules > 1 or families != {"deepseek"}
    config = {MODULES: modules, "mtp_hidden_states_first": first, "chain_hidden_post_norm": chained}
    return config, fuse_experts(tensors)


def _iter_tensors(folder: Path, layers: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the modules' tensors; of an index's files, only those that hold any are opened."""
    index = folder / f"{OURS}{INDEX}"
    names = read_object(index)["weight_map"] if index.is_file() else None
    files = [OURS] if names is None else sorted({file for name, file in names.items() if find_modules(name, layers)})
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as held:
                wanted = [name for name in held.keys() if find_modules(name, layers) and not name.endswith(SHARED)]  # noqa: SIM118
                yield from ((name, held.get_tensor(name)) for name in wanted)
        except Exception as error:  # of any type: bytes that are no such file
            raise InputError(f"{folder / file}: cannot be read: {format_error(error, longest=160)}") from None


def fuse_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the experts of a layer in one, as transformers holds them."""
    parts: dict[str, dict[tuple[str, int], Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if found := EXPERTS.fullmatch(name):
            parts.setdefault(found[1], {})[found[3], int(found[2])] = tensor
        else:
            rest[name] = tensor
    for name, experts in parts.items():
        numbers = sorted({number for _, number in experts})
        gates = [torch.cat([experts["gate", number], experts["up", number]]) for number in numbers]
        rest[f"{name}.gate_up_proj"] = torch.stack(gates)
        rest[f"{name}.down_proj"] = torch.stack([experts["down", number] for number in numbers])
    return rest
