"""The base class of trained drafters' networks, and the sizes of the target they are trained for."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config
from transformers.activations import ACT2FN
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from specbench.decoding import attention
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.config_keys import ANY, POSITIVE, Rule, require_equal, require_name, require_whole
from specbench.drafters.lesson import Lesson, LessonLoss
from specbench.drafters.rotary import ROTARY_KEYS, read_rotary
from specbench.drafters.speculators import flatten_config
from specbench.errors import InputError
from specbench.models.expand import get_small_sizes

FULL = "full_attention"
DEFAULT_EPS = 1e-6  # rms_norm_eps of a Llama whose config.json has none


@dataclass(frozen=True)
class TargetShape:
    """Sizes of a target, by transformers' names."""

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
        heads, hidden = config.num_attention_heads, config.hidden_size
        defaults = {"num_key_value_heads": heads, "head_dim": hidden // heads, "rms_norm_eps": DEFAULT_EPS}
        defaults["intermediate_size"] = getattr(config, "ffn_dim", None) or 4 * hidden  # OPT's name, and GPT-2's size
        names = [field.name for field in fields(TargetShape)]
        return TargetShape(**{name: getattr(config, name, None) or defaults[name] for name in names})

    @staticmethod
    def of_base(config: PretrainedConfig) -> "TargetShape":
        """Return the shape of the target before it was expanded at load."""
        return replace(TargetShape.of(config), **get_small_sizes(config))

    def get_layer_sizes(self) -> dict[str, Any]:
        """Return the sizes of one decoder layer as wide as the target's, for a config.json."""
        return asdict(self) | {"num_hidden_layers": 1}


Checkpoint = tuple[dict[str, Any], dict[str, Tensor]]  # config.json, and the tensors by name


def list_layer_keys(shape: TargetShape) -> dict[str, Rule]:
    """Return the keys of config.json that describe a Llama layer and embeddings of the drafter's own."""
    return {
        **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"), require_whole(required=True)),
        "vocab_size": require_equal(shape.vocab_size, "the target's", required=True),
        "num_hidden_layers": require_equal(1, "the only number supported"),
        "num_key_value_heads": require_whole(),
        "head_dim": require_whole(),
        "max_position_embeddings": require_whole(),
        "rms_norm_eps": POSITIVE,
        "hidden_act": require_name(ACT2FN),
        "layer_types": Rule('a list of "full_attention"', lambda value: isinstance(value, list) and set(value) <= {FULL}),
        **ROTARY_KEYS,
    }


def build_layer_config(config: Mapping[str, Any], shape: TargetShape, qk_norms: bool = False) -> Any:
    """Return the config of a drafter's layers with our attention function: config.json's sizes, else the target's.

    qk_norms: of Qwen3's layers, which normalise queries and keys, not of Llama's.
    """
    sizes = {**shape.get_layer_sizes(), **config}
    if "num_attention_heads" in config:
        sizes["num_key_value_heads"] = config.get("num_key_value_heads") or config["num_attention_heads"]
        sizes["head_dim"] = config.get("head_dim") or sizes["hidden_size"] // config["num_attention_heads"]
    _check_heads(sizes)
    kept = {name: sizes[name] for name in (*shape.get_layer_sizes(), "hidden_act") if name in sizes}
    kept["num_hidden_layers"] = config.get("num_hidden_layers", 1)
    layer_config = (Qwen3Config if qk_norms else LlamaConfig)(**kept, rope_parameters=read_rotary(config))
    layer_config._attn_implementation = attention.NAME
    return layer_config


def build_qwen3_layer(config: Mapping[str, Any], layer_config: Any, index: int) -> Qwen3DecoderLayer:
    """Return a layer; in an expanded network its norms of queries and of keys have their own epsilon."""
    layer = Qwen3DecoderLayer(layer_config, index)
    if "qk_norm_eps" in config:
        layer.self_attn.q_norm.variance_epsilon, layer.self_attn.k_norm.variance_epsilon = config["qk_norm_eps"]
    return layer


def count_layers(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of layers in a checkpoint that names them `layers.0.`, `layers.1.` and so on."""
    return max((1 + int(found[1]) for name in tensors if (found := re.match(r"layers\.(\d+)\.", name))), default=0)


def _check_heads(sizes: Mapping[str, Any]) -> None:
    heads, groups, width = (sizes[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    if heads % groups:
        raise InputError(f"num_key_value_heads={groups}: expected a divisor of num_attention_heads={heads}")
    if width < 2 or width % 2:
        raise InputError(f"head_dim={width}: expected an even number, as rotary positions turn pairs of dimensions")


class DraftNetwork(nn.Module):
    """A drafter's weights, built from a checkpoint's config.json and the shape of the target it was trained for.

    Modules are named so that the state dict has the authors' tensor names.
    """

    files: ClassVar[tuple[str, ...]]  # the authors' file names; model.safetensors is always accepted
    speculators: ClassVar[str] = ""  # the type of vLLM's speculators whose files it reads
    unused: ClassVar[tuple[str, ...]] = ()  # prefixes of tensors that a checkpoint may contain and nothing reads
    writes_hidden: ClassVar[tuple[str, ...]] = ()  # suffixes of weights whose rows are hidden dimensions
    hidden_vectors: Mapping[str, int] = {}  # suffixes of weights that read several concatenated hidden vectors -> how many
    other_inputs: Mapping[str, int] = {}  # suffixes of weights -> how many of their last inputs are not hidden dimensions
    trains: ClassVar[bool] = True  # by specbench train
    packs: ClassVar[bool] = True  # its linear layers are called as modules, so a CPU may pack their weights

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__()
        self.config, self.shape = dict(config), shape

    @classmethod
    def create_config(cls, shape: TargetShape) -> dict[str, Any]:
        """Return the config.json of a new network for a target."""
        raise NotImplementedError

    @classmethod
    def list_keys(cls, shape: TargetShape) -> Mapping[str, Rule]:
        """Return the keys of config.json that the network uses, with their rules; by default create_config's, of any value."""
        return dict.fromkeys(cls.create_config(shape), ANY)

    @classmethod
    def read_target(cls) -> Checkpoint:
        """Return config.json and tensors of weights that are among the target's own."""
        raise InputError("checkpoint=target: this method's weights are not among the target's; expected a folder or random")

    @classmethod
    def flatten_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a published config.json with all keys that `list_keys` names at its top."""
        return flatten_config(config, cls.speculators)

    @classmethod
    def normalise_checkpoint(cls, config: dict[str, Any], tensors: dict[str, Tensor], shape: TargetShape) -> Checkpoint:
        """Return config.json, checked by list_keys, and tensors of a published checkpoint without its quirks."""
        return config, tensors

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def taps(self) -> tuple[int, ...]:
        """The target's hidden states that it reads, by layer number; by default the final norm's output."""
        return (self.shape.num_hidden_layers,)

    def attach_target(self, target: LanguageModel) -> None:
        """Keep references to what the network shares with its target, such as the output head."""

    def run_layers(self, *inputs: Any) -> Tensor:
        """Run the decoder layers of a network that has any, over hidden states (B, N, ...), other inputs, and a pass."""
        return cast(Tensor, self(*inputs))

    def list_layer_inputs(self, nodes: int) -> list[tuple[Tensor, ...]]:
        """Return random inputs of `run_layers` over `nodes` nodes: one per width of hidden states."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Rearrange the weights for drafting; called once they are loaded and final."""

    def init_weights(self, target: LanguageModel) -> None:
        """Set the weights that training starts from, if the paper does not start from random ones."""

    def choose_vocabulary(self, tokens: Tensor) -> None:
        """Draft only these ids of the target, (draft vocabulary,) ascending; for networks that have their own vocabulary."""
        raise NotImplementedError

    def compute_loss(self, lesson: Lesson) -> LessonLoss:
        """Compute the paper's training loss on a batch of conversations."""
        raise NotImplementedError


def draw_layer_inputs(network: DraftNetwork, width: int, nodes: int) -> tuple[Tensor, ...]:
    """Return hidden states (1, N, width), tokens (1, N) and positions (1, N), at random but for the positions."""
    device = next(network.parameters()).device
    draw = torch.Generator(device).manual_seed(nodes)
    hidden = torch.randn(1, nodes, width, generator=draw, device=device, dtype=network.dtype)
    tokens = torch.randint(network.shape.vocab_size, (1, nodes), generator=draw, device=device)
    return hidden, tokens, torch.arange(nodes, device=device)[None]


Network = TypeVar("Network", bound=DraftNetwork)


def embedding_scale(target: LanguageModel) -> float:
    """Return the factor that brings the target's embeddings to an RMS of one, about that of normalised hidden states."""
    weight = target.embedding.get_parameter("weight")
    return 1 / weight.detach().float().pow(2).mean().sqrt().item()
