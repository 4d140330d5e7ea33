"""Weights of trained drafters in the layouts their authors publish: read, checked tensor by tensor, expanded, written."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, PretrainedConfig

from specbench.decoding import attention
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.packed import can_pack, pack
from specbench.devices import pick_dtype
from specbench.errors import InputError, few
from specbench.models import local_folder
from specbench.training.lesson import Depths, Lesson
from specbench.zoo.expand import SEED, layer_place, small_sizes
from specbench.zoo.expand_drafter import expanded_network

OURS = "model.safetensors"
RANDOM = "random"


@dataclass(frozen=True)
class TargetShape:
    """The sizes of a target that drafters are made for, by transformers' names."""

    hidden_size: int
    vocab_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int

    @staticmethod
    def of(config: PretrainedConfig) -> "TargetShape":
        heads = config.num_attention_heads
        return TargetShape(
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            num_hidden_layers=config.num_hidden_layers,
            intermediate_size=config.intermediate_size,
            num_attention_heads=heads,
            num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            rms_norm_eps=getattr(config, "rms_norm_eps", 1e-6),
            max_position_embeddings=config.max_position_embeddings,
        )

    @staticmethod
    def trained_for(config: PretrainedConfig) -> "TargetShape":
        """That of the target before it was expanded at load."""
        return replace(TargetShape.of(config), **small_sizes(config))

    def layer(self) -> dict[str, Any]:
        """Sizes of a decoder layer as wide as the target's, for a config.json."""
        return asdict(self) | {"num_hidden_layers": 1}


def layer_config(config: Mapping[str, Any], shape: TargetShape) -> LlamaConfig:
    """The config of a drafter's Llama layer, with our attention function: config.json's sizes, else the target's."""
    sizes = {**shape.layer(), **config}
    if "num_attention_heads" in config:  # a drafter with heads of its own
        sizes["num_key_value_heads"] = config.get("num_key_value_heads") or config["num_attention_heads"]
        sizes["head_dim"] = config.get("head_dim") or sizes["hidden_size"] // config["num_attention_heads"]
    taken = {name: sizes[name] for name in (*shape.layer(), "hidden_act") if name in sizes}
    made = LlamaConfig(**taken, rope_parameters={"rope_type": "default", "rope_theta": config.get("rope_theta") or 10000.0})
    made._attn_implementation = attention.NAME
    return made


