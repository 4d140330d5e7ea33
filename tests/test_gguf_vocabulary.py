"""The vocabulary that specbench export gguf writes: texts, kinds and merges of tokens, the tokens that end an answer."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from specbench.errors import InputError
from specbench.exchange.gguf_vocabulary import Kind, list_merges, read_vocabulary
from specbench.models.load import load_tokenizer
from specbench.setup.objects import EMBEDDED


def test_the_embedded_vocabulary_has_its_texts_kinds_and_padding() -> None:
    tokenizer = load_tokenizer(EMBEDDED, None, False)
    vocabulary = read_vocabulary(tokenizer, 1026, (1,))
    said = {key: value for _, key, value in vocabulary.settings}
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert tokens[:1024] == tokenizer.convert_ids_to_tokens(list(range(1024)))
    assert (tokens[1024:], kinds[1024:]) == (["[PAD1024]", "[PAD1025]"], [Kind.UNUSED] * 2)
    assert kinds[:5] == [Kind.CONTROL] * 4 + [Kind.NORMAL]
    assert said["tokenizer.chat_template"] == tokenizer.chat_template
    assert not vocabulary.splits_alike, "it is a Unigram, and gpt2 merges"


def test_merges_of_a_unigram_join_its_tokens_the_most_probable_first() -> None:
    model = {"type": "Unigram", "vocab": [["a", -3.0], ["b", -3.0], ["ab", -2.0], ["abc", -1.0], ["c", -4.0]]}
    assert list_merges(model) == ["ab c", "a b"]


def wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]


def train(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a few merges: byte-level as GPT-2's or SmolLM's, or Llama 2's kind."""
    texts = ["a rose is a rose is a rose 1234"] * 3
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind == "pieces", unk_token="<unk>" if kind == "pieces" else None))
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256) if kind == "pieces")]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "pieces":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    elif kind == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [] if kind == "pieces" else pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet))
    plain = json.loads(tokenizer.to_str())
    plain["added_tokens"] = plain["added_tokens"][:2]  # bytes are plain tokens
    return wrap(Tokenizer.from_str(json.dumps(plain)), eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(("kind", "split"), [("gpt-2", "gpt-2"), ("smollm", "smollm")])
def test_a_byte_level_bpe_keeps_its_merges_and_names_its_split(kind: str, split: str) -> None:
    tokenizer = train(kind)
    vocabulary = read_vocabulary(tokenizer, 600, (1,))
    said = {key: value for _, key, value in vocabulary.settings}
    assert said["tokenizer.ggml.model"] == "gpt2" and said["tokenizer.ggml.pre"] == split and vocabulary.splits_alike
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert said["tokenizer.ggml.merges"] == [" ".join(merge) for merge in merges] and merges


def test_pieces_with_byte_fallback_have_scores_and_kinds() -> None:
    tokenizer = train("pieces")
    vocabulary, last = read_vocabulary(tokenizer, 600, (1,)), len(tokenizer) - 1
    said = {key: value for _, key, value in vocabulary.settings}
    kinds, scores = said["tokenizer.ggml.token_type"], said["tokenizer.ggml.scores"]
    assert said["tokenizer.ggml.model"] == "llama" and not vocabulary.splits_alike
    assert (kinds[0], kinds[1], kinds[2:258]) == (Kind.UNKNOWN, Kind.CONTROL, [Kind.BYTE] * 256)
    assert scores[last] == -last < scores[last - 1], "an earlier merge wins"
    assert kinds[last + 1 :] == [Kind.UNUSED] * (599 - last)


def test_several_ends_have_a_key_each() -> None:
    said = {key: value for _, key, value in read_vocabulary(load_tokenizer(EMBEDDED, None, False), 1024, (1, 7, 9)).settings}
    assert [said[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")] == [1, 7, 9]


def test_a_tokenizer_of_words_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    with pytest.raises(InputError, match=r"its tokenizer \(WordLevel\) is neither byte-level nor"):
        read_vocabulary(wrap(words), 600, (1,))
