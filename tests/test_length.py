"""Least lengths and stop strings: every method ends where the target would by itself, one by one and side by side."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch

from specbench.certify import enumeration
from specbench.certify.miniature import build_drafter, build_miniature
from specbench.decoding.drafter import Drafter
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Dice, Sampling, probabilities, spread_seed
from specbench.decoding.stopping import Forbidden, StopStrings
from specbench.models.chat import decode_whole
from specbench.setup.compose import compose_run
from tests.methods_under_test import drafter_of, each_preset, target_of
from tests.test_prompts import byte_tokenizer
from tests.tiny import VOCABULARY, prompts

MOST, LEAST = 20, 7
STOPS = tuple(range(0, VOCABULARY, 10))  # one token in ten, so that most texts would end early
PROMPTS = prompts(9, seed=2)
GREEDY = Sampling(max_new_tokens=MOST, min_new_tokens=LEAST, stop_token_ids=STOPS)
SAMPLED = Sampling(0.9, 0.95, 0, MOST, STOPS, seed=3, min_new_tokens=LEAST)
side_by_side = pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.full), 3])


def letters(ids: Sequence[int]) -> str:
    """A text of five letters."""
    return "".join("abcde"[token % 5] for token in ids)


TEXTS = ("bad", "ee")
UNTIL = Sampling(max_new_tokens=MOST, stop_token_ids=(1, 7), ending=StopStrings(TEXTS, letters))


def bound(label: str) -> Drafter:
    drafter = drafter_of(label, "llama")
    drafter.bind(target_of("llama"))
    return drafter


def decode(drafter: Drafter, sampling: Sampling, batch: int = 1) -> list[Generation]:
    groups = [PROMPTS[start : start + batch] for start in range(0, len(PROMPTS), batch)]
    return [out for group in groups for out in generate(drafter.target, drafter, group, sampling)]


@torch.inference_mode()
def write_slowly(prompt: torch.Tensor, sampling: Sampling) -> list[int]:
    """One token after the other, by transformers, without a cache: the definition."""
    dice = Dice(sampling.seed, torch.device("cpu"))
    output: list[int] = []
    with target_of("llama").use_original_attention() as original:
        model: Any = original
        while len(output) < sampling.max_new_tokens:
            logits = model(torch.tensor([[*prompt.tolist(), *output]])).logits[0, -1]
            if len(output) < sampling.min_new_tokens:
                logits[list(sampling.stop_token_ids)] = -torch.inf
            greedy = sampling.temperature == 0
            output.append(int(logits.argmax() if greedy else dice.draw(probabilities(logits, sampling))))
            if output[-1] in sampling.stop_token_ids:
                break
    return output


@lru_cache
def expect(sampling: Sampling, batch: int = 1) -> list[list[int]]:
    seeds = spread_seed(sampling.seed, batch) if batch > 1 else [sampling.seed]
    samplings = [replace(sampling, seed=seeds[place % batch]) for place in range(len(PROMPTS))]
    return [write_slowly(prompt, own) for prompt, own in zip(PROMPTS, samplings, strict=True)]


@each_preset
@side_by_side
def test_no_stop_token_comes_early(label: str, batch: int) -> None:
    drafter = bound(label)
    outs = decode(drafter, GREEDY, batch)
    assert [out.output_ids for out in outs] == expect(GREEDY)
    assert {out.finish_reason for out in outs} == {"eos", "length"}, "texts end in both ways"
    lengths = [len(tokens) for tokens in expect(GREEDY)]
    assert min(lengths) == LEAST + 1, "some stop token comes as soon as it may"


@each_preset
def test_sampled_text_has_its_least_length_too(label: str) -> None:
    drafter = bound(label)
    if not drafter.lossless:
        return
    outs = decode(drafter, SAMPLED, 3)
    lengths = {len(out.output_ids) for out in outs}
    assert min(lengths) > LEAST and all(set(out.output_ids[:LEAST]).isdisjoint(STOPS) for out in outs)
    if not drafter.draws:
        assert [out.output_ids for out in outs] == expect(SAMPLED, 3)


@pytest.mark.parametrize("label", ["sps", pytest.param("eagle", marks=pytest.mark.full), "pld"])
def test_the_distribution_with_a_token_forbidden_is_the_targets(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of drafts that are drawn from a model that does not know of it; a verification that does not either is found."""
    small, draft = build_miniature("llama")
    drafter = build_drafter(compose_run([f"method=[{label}]"]).method[label], draft)
    drafter.bind(small)
    sampling = Sampling(1.0, min_new_tokens=1)
    exact = enumeration.exact(small, sampling)

    def find_least(draws: int) -> float:
        tokens = enumeration.draw_tokens(small, drafter, sampling, draws)
        return min(test.p_value for test in enumeration.run_g_tests(tokens, exact, level=1e-4))

    right = find_least(1024)
    monkeypatch.setattr(Forbidden, "mask_logits", lambda self, logits, depths, written: logits)
    assert right > 1e-4 > find_least(256), f"{label}: five G-tests of one seed"


