"""Draft models of another tokenizer: every draft is the one that a plain computation and transformers' generator make."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from methods.sps_tli import TokenIntersection
from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.engine.hf import TransformersGenerate
from specbench.errors import InputError
from specbench.models.token_map import NONE, build_token_map
from tests.drafts import watch_drafts
from tests.tiny import prompts, tiny_model

LIMIT, DRAFTED, FEW = 24, 4, 16
WORDS = [f"w{number}" for number in range(FEW)]
MORE = [f"v{number}" for number in range(5)]  # words that the target lacks


def build_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    build: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = build(tokenizer_object=tokenizer)
    return made


TARGET = build_tokenizer(WORDS)
DRAFT = build_tokenizer([*MORE, *[word for word in reversed(WORDS) if word not in ("w3", "w8")]])  # it reads v0 for these two


def build(layers: int = 2) -> tuple[LanguageModel, LanguageModel]:
    with patch.dict("tests.tiny.SHAPE", vocab_size=FEW):
        target = LanguageModel(tiny_model("llama", layers))
    with patch.dict("tests.tiny.SHAPE", vocab_size=len(DRAFT)):
        return target, LanguageModel(tiny_model("llama", 1, seed=5))


def draft_plainly(draft: LanguageModel, committed: list[int], wanted: int) -> list[int]:
    """Word by word: the most probable word that the target has, one cacheless forward each."""
    words, drafted = [WORDS[token] for token in committed], list[str]()
    shared = [number for word, number in DRAFT.get_vocab().items() if word in WORDS]
    with draft.use_original_attention() as model, torch.inference_mode():
        while len(drafted) < wanted:
            ids = DRAFT.encode(" ".join([*words, *drafted]), add_special_tokens=False)
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            best = max(shared, key=lambda number: float(logits[number]))
            drafted.append(str(DRAFT.convert_ids_to_tokens(best)))
    return [WORDS.index(word) for word in drafted]


@pytest.mark.parametrize("layers", [1, 2])
def test_every_draft_is_the_one_of_a_plain_computation(layers: int) -> None:
    target, draft = build(layers)
    drafter = TokenIntersection(draft, build_token_map(TARGET, DRAFT), DRAFTED, "fixed", 0.0, stop_at_eos=False)
    drafter.bind(target)
    steps = accepted = 0
    for prompt in (prompt % FEW for prompt in prompts(20, seed=9)):
        with watch_drafts(drafter) as drafts:
            (out,) = generate(target, drafter, [prompt], Sampling(max_new_tokens=LIMIT))
        committed = [*prompt.tolist(), out.output_ids[0]]
        for draft_ids, count in zip(drafts, out.committed, strict=True):
            assert draft_ids == draft_plainly(draft, committed, len(draft_ids))
            committed = [*prompt.tolist(), *out.output_ids[: len(committed) - len(prompt) + count]]
        steps, accepted = steps + len(drafts), accepted + sum(out.accepted)
    assert steps > 200 and accepted > 10


def test_every_draft_is_the_one_of_transformers() -> None:
    """Its generator of candidates, asked with the tokens committed so far."""
    from transformers import GenerationConfig
    from transformers.generation.candidate_generator import AssistantToTargetTranslator, UniversalSpeculativeDecodingGenerator

    configure: Any = GenerationConfig
    generator: Any = UniversalSpeculativeDecodingGenerator
    target, draft = build()
    drafter = TokenIntersection(draft, build_token_map(TARGET, DRAFT), DRAFTED, "fixed", 0.0, stop_at_eos=False)
    drafter.bind(target)
    steps = 0
    for prompt in (prompt % FEW for prompt in prompts(20, seed=9)):
        with watch_drafts(drafter) as drafts:
            (out,) = generate(target, drafter, [prompt], Sampling(max_new_tokens=LIMIT))
        ids = torch.tensor([[*prompt.tolist(), out.output_ids[0]]])
        with draft.use_original_attention() as model:
            settings = configure(max_length=250, min_length=0, do_sample=False, num_assistant_tokens=DRAFTED)
            assistant: Any = model
            assistant.generation_config.num_assistant_tokens = DRAFTED
            assistant.generation_config.num_assistant_tokens_schedule = "constant"
            assistant.generation_config.assistant_confidence_threshold = 0.0
            assistant.generation_config.eos_token_id = None
            assistant.generation_config.pad_token_id = len(MORE) - 1  # a word that never occurs: of padding nothing is read
            translator = AssistantToTargetTranslator(TARGET, DRAFT, FEW)
            theirs = generator(ids, assistant, TARGET, DRAFT, settings, {}, translator)
            for own, count in zip(drafts, out.committed, strict=True):
                found, _ = theirs.get_candidates(ids)
                assert found[0, ids.shape[1] :].tolist()[: len(own)] == own
                following = out.output_ids[ids.shape[1] - len(prompt) :][:count]
                ids = torch.cat([ids, torch.tensor([following])], dim=1)
                steps += 1
    assert steps > 100


def test_transformers_decodes_with_both_tokenizers_in_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its universal assisted generation, as a row of the engine hf."""
    target, draft = build()
    monkeypatch.setattr("specbench.engine.hf.load_draft", lambda *_: draft)
    engine = TransformersGenerate({"sps_tli": {"assistant": {"num_assistant_tokens": DRAFTED}}}, {}, "cpu", "random")
    drafter = TokenIntersection(draft, build_token_map(TARGET, DRAFT), DRAFTED, "fixed", 0.0, stop_at_eos=False)
    engine.open(target, {"sps_tli": drafter})
    plain = Autoregressive()
    plain.bind(target)
    with patch.object(
        engine.target.model, "_get_candidate_generator", wraps=engine.target.model._get_candidate_generator
    ) as made:
        for prompt in (prompt % FEW for prompt in prompts(6, seed=9)):
            (ours,) = generate(target, plain, [prompt], Sampling(max_new_tokens=LIMIT))
            assert engine.generate("sps_tli", prompt.tolist(), Sampling(max_new_tokens=LIMIT)).output_ids == ours.output_ids
    assert made.call_args.kwargs["assistant_tokenizer"] is DRAFT


def test_the_map_holds_the_shared_words_and_a_leading_space_in_either_spelling() -> None:
    found = build_token_map(TARGET, DRAFT)
    own = {number: word for word, number in DRAFT.get_vocab().items()}
    for number, target in enumerate(found.to_target.tolist()):
        assert target == (WORDS.index(own[number]) if own[number] in WORDS else NONE)
    assert found.rewrite([3, 4]) == [0, DRAFT.get_vocab()["w4"]]


def test_vocabularies_without_a_common_token_are_refused() -> None:
    with pytest.raises(InputError, match="shares no token with the target's"):
        build_token_map(TARGET, build_tokenizer(MORE))
