"""Datastores: searches agree with a linear scan; a store is built completely or not at all."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from specbench import ROOT
from specbench.datastore.build import build_datastore, build_in_memory
from specbench.datastore.leakage import check_tokenizers, extract_grams, iter_datastores, measure_leakage, measure_share
from specbench.datastore.sources import DocumentEncoder, read_dataset, read_file
from specbench.datastore.store import INFO_FILE, Datastore
from specbench.datastore.tokenizers import hash_tokenizer
from specbench.decoding.drafter import Drafter
from specbench.errors import InputError
from specbench.models.chat import Chat, render_prompt
from specbench.models.load import load_tokenizer
from specbench.models.texts import GRAM
from specbench.setup.objects import EMBEDDED
from specbench.zoo.recipes.chats import write_chats
from tasks.mini.suite import Mini
from tasks.question import Question
from tests.stores import chunks_of, documents, occurrences, places, queries, store_of

KINDS = [(3, 1000), (3, 60), (300, 150), (70_000, 150), (70_000, 1000)]  # vocabulary, tokens of a chunk; two bytes and four
every_kind = pytest.mark.parametrize(("vocabulary", "chunk_tokens"), KINDS)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(EMBEDDED, None, False)


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerBase) -> DocumentEncoder:
    return DocumentEncoder(tokenizer, Chat("template"), len(tokenizer))


@every_kind
def test_suffixes_stand_in_the_order_of_their_ids(tmp_path: Path, vocabulary: int, chunk_tokens: int) -> None:
    """Ids above 255 have several bytes: little-endian ones would sort 256 before 1."""
    store = store_of(tmp_path / "store", documents(vocabulary, 40, 20), vocabulary, chunk_tokens)
    for chunk in store.chunks:
        ids = chunk.ids.tolist()
        assert chunk.suffixes.tolist() == sorted(range(len(ids)), key=lambda place: ids[place:])


@every_kind
def test_the_longest_known_ending_is_found_everywhere(tmp_path: Path, vocabulary: int, chunk_tokens: int) -> None:
    store = store_of(tmp_path / "store", documents(vocabulary, 40, 20), vocabulary, chunk_tokens)
    lengths = set()
    for query in queries(store, vocabulary, 150):
        for longest, shortest in ((16, 2), (4, 1), (5, 5)):
            known_lengths = [n for n in range(shortest, min(longest, len(query)) + 1) if any(occurrences(store, query[-n:]))]
            match = store.find(query, longest, shortest)
            assert (match.length if match else None) == (max(known_lengths) if known_lengths else None)
            if match:
                assert places(match) == list(chain.from_iterable(occurrences(store, query[-match.length :])))
                assert match.places == len(places(match))
            lengths.add(match.length if match else 0)
        assert store.holds(query) == any(occurrences(store, query))
    assert {0, 2} < lengths and max(lengths) > 8, lengths


@every_kind
@pytest.mark.parametrize("most", [1, 7, 10_000])
def test_continuations_are_what_follows(tmp_path: Path, vocabulary: int, chunk_tokens: int, most: int) -> None:
    store = store_of(tmp_path / "store", documents(vocabulary, 40, 20), vocabulary, chunk_tokens)
    for query in queries(store, vocabulary, 60):
        if (match := store.find(query, 6, 1)) is None:
            continue
        suffix = query[-match.length :]
        following = [
            [(ids[i + match.length : i + match.length + 5] + [-1] * 5)[:5] for i in places]
            for ids, places in zip(chunks_of(store), occurrences(store, suffix), strict=True)
        ]
        first = sorted(row for rows in following for row in rows[:most])
        assert store.read_continuations(match, 5, most, "first").tolist() == first
        every = list(chain.from_iterable(following))
        taken = min(most, len(every))
        spread = sorted(every[i * len(every) // taken] for i in range(taken))
        assert store.read_continuations(match, 5, most, "spread").tolist() == spread


def test_a_sample_is_spread_over_all_chunks(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", [[63, n] for n in range(40)], 64, 20)
    assert len(store.chunks) == 4
    match = store.find([63], 4, 1)
    assert match is not None and store.read_continuations(match, 1, 10, "spread").ravel().tolist() == list(range(0, 40, 4))


def test_a_document_stands_in_one_chunk(tmp_path: Path) -> None:
    texts = [[1] * 30, [2] * 30, [3] * 100, [], [4] * 10, [5] * 30, [6]]
    store = store_of(tmp_path / "store", texts, 8, 61)
    assert chunks_of(store) == [[1] * 30 + [2] * 30, [3] * 100, [4] * 10 + [5] * 30 + [6]]
    assert (store.tokens, store.about.documents) == (201, 6)


def test_ids_that_no_store_of_two_bytes_can_hold(tmp_path: Path) -> None:
    """A target may know more ids than its tokenizer; what follows them can still be looked up."""
    store = store_of(tmp_path / "store", [[1, 2, 3, 4]], 8, 100)
    match = store.find([70_002, 2, 3], 16, 1)
    assert match is not None and match.length == 2
    assert store.find([2, 70_003], 16, 1) is None and not store.holds([70_002, 2, 3]) and store.holds([2, 3])


def test_a_store_in_memory_is_the_same(tmp_path: Path) -> None:
    texts = documents(300, 20, 20)
    in_memory, on_disk = build_in_memory(texts, 300), store_of(tmp_path / "store", texts, 300, 10_000)
    assert in_memory.chunks[0].suffixes.tolist() == on_disk.chunks[0].suffixes.tolist()
    assert in_memory.about.sha256 == on_disk.about.sha256 and in_memory.about.vocabulary == on_disk.about.vocabulary


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    for texts, expected in (
        ([], "a test: contains no document"),
        ([[]], "contains no document"),
        ([[8]], "holds the id 8"),
        ([[-1]], "-1"),
    ):
        with pytest.raises(InputError, match=expected):
            store_of(tmp_path / "store", texts, 8, 100)
    (tmp_path / "existing").mkdir()
    with pytest.raises(InputError, match="already exists"):
        store_of(tmp_path / "existing", [[1]], 8, 100)
    assert [path.name for path in tmp_path.iterdir()] == ["existing"]


@pytest.mark.parametrize("suffix", [".ids", ".suffixes"])
def test_a_full_disk_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open
    full = lambda path, mode="r", **more: Full() if mode == "wb" and path.suffix == suffix else opened(path, mode, **more)  # noqa: E731
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        build_datastore([[1, 2, 3]] * 100, tmp_path / "store", 8, None, "a test", chunk_tokens=50)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_no_files(tmp_path: Path) -> None:
    def interrupted() -> Iterator[list[int]]:
        yield [1, 2, 3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_datastore(interrupted(), tmp_path / "store", 8, None, "a test")
    assert list(tmp_path.iterdir()) == []


def truncate(folder: Path) -> None:
    (folder / "0.suffixes").write_bytes((folder / "0.suffixes").read_bytes()[:-4])


def change_info(folder: Path, **changes: Any) -> None:
    (folder / INFO_FILE).write_text(json.dumps({**json.loads((folder / INFO_FILE).read_text()), **changes}))


BROKEN = {
    "truncated": (truncate, "0.suffixes: 8 bytes, expected 12: the datastore is incomplete; build it again"),
    "a file less": (lambda folder: (folder / "0.ids").unlink(), "0.ids: cannot be read: No such file"),
    "foreign": (lambda folder: (folder / INFO_FILE).unlink(), "is not a datastore: it has no store.json"),
    "no JSON": (lambda folder: (folder / INFO_FILE).write_text("{"), "store.json: not a JSON object"),
    "no mapping": (lambda folder: (folder / INFO_FILE).write_text("[]"), "store.json: not a JSON object"),
    "other fields": (lambda folder: change_info(folder, colour="red"), "store.json: cannot be read"),
    "wrong types": (lambda folder: change_info(folder, chunks=None), "store.json: cannot be read"),
    "wrong sizes": (lambda folder: change_info(folder, width=3), "store.json: cannot be read"),
    "an empty chunk": (lambda folder: change_info(folder, chunks=[0]), "store.json: cannot be read"),
    "other version": (lambda folder: change_info(folder, version=2), "is a datastore of version 2; expected version 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_store_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    spoil, expected = BROKEN[name]
    spoil(build_datastore([[1, 2, 3]], tmp_path / "store", 8, None, "a test"))
    with pytest.raises(InputError, match=expected):
        Datastore.open(str(tmp_path / "store"))


def test_no_store_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; build one with specbench datastore build"):
        Datastore.open(str(tmp_path / "nowhere"))


def rows(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


CHAT = [("Who?", "Ada."), ("And now?", "Grace.")]
MESSAGES = [{"role": role, "content": text} for turn in CHAT for role, text in zip(("user", "assistant"), turn, strict=True)]
SHARED = [{"from": role, "value": text} for turn in CHAT for role, text in zip(("human", "gpt"), turn, strict=True)]


def test_a_conversation_is_one_document_as_in_a_run(tmp_path: Path, encoder: DocumentEncoder) -> None:
    tokenizer = encoder.tokenizer
    prompt = render_prompt(Chat("template"), [CHAT[0], (CHAT[1][0], None)], tokenizer)
    expected = [*prompt, *tokenizer("Grace.", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    whole = [text for turn in CHAT for text in turn]
    chats: list[dict[str, Any]] = [{"messages": MESSAGES}, {"conversations": SHARED}, {"talk": whole}, {"talk": MESSAGES}]
    for row in chats:
        field = "talk" if "talk" in row else None
        assert list(read_file(rows(tmp_path / "chats.jsonl", row), field, encoder)) == [expected]
    assert list(read_file(rows(tmp_path / "chats.json", [chats[0], chats[1]]), None, encoder)) == [expected] * 2
    assert list(read_file(rows(tmp_path / "asked.jsonl", {"messages": MESSAGES[:1]}), None, encoder)) == []


def test_texts_and_ids(tmp_path: Path, encoder: DocumentEncoder) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("One\nparagraph.\n\n \nAnother.\n")
    one, another = read_file(plain, None, encoder)
    decoded = encoder.tokenizer.decode(one, skip_special_tokens=True)
    assert decoded == "One\nparagraph.\n" and one[-1] == another[-1] == encoder.tokenizer.eos_token_id
    file = rows(tmp_path / "texts.jsonl", {"text": "Another.\n"}, "", {"prompt_ids": [5, 6], "answer_ids": [7, 1]}, {"text": " "})
    assert list(read_file(file, None, encoder)) == [another, [5, 6, 7, 1]]


def test_a_data_set_is_read_row_by_row(tmp_path: Path, encoder: DocumentEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "set").mkdir()
    rows(tmp_path / "set" / "train.jsonl", {"body": "Some text."}, {"body": "More."})
    found = list(read_dataset(str(tmp_path / "set"), "train", "body", encoder))
    assert found == [encoder.encode_text("Some text."), encoder.encode_text("More.")]
    with pytest.raises(InputError, match="field=bdoy: no such field; there is body"):
        list(read_dataset(str(tmp_path / "set"), "train", "bdoy", encoder))
    with pytest.raises(InputError, match="dataset=.* split=tset: cannot be read"):
        list(read_dataset(str(tmp_path / "set"), "tset", "body", encoder))


def test_a_fingerprint_is_of_what_decides_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    own = hash_tokenizer(tokenizer)
    other = load_tokenizer(EMBEDDED, None, False)
    other(["one", "two and more"], truncation=True, max_length=3)
    assert hash_tokenizer(other) == own, "how a text is cut is no part of it"
    other.add_tokens(["<new>"])
    assert hash_tokenizer(other) != own


def test_the_embedded_store_is_what_its_recipe_makes(tmp_path: Path, encoder: DocumentEncoder) -> None:
    store = Datastore.open("specbench/zoo/datastore")
    assert store.about.tokenizer == hash_tokenizer(encoder.tokenizer) and store.about.documents == 2400
    files = [path for path in (ROOT / "specbench/zoo/datastore").iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3e6
    write_chats(tmp_path / "some.jsonl", 20, whole=True)
    beginning = list(chain.from_iterable(read_file(tmp_path / "some.jsonl", None, encoder)))
    assert store.chunks[0].ids[: len(beginning)].tolist() == beginning
    shares = [measure_share(question, store, encoder.tokenizer) for question in Mini(per_task=10).questions()]
    assert max(shares) < 0.5 and sum(shares) / len(shares) < 0.1, "its dialogues are the training split's"


def test_grams() -> None:
    long, short = list(range(GRAM + 2)), [1, 2]
    assert extract_grams([long, short]) == [long[:GRAM], long[1 : GRAM + 1], long[2:]]
    assert extract_grams([short, [1, 2, 3]]) == [[1, 2, 3]], "of short turns the longest, as a whole"


def test_leaked_questions_are_counted(tmp_path: Path, encoder: DocumentEncoder) -> None:
    asked = [question for question in Mini(per_task=2).questions() if question.task == "rag"]
    kept = encoder.encode_text(asked[0].turns[0])
    store = build_in_memory([kept[:-1]], encoder.vocabulary)
    assert measure_share(asked[0], store, encoder.tokenizer) == 1
    half = build_in_memory([kept[: len(kept) // 3]], encoder.vocabulary)
    assert 0 < measure_share(asked[0], half, encoder.tokenizer) < 0.5
    some_words = encoder.tokenizer.decode(encoder.tokenizer(asked[0].turns[0]).input_ids[3:9])
    short = Question("1", "qa", "qa", (str(some_words),))
    assert measure_share(short, store, encoder.tokenizer) == 1, f"too short for a gram, {some_words!r} is one itself"
    assert measure_share(Question("1", "qa", "qa", ("zqzq",)), store, encoder.tokenizer) == 0

    found = measure_leakage({"made": part_of(store), "plain": Drafter()}, asked, encoder.tokenizer)
    assert list(found) == ["made"]
    (about,) = found["made"]
    assert (about["questions"], about["leaked"]) == (2, 1) and 0.5 <= about["mean_share"] < 1


def part_of(store: Datastore) -> Drafter:
    """A drafter made of one with a store."""
    inner, outer = Drafter(), Drafter()
    inner.datastore = store  # type: ignore[attr-defined]
    outer.parts = (inner,)
    assert list(iter_datastores(outer)) == [store]
    return outer


def test_a_store_of_another_tokenizer_is_found_inside_too(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    other = Datastore.open(str(build_datastore([[1]], tmp_path / "other", 8, "0" * 64, "a test")))
    with pytest.raises(InputError, match=r"method\.mine: the datastore .*other was built for another tokenizer"):
        check_tokenizers({"mine": part_of(other)}, tokenizer)
    check_tokenizers({"mine": part_of(build_in_memory([[1]], 8))}, tokenizer)
