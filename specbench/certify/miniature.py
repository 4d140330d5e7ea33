"""A random model of a few thousand weights that only ever writes eight tokens, and any method of conf/method built for it.

Its output distribution can be enumerated. It has the target's architecture; trained networks, skip sets and datastores are
random, and the draft model is the same model with noise on its weights.
"""

from collections.abc import Mapping
from typing import Any

import torch
from hydra.utils import get_object
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.checkpoints import RANDOM
from specbench.models.token_map import NONE, TokenMap

VOCABULARY = 16  # ids, so that a node can have ten children
TOKENS = 8  # ids that are ever written
NEVER = -1e4  # logit of the other ids
SOFTENED = 0.5  # factor on its logits, so that most continuations are likely enough to test
LAYERS = 2
NOISE = 0.5  # SD of the draft model's noise, relative to each weight's own
HIDDEN = 32
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,
    "final_logit_softcapping": None,  # Gemma 2 would make NEVER likely
}


def build_random_model(architecture: str, seed: int = 0) -> PreTrainedModel:
    """Return a float32 model on the CPU; equal arguments give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(architecture, **SHAPE)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config).float().eval()  # type: ignore[no-untyped-call]
    head = nn.Linear(HIDDEN, VOCABULARY, dtype=torch.float32)
    head.weight.data.copy_(SOFTENED * model.get_output_embeddings().weight.data)  # type: ignore[no-untyped-call]
    head.bias.data.fill_(0.0)[TOKENS:] = NEVER
    model.set_output_embeddings(head)  # type: ignore[no-untyped-call]
    return model


def build_miniature(architecture: str) -> tuple[LanguageModel, LanguageModel]:
    """Return the miniature target and its draft model."""
    return LanguageModel(build_random_model(architecture)), add_noise(build_random_model(architecture), NOISE)


def add_noise(model: PreTrainedModel, noise: float, seed: int = 5) -> LanguageModel:
    """Add noise to the model's matrices, in place, and return it as a draft model that is accepted in part."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.add_(noise * weight.std() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return LanguageModel(model)


def build_drafter(settings: Mapping[str, Any], draft: LanguageModel) -> Drafter:
    """Instantiate a method's YAML for a miniature target: its parts first, with random checkpoints and datastores."""
    arguments = {name: _build_part(name, value, draft) for name, value in settings.items() if name != "_target_"}
    drafter: Drafter = get_object(settings["_target_"])(**arguments)
    return drafter


def _build_part(name: str, value: Any, draft: LanguageModel) -> Any:
    if name == "draft":
        return draft
    if name in ("checkpoint", "datastore"):
        return RANDOM
    if name == "tokens":
        return _build_token_map(draft.vocabulary)
    if name == "filler" and isinstance(value, int):  # the token drafted where nothing matches
        return min(value, draft.vocabulary - 1)
    return build_drafter(value, draft) if isinstance(value, Mapping) and "_target_" in value else value


def _build_token_map(vocabulary: int) -> TokenMap:
    """Return a map of a draft model that has the same ids, but lacks every fifth token; it reads another in its place."""
    numbers = torch.arange(vocabulary)
    return TokenMap(torch.where(numbers % 5 == 4, NONE, numbers), lambda ids: [token - token % 5 for token in ids])
