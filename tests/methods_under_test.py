"""Every method of conf/method, found by its YAML and built for a tiny target."""

from functools import lru_cache

import pytest

from specbench.certify.miniature import add_noise
from specbench.certify.miniature import build_drafter as made
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.setup.compose import CONF, compose_run
from specbench.setup.settings import Node
from tests.tiny import tiny_model

LABELS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
NUMBERS_ALONE = (  # tell these presets from another one, whose code is the same: all tiers try them once, the slow one fully
    *("eagle_spec_bench", "eagle2_spec_bench", "eagle3_depth2", "eagle3_depth7", "eagle3_spec_bench", "hydra_heads_spec_bench"),
    *("lookahead_spec_bench", "medusa_spec_bench", "medusa_typical", "pld_spec_bench", "pld_vllm", "rest_spec_bench"),
    *("sam_eagle2_spec_bench", "self_speculative_paper", "suffix_cold", "suffix_vllm", "token_recycling_spec_bench"),
)
LAYERS = 2
NOISE = 0.03  # of each weight's spread: such a draft model is right more often than not


each_preset = pytest.mark.parametrize(
    "label", [pytest.param(label, marks=[pytest.mark.slow] * (label in NUMBERS_ALONE)) for label in LABELS]
)


@lru_cache
def target_of(architecture: str) -> LanguageModel:
    return LanguageModel(tiny_model(architecture, LAYERS))


@lru_cache
def draft_model_of(architecture: str) -> LanguageModel:
    """The tiny target with perturbed weights, so that its drafts are accepted in part."""
    return add_noise(tiny_model(architecture, LAYERS), NOISE)


@lru_cache
def _node(label: str) -> Node:
    return compose_run([f"method=[{label}]"]).method[label]


def drafter_of(label: str, architecture: str) -> Drafter:
    """A new drafter as its YAML describes it; a language model in it is a tiny one, checkpoint and datastore are random."""
    return build_method(label, draft_model_of(architecture))


def build_method(label: str, draft: LanguageModel) -> Drafter:
    """A new drafter that drafts, if it needs a language model, with the given one."""
    return made(_node(label), draft)
