"""`specbench datastore build`: from a config to a datastore for the target's tokenizer."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from specbench.datastore.build import build
from specbench.datastore.sources import Writing, of_dataset, of_file
from specbench.datastore.tokenizers import fingerprint
from specbench.errors import InputError
from specbench.models.load import load_model
from specbench.models.texts import answered
from specbench.setup.instantiate import built, check, check_types
from specbench.setup.objects import questions_of, target_of, tokenizer_of
from specbench.setup.rules import LOADING, SHARED_RULES, WHOLE, Rules, check_rules
from specbench.watch import Watch


def _text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value != "")


RULES: Rules = SHARED_RULES | {
    "max_new_tokens": WHOLE,
    "chunk_tokens": (lambda value: value is None or WHOLE[0](value), "a number of tokens, at least 1, or null"),
    "data": (_text, "a file, or null"),
    "dataset": (_text, "a data set's hub id, or null"),
    "split": (lambda value: isinstance(value, str), "a split's name"),
    "field": (_text, "the name of a field, or null"),
    "limit": (
        lambda value: value is None or WHOLE[0](value),
        "a number of documents (of a suite, questions per task), or null",
    ),
}


def make(config: DictConfig, watch: Watch) -> Path:
    """The new datastore's folder. Loads the tokenizer alone, unless the target itself must answer. Raises InputError."""
    check_rules(config, RULES)
    check_types(load_model, {key: config.target[key] for key in LOADING}, "target")
    check(config.suite, "suite")
    if config.data is not None and config.dataset is not None:
        raise InputError(f"data={config.data} and dataset={config.dataset}: expected one of them")
    out = Path(config.out or f"results/datastore-{config.target.name}").expanduser()
    if out.exists():
        raise InputError(f"out={out}: is there already; choose another folder")
    answering = config.data is None and config.dataset is None
    documents, writing, source = _answers(config, watch) if answering else _texts(config)
    return build(documents, out, writing.vocabulary, fingerprint(writing.tokenizer), source, watch, config.chunk_tokens)


def _texts(config: DictConfig) -> tuple[Iterator[list[int]], Writing, str]:
    """The documents of `data` or of `dataset`."""
    tokenizer, chat = tokenizer_of(config.target)
    writing = Writing(tokenizer, chat, 1 + max(tokenizer.get_vocab().values()))
    if config.data is not None:
        documents, source = of_file(Path(config.data).expanduser(), config.field, writing), Path(config.data).name
    else:
        documents = of_dataset(config.dataset, config.split, config.field, writing)
        source = f"{config.dataset}, {config.split} split"
    return islice(documents, config.limit), writing, source


def _answers(config: DictConfig, watch: Watch) -> tuple[Iterator[list[int]], Writing, str]:
    """The suite's questions with the target's own answers."""
    suite = built(config.suite)
    questions = questions_of(config, suite, config.limit)
    target = target_of(config.target)
    writing = Writing(target.tokenizer, target.chat, target.model.vocabulary)
    texts = answered(target, questions, config.max_new_tokens, watch, last=True)
    source = f"suite {suite.name}, {config.suite.get('split', 'no')} split, answered by {config.target.name}"
    return (writing.answer(text) for text in texts), writing, source
