"""Drafters with their own network: loaded or created for a target, expanded, packed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel, check_taps
from specbench.decoding.masks import ChainBias
from specbench.decoding.runner import Runner
from specbench.decoding.static import StaticPass
from specbench.drafters.checkpoints import OF_TARGET, RANDOM, fill_network, find_folder, read_tensors
from specbench.drafters.config_keys import check_config
from specbench.drafters.expand import expand_config, expand_network
from specbench.drafters.keeping import KeepingDrafter
from specbench.drafters.layers import DraftKV, LayerPass
from specbench.drafters.network import Network, TargetShape
from specbench.errors import InputError, format_error
from specbench.machine.devices import pick_dtype
from specbench.machine.rehearsal import is_rehearsing, pause_rehearsal
from specbench.models.expand import SEED, get_small_sizes, map_layer
from specbench.models.finite import check_weights
from specbench.models.packed import can_pack
from specbench.models.products import pack
from specbench.records.files import read_object


def load_network(kind: type[Network], checkpoint: str | None, target: LanguageModel, dtype: str = "auto") -> Network:
    """Load a drafter's network from a folder, a hub id (owner/name@revision) or `random`, expanded if the target is.

    dtype: `auto` is the target's. Raises InputError. In a rehearsal the weights are neither read nor packed.
    """
    _check_target(target)
    base, checkpoint = TargetShape.of_base(target.config), require_checkpoint(checkpoint)
    weights_dtype = target.dtype if dtype == "auto" else pick_dtype(dtype, target.device)
    if is_rehearsing():
        return _outline_network(kind, checkpoint, base, target, weights_dtype)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        random = checkpoint == RANDOM
        network = kind(kind.create_config(base), base) if random else _read_network(kind, checkpoint, base)
    check_taps(network.taps, base.num_hidden_layers)
    if get_small_sizes(target.config):
        network = expand_network(network, base, TargetShape.of(target.config), weights_dtype, target.device)
    network = network.to(target.device, weights_dtype).eval().requires_grad_(False)
    check_weights(network, f"the checkpoint at {checkpoint} as {str(weights_dtype)[6:]}")
    if kind.packs and can_pack(target.device, weights_dtype):
        pack(network)
    network.attach_target(target)
    network.prepare()
    return network


def _outline_network(
    kind: type[Network], checkpoint: str, base: TargetShape, target: LanguageModel, dtype: torch.dtype
) -> Network:
    """Return a network of the sizes that `load_network` gives it, for a rehearsal."""
    with pause_rehearsal():
        config = kind.create_config(base) if checkpoint == RANDOM else _read_checkpoint(kind, checkpoint, base)[0]
    shape = base
    if get_small_sizes(target.config):
        shape = replace(TargetShape.of(target.config), num_hidden_layers=base.num_hidden_layers)
        config = config | expand_config(config, base, shape)
    network = build_network(kind, config, shape, target.device, dtype).eval().requires_grad_(False)
    network.attach_target(target)
    network.prepare()
    return network


def build_network(
    kind: type[Network], config: Mapping[str, Any], shape: TargetShape, device: torch.device, dtype: torch.dtype
) -> Network:
    """Return a new network whose weights are made on a device and in a dtype: a rehearsal cannot move them."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return kind(config, shape)
    finally:
        torch.set_default_dtype(default)


def require_checkpoint(checkpoint: str | None) -> str:
    """Raise InputError if neither the target's YAML nor the method's names one."""
    if checkpoint is None:
        where = "target.checkpoints.METHOD, or method.LABEL.checkpoint,"
        raise InputError(f"this target names no checkpoint: set {where} to a folder, a hub id or random")
    return checkpoint


class NetworkDrafter(Drafter):
    """A drafter with its own weights. dtype: of them.

    checkpoint: a folder, a hub id (owner/name@revision), `random`, or `target` for weights among the target's own.
    """

    network_class: ClassVar[type[Any]]  # a DraftNetwork

    def __init__(self, checkpoint: str | None, dtype: str) -> None:
        super().__init__()
        self.checkpoint, self.dtype = checkpoint, dtype

    @classmethod
    def get_network_class(cls, target: LanguageModel) -> type[Any]:
        """Return the class of its network for a target."""
        return cls.network_class

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self.network = load_network(self.get_network_class(target), self.checkpoint, target, self.dtype)
        self.taps = tuple(map_layer(layer, target.config) for layer in self.network.taps)


