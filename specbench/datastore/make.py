"""`specbench datastore build`: from settings to a datastore for the target's tokenizer."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from specbench.datastore.build import build_datastore
from specbench.datastore.sources import DocumentEncoder, read_dataset, read_file
from specbench.datastore.tokenizers import hash_tokenizer
from specbench.errors import InputError
from specbench.models.texts import generate_answers
from specbench.records.names import make_file_name
from specbench.setup.instantiate import check_node
from specbench.setup.objects import load_target, load_target_tokenizer
from specbench.setup.questions import open_suite, select_questions
from specbench.setup.settings import DatastoreSettings
from specbench.watch import Watch
from tasks.suite import Suite


def build_from_config(settings: DatastoreSettings, watch: Watch) -> Path:
    """Build a datastore and return its folder. Loads only the tokenizer unless the target must answer. Raises InputError."""
    check_node(settings.suite, "suite", Suite)
    if settings.data is not None and settings.dataset is not None:
        raise InputError(f"data={settings.data} and dataset={settings.dataset}: expected one of them")
    out = Path(settings.out or f"results/datastore-{make_file_name(settings.target.name)}").expanduser()
    if out.exists():
        raise InputError(f"out={out}: already exists; choose another folder")
    answering = settings.data is None and settings.dataset is None
    documents, encoder, source = _answer_questions(settings, watch) if answering else _read_texts(settings)
    fingerprint = hash_tokenizer(encoder.tokenizer)
    return build_datastore(documents, out, encoder.vocabulary, fingerprint, source, watch, settings.chunk_tokens)


def _read_texts(settings: DatastoreSettings) -> tuple[Iterator[list[int]], DocumentEncoder, str]:
    """Read the documents of `data` or of `dataset`."""
    tokenizer, chat = load_target_tokenizer(settings.target)
    encoder = DocumentEncoder(tokenizer, chat, 1 + max(tokenizer.get_vocab().values()))
    if settings.data is not None:
        documents = read_file(Path(settings.data).expanduser(), settings.field, encoder)
        source = Path(settings.data).name
    else:
        documents = read_dataset(settings.dataset or "", settings.split, settings.field, encoder)
        source = f"{settings.dataset}, {settings.split} split"
    return islice(documents, settings.limit), encoder, source


def _answer_questions(settings: DatastoreSettings, watch: Watch) -> tuple[Iterator[list[int]], DocumentEncoder, str]:
    """Generate the target's answers to the suite's questions."""
    suite = open_suite(settings)
    questions = select_questions(settings, suite, settings.limit)
    target = load_target(settings.target)
    encoder = DocumentEncoder(target.tokenizer, target.chat, target.model.vocabulary)
    texts = generate_answers(target, questions, settings.max_new_tokens, watch, last=True)
    source = f"suite {suite.name}, {settings.suite.get('split', 'no')} split, answered by {settings.target.name}"
    return (encoder.encode_answer(text) for text in texts), encoder, source
