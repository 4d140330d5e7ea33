"""Every method of conf/method, found by its YAML and built for a tiny target."""

from functools import lru_cache

from specbench.certify.miniature import add_noise
from specbench.certify.miniature import build_drafter as made
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.setup.compose import CONF, compose_run
from specbench.setup.settings import Node
from tests.tiny import tiny_model

LABELS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
LAYERS = 2
NOISE = 0.03  # of each weight's spread: such a draft model is right more often than not


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