@lru_cache
def cut_at_text(batch: int = 1, sampling: Sampling = UNTIL) -> list[tuple[list[int], str]]:
    """Autoregressive decoding's text, cut after the first token with which it contains a stop string."""
    ends = []
    for output in expect(sampling, batch):
        cuts = [n for n in range(1, len(output) + 1) if any(text in letters(output[:n]) for text in TEXTS)]
        reason = "eos" if output[-1] in sampling.stop_token_ids else "length"
        ends.append(
            (output[: cuts[0]], "stop_string") if cuts and (cuts[0] < len(output) or reason != "eos") else (output, reason)
        )
    return ends


@each_preset
@side_by_side
def test_the_first_stop_string_ends_the_text(label: str, batch: int) -> None:
    outs = decode(bound(label), UNTIL, batch)
    assert [(out.output_ids, out.finish_reason) for out in outs] == cut_at_text()
    for out in outs:
        assert 1 + sum(out.committed) == len(out.output_ids), "the last step is cut as at a stop token"
        assert all(a <= c for a, c in zip(out.accepted, out.committed, strict=True))
    assert {reason for _, reason in cut_at_text()} == {"stop_string", "length", "eos"}


@each_preset
def test_sampled_text_ends_at_a_stop_string(label: str) -> None:
    drafter, sampling = bound(label), Sampling(0.9, 0.95, 0, MOST, (1, 7), 3, ending=StopStrings(TEXTS, letters))
    outs = decode(drafter, sampling, 3)
    ended = [out.output_ids for out in outs if out.finish_reason == "stop_string"]
    assert ended and all(letters(ids).endswith(TEXTS) and not any(text in letters(ids[:-1]) for text in TEXTS) for ids in ended)
    if drafter.lossless and not drafter.draws:
        assert [(out.output_ids, out.finish_reason) for out in outs] == cut_at_text(3, sampling)


def test_neither_ends_a_text_within_its_least_length() -> None:
    drafter = bound("pld")
    outs = decode(drafter, Sampling(max_new_tokens=MOST, min_new_tokens=LEAST, ending=StopStrings(TEXTS, letters)))
    for out, whole in zip(outs, expect(Sampling(max_new_tokens=MOST)), strict=True):
        length = next((n for n in range(LEAST, MOST + 1) if any(text in letters(whole[LEAST:n]) for text in TEXTS)), MOST)
        assert out.output_ids == whole[:length]


def test_a_stop_token_that_ends_with_a_text_counts_as_the_reason() -> None:
    output = expect(Sampling(max_new_tokens=MOST))[0]
    last = next(n for n in range(2, MOST) if output[n] not in output[:n])
    text = letters(output[: last + 1])
    for stops, reason in (((output[last],), "eos"), ((), "stop_string"), ((output[last + 1],), "stop_string")):
        sampling = Sampling(max_new_tokens=MOST, stop_token_ids=stops, ending=StopStrings((text,), letters))
        out = generate(target_of("llama"), bound("pld"), PROMPTS[:1], sampling)[0]
        assert (out.output_ids, out.finish_reason) == (output[: last + 1], reason)


def test_committed_at_once_or_one_by_one_a_text_ends_at_the_same_token() -> None:
    """Texts of several bytes per character, in tokens of one byte, against a search of every prefix."""
    tokenizer, draw = byte_tokenizer(), random.Random(0)

    def show(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    found = 0
    for _ in range(300):
        text = "".join(draw.choices("aé€\n", k=12))
        ids = tokenizer(text, add_special_tokens=False).input_ids
        texts = tuple({"".join(draw.choices("aé€\n", k=draw.randint(1, 3))) for _ in range(2)})
        free = draw.choice([0, 0, 3])
        prefixes = range(free + 1, len(ids) + 1)
        right = next((n for n in prefixes if any(stop in show(ids[free:n]) for stop in texts)), None)
        stops, checked, end = StopStrings(texts, show), 0, None
        while checked < len(ids) and end is None:
            step = min(len(ids), checked + draw.randint(1, 6))
            end, checked = stops.find_end(ids[:step], checked, free), step
        assert end == right, (text, texts, free)
        found += right is not None
    assert 100 < found < 300


def test_a_long_answer_is_searched_in_its_last_tokens_alone() -> None:
    seen: list[int] = []

    def show(ids: Sequence[int]) -> str:
        seen.append(len(ids))
        return "".join(map(chr, ids))

    assert StopStrings(("zz",), show).find_end([97] * 5000, 4998, 0) is None
    assert seen == [2 + 8 + 2 - 1], "the text's bytes, the margin, and the tokens of the step"


def test_special_tokens_are_seen() -> None:
    tokenizer = byte_tokenizer()
    ids = [*tokenizer("ab", add_special_tokens=False).input_ids, 1]
    assert decode_whole(tokenizer, ids) == "ab</s>"