class LayerDrafter(NetworkDrafter, KeepingDrafter[DraftKV]):
    """A drafter whose network has decoder layers.

    The layers run through `run_layers`, so that they can be compiled as the target is.
    """

    room: ClassVar[int] = 0  # KV entries per row besides the sequence's own

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self._bias = ChainBias(self.network.dtype, target.device)
        self.runner: Runner[Tensor] = Runner(self.network.run_layers)

    def create_store(self, capacity: int, batch: int = 1) -> DraftKV:
        return DraftKV(batch, capacity + self.room, self._bias, self.runner)

    def run_layers(self, inputs: tuple[Tensor, ...], layer_pass: LayerPass | StaticPass) -> Tensor:
        """inputs: of the network's `run_layers`, hidden states (B, N, ...) first -> (B, N, H)."""
        if isinstance(layer_pass, StaticPass):
            return self.runner.run(inputs, layer_pass, variant=inputs[0].shape[-1])
        out: Tensor = self.network.run_layers(*inputs, layer_pass)
        return out

    def compile_layers(self, inputs: tuple[Tensor, ...], layer_pass: StaticPass) -> None:
        """Compile the layers for inputs like these. Raises whatever torch.compile does."""
        self.runner.compile(inputs, layer_pass, variant=inputs[0].shape[-1])


def create_network(kind: type[Network], target: LanguageModel, changes: Mapping[str, Any] | None = None) -> Network:
    """Create the network that training starts from, float32 on the target's device. changes: of its config."""
    _check_target(target)
    shape = TargetShape.of(target.config)
    network = kind(build_config(kind, shape, changes or {}), shape).to(target.device)
    network.init_weights(target)
    network.attach_target(target)
    return network


def read_config(kind: type[Network], checkpoint: str, shape: TargetShape) -> dict[str, Any]:
    """Return a checkpoint's config.json, checked."""
    return _read_checkpoint(kind, checkpoint, shape)[0]


def resume_network(kind: type[Network], checkpoint: str, target: LanguageModel) -> Network:
    """Load a checkpoint into a network of `create_network`, to train it further."""
    config, tensors = _read_checkpoint(kind, checkpoint, TargetShape.of(target.config))
    network = create_network(kind, target, config)
    fill_network(network, tensors, checkpoint)
    return network.to(target.device, torch.float32)


def build_config(kind: type[Network], shape: TargetShape, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a new network's config.json with changes. Raises InputError for an unknown key or a value that is not allowed."""
    return check_config({**kind.create_config(shape), **changes}, kind.list_keys(shape), where="network: ")


def _read_network(kind: type[Network], checkpoint: str, shape: TargetShape) -> Network:
    config, tensors = _read_checkpoint(kind, checkpoint, shape)
    with _name_config(checkpoint), torch.device("meta"):
        network = kind(config, shape)
    fill_network(network, tensors, checkpoint)
    return network


def _read_checkpoint(kind: type[Network], checkpoint: str, shape: TargetShape) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json, checked, and the tensors."""
    if checkpoint == OF_TARGET:
        config, tensors = kind.read_target()
    else:
        folder = find_folder(checkpoint)
        tensors, config = read_tensors(folder, kind.files), read_object(folder / "config.json")
    with _name_config(checkpoint):
        checked = check_config(kind.flatten_config(config), kind.list_keys(shape))
        return kind.normalise_checkpoint(checked, tensors, shape)


@contextmanager
def _name_config(checkpoint: str) -> Iterator[None]:
    place = f"{checkpoint}/config.json"
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    except Exception as error:  # of any type: sizes may fit no network
        raise InputError(f"{place}: no network can be built from it: {format_error(error)}") from None


def _check_target(target: LanguageModel) -> None:
    """Raise InputError for a target whose embeddings and hidden states differ in width."""
    kind, hidden = target.config.model_type, target.config.hidden_size
    if (width := target.embedding.get_parameter("weight").shape[-1]) != hidden:
        raise InputError(f"{kind}: its embeddings have {width} dimensions, its hidden states {hidden}; expected equal widths")
