"""`specbench datastore build`: from a settings to a datastore for the target's tokenizer."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from specbench.datastore.build import build
from specbench.datastore.sources import Writing, of_dataset, of_file
from specbench.datastore.tokenizers import fingerprint
from specbench.errors import InputError
from specbench.models.texts import answered
from specbench.setup.instantiate import built, check
from specbench.setup.objects import questions_of, target_of, tokenizer_of
from specbench.setup.settings import DatastoreSettings
from specbench.watch import Watch


def make(settings: DatastoreSettings, watch: Watch) -> Path:
    """The new datastore's folder. Loads the tokenizer alone, unless the target itself must answer. Raises InputError."""
    check(settings.suite, "suite")
    if settings.data is not None and settings.dataset is not None:
        raise InputError(f"data={settings.data} and dataset={settings.dataset}: expected one of them")
    out = Path(settings.out or f"results/datastore-{settings.target.name}").expanduser()
    if out.exists():
        raise InputError(f"out={out}: is there already; choose another folder")
    answering = settings.data is None and settings.dataset is None
    documents, writing, source = _answers(settings, watch) if answering else _texts(settings)
    return build(documents, out, writing.vocabulary, fingerprint(writing.tokenizer), source, watch, settings.chunk_tokens)


def _texts(settings: DatastoreSettings) -> tuple[Iterator[list[int]], Writing, str]:
    """The documents of `data` or of `dataset`."""
    tokenizer, chat = tokenizer_of(settings.target)
    writing = Writing(tokenizer, chat, 1 + max(tokenizer.get_vocab().values()))
    if settings.data is not None:
        documents, source = of_file(Path(settings.data).expanduser(), settings.field, writing), Path(settings.data).name
    else:
        documents = of_dataset(settings.dataset or "", settings.split, settings.field, writing)
        source = f"{settings.dataset}, {settings.split} split"
    return islice(documents, settings.limit), writing, source


def _answers(settings: DatastoreSettings, watch: Watch) -> tuple[Iterator[list[int]], Writing, str]:
    """The suite's questions with the target's own answers."""
    suite = built(settings.suite)
    questions = questions_of(settings, suite, settings.limit)
    target = target_of(settings.target)
    writing = Writing(target.tokenizer, target.chat, target.model.vocabulary)
    texts = answered(target, questions, settings.max_new_tokens, watch, last=True)
    source = f"suite {suite.name}, {settings.suite.get('split', 'no')} split, answered by {settings.target.name}"
    return (writing.answer(text) for text in texts), writing, source