class DraftNetwork(nn.Module):
    """A drafter's weights. Module names are the authors' tensor names, so that its state dict is their checkpoint.

    Built from a checkpoint's config.json and the shape of the target it was trained for.
    """

    files: ClassVar[tuple[str, ...]]  # the authors' own file names; model.safetensors is always known
    unused: ClassVar[tuple[str, ...]] = ()  # beginnings of tensor names that a checkpoint may hold and nothing reads
    writes_hidden: ClassVar[tuple[str, ...]] = ()  # ends of the names of weights whose rows are hidden dimensions
    beside: Mapping[str, int] = {}  # ends of the names of weights that read so many hidden vectors side by side
    packs: ClassVar[bool] = True  # whether its linear layers are called as they are, so that a CPU may pack their weights

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__()
        self.config, self.shape = dict(config), shape

    @classmethod
    def new_config(cls, shape: TargetShape) -> dict[str, Any]:
        """config.json of a new network for a target."""
        raise NotImplementedError

    @classmethod
    def understood(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """config.json and tensors of a published checkpoint without their quirks."""
        return config, tensors

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def taps(self) -> tuple[int, ...]:
        """The hidden states it reads, by layer of the target it was trained for: by default the final norm's output."""
        return (self.shape.num_hidden_layers,)

    def meet(self, target: LanguageModel) -> None:
        """Take what the network shares with its target, such as the output head."""

    def prepare(self) -> None:
        """Lay the weights for drafting; called when they are in place and will not change."""

    def start_from(self, target: LanguageModel) -> None:
        """The weights that training starts from, where random ones are not what the paper takes."""

    def loss(self, lesson: Lesson) -> Depths:
        """The paper's loss on a batch of conversations."""
        raise NotImplementedError


Network = TypeVar("Network", bound=DraftNetwork)


def network_for(kind: type[Network], checkpoint: str | None, target: LanguageModel, dtype: str = "auto") -> Network:
    """A drafter's network for its target: from a folder, a hub id (owner/name@revision) or `random`; expanded as the target is.

    dtype auto: the target's. Raises InputError.
    """
    base = TargetShape.trained_for(target.config)
    if checkpoint is None:
        raise InputError("this target names no such checkpoint: set method.LABEL.checkpoint to a folder, a hub id or random")
    network = _random(kind, base) if checkpoint == RANDOM else _read(kind, checkpoint, base)
    kept = target.dtype if dtype == "auto" else pick_dtype(dtype, target.device)
    if small_sizes(target.config):
        network = expanded_network(network, base, TargetShape.of(target.config), kept, target.device)
    network = network.to(target.device, kept).eval().requires_grad_(False)
    if kind.packs and can_pack(target.device, kept):
        pack(network)
    network.meet(target)
    network.prepare()
    return network


class NetworkDrafter(Drafter):
    """A drafter with weights of its own. checkpoint: a folder, a hub id (owner/name@revision) or `random`; dtype: theirs."""

    learns = "weights"
    network_class: ClassVar[type[Any]]  # a DraftNetwork

    def __init__(self, checkpoint: str | None, dtype: str) -> None:
        super().__init__()
        self.checkpoint, self.dtype = checkpoint, dtype

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self.network = network_for(self.network_class, self.checkpoint, target, self.dtype)
        self.taps = tuple(layer_place(layer, target.config) for layer in self.network.taps)


def embedding_scale(target: LanguageModel) -> float:
    """What brings the target's embeddings, often much smaller, to an RMS of one, about that of hidden states behind a norm."""
    return 1 / target.embedding.weight.detach().float().pow(2).mean().sqrt().item()  # type: ignore[union-attr, operator]


def new_network(kind: type[Network], target: LanguageModel) -> Network:
    """A network that training starts from, float32 on the target's device."""
    shape = TargetShape.of(target.config)
    network = kind(kind.new_config(shape), shape).to(target.device)
    network.start_from(target)
    network.meet(target)
    return network


def _random(kind: type[Network], shape: TargetShape) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return kind(kind.new_config(shape), shape)


def _read(kind: type[Network], checkpoint: str, shape: TargetShape) -> Network:
    folder = _folder(checkpoint)
    tensors = read_tensors(folder, kind.files)
    config, tensors = kind.understood(_config(folder / "config.json"), tensors)
    with torch.device("meta"):
        network = kind(config, shape)
    fill(network, tensors, checkpoint)
    return network


def fill(network: DraftNetwork, tensors: Mapping[str, Tensor], place: str) -> None:
    """Give a network its weights. Raises InputError for missing, further and misshapen tensors, by name and with both shapes."""
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith(network.unused)}
    misshapen = [
        f"{name} is {tuple(given[name].shape)}, expected {tuple(shape)}"
        for name, shape in wanted.items()
        if name in given and given[name].shape != shape
    ]
    missing = [f"{name}, expected {tuple(shape)}" for name, shape in wanted.items() if name not in given]
    kinds = {"misshapen": misshapen, "missing": missing, "not in the network": [name for name in given if name not in wanted]}
    if wrong := "; ".join(f"{what}: {few(sorted(names))}" for what, names in kinds.items() if names):
        raise InputError(f"the checkpoint at {place} does not fit its config: {wrong}")
    network.load_state_dict(dict(given), assign=True)


def read_tensors(folder: Path, files: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of the first weight file that is there. Raises InputError for none, and for a pickle of more than tensors."""
    names = [OURS, *files]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"no checkpoint at {folder}: expected one of {', '.join(names)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise InputError(f"{path}: holds more than plain tensors, which is never executed") from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _folder(checkpoint: str) -> Path:
    if (folder := local_folder(checkpoint)) is not None:
        return folder
    name, _, revision = checkpoint.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"no checkpoint at {checkpoint}: no such folder, and {str(error).splitlines()[0]}") from None


def _config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def write(network: DraftNetwork, folder: Path, file: str = OURS) -> None:
    """config.json and the weights, float16 or as they are if integers, under one of the names that `read_tensors` knows."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: _stored(tensor) for name, tensor in network.state_dict().items()}
    (folder / "config.json").write_text(json.dumps(network.config, indent=2) + "\n", encoding="utf-8")
    if file.endswith(".safetensors"):
        save_file(tensors, folder / file)
    else:
        torch.save(tensors, folder / file)


def _stored(tensor: Tensor) -> Tensor:
    kept = tensor.detach().cpu()
    return (kept.half() if kept.is_floating_point() else kept).clone().contiguous()
