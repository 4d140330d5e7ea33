"""Texts checked token by token: the target's own, a tie within its rounding, or a bug."""

from dataclasses import replace

import pytest
import torch

from specbench.certify.token_check import GeneratedText, Noise, check_tokens, compute_logits, measure_noise, misfits
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.errors import InputError
from tests.methods_under_test import drafter_of
from tests.tiny import prompts, tiny_language_model, tiny_model

WARM = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=12, seed=3)


@pytest.fixture(scope="module")
def target() -> LanguageModel:
    return tiny_language_model()


def generate_texts(target: LanguageModel, label: str, sampling: Sampling, count: int = 6) -> list[GeneratedText]:
    drafter = drafter_of(label, "llama")
    drafter.bind(target)
    texts = []
    for seed, prompt in enumerate(prompts(count)):
        seeded = replace(sampling, seed=seed)
        output = generate(target, drafter, [prompt], seeded)[0].output_ids
        texts.append(GeneratedText(prompt.tolist(), output, seeded))
    return texts


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=12), WARM])
def test_texts_are_checked_token_by_token(target: LanguageModel, sampling: Sampling) -> None:
    ours = generate_texts(target, "pld", sampling)
    check = check_tokens(target, ours, generate_texts(target, "autoregressive", sampling), 1e-6)
    assert (check.class_, check.equal, check.wrong, check.first) == ("exact", 6, 0, [])
    other = [[*ours[0].output[:5], (ours[0].output[5] + 1) % 128, *ours[0].output[6:]], *(text.output for text in ours[1:])]
    changed = [replace(text, output=output) for text, output in zip(ours, other, strict=True)]
    check = check_tokens(target, changed, ours, 1e-6)
    assert check.class_ == "bug" and check.wrong == 1 and check.first[0][0] == 5 and check.first[0][1] > 0
    assert 1e-6 < float(misfits(target, changed[0])[5]) <= check.worst


def test_a_stop_token_that_comes_early_is_a_bug(target: LanguageModel) -> None:
    """Where the most probable token is forbidden, the right text continues with the best of the allowed ones."""
    free = generate_texts(target, "autoregressive", Sampling(max_new_tokens=12))
    stops = tuple({token for text in free for token in text.output[:6]})
    for sampling in (
        Sampling(max_new_tokens=12, stop_token_ids=stops, min_new_tokens=6),
        replace(WARM, stop_token_ids=stops, min_new_tokens=6),
    ):
        ours = generate_texts(target, "pld", sampling)
        check = check_tokens(target, ours, generate_texts(target, "autoregressive", sampling), 1e-6)
        assert (check.class_, check.equal, check.wrong, check.ended) == ("exact", 6, 0, 0)
        early = [replace(text, output=[*text.output[:3], stops[0]]) for text in ours]
        assert check_tokens(target, early, ours, 1e-6).wrong == 6


def test_a_difference_within_the_rounding_is_a_tie(target: LanguageModel) -> None:
    ours = generate_texts(target, "autoregressive", Sampling(max_new_tokens=12))
    logits = compute_logits(target, ours[0])
    second = int(logits[-1].topk(2).indices[1])
    changed = [replace(ours[0], output=[*ours[0].output[:-1], second]), *ours[1:]]
    gap = float(logits[-1].max() - logits[-1, second])
    assert check_tokens(target, changed, ours, gap * 1.01).class_ == "tie"
    assert check_tokens(target, changed, ours, gap * 0.99).class_ == "bug"


def test_a_target_without_numbers_is_refused(target: LanguageModel) -> None:
    text = generate_texts(target, "autoregressive", Sampling(max_new_tokens=4))[0]
    broken = tiny_model()
    broken.get_output_embeddings().weight.data.fill_(float("nan"))  # type: ignore[no-untyped-call]
    wrapped = LanguageModel(broken)
    assert check_tokens(wrapped, [text], [text], 1e-6).wrong == 1
    with pytest.raises(InputError, match="not finite numbers"):
        measure_noise(wrapped, [text], WARM)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_cache_without_numbers_is_refused(target: LanguageModel, monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    def compute(model: LanguageModel, text: GeneratedText, size: int | None = None) -> torch.Tensor:
        logits = compute_logits(model, text, size).clone()
        if size == 12:
            logits[-1, 5] = bad
        return logits

    text = generate_texts(target, "autoregressive", Sampling(max_new_tokens=4))[0]
    monkeypatch.setattr("specbench.certify.token_check.compute_logits", compute)
    with pytest.raises(InputError, match="not finite numbers"):
        measure_noise(target, [text], WARM)


@pytest.mark.parametrize("cut", ["short", "long", "after a stop"])
def test_a_text_with_a_wrong_end_is_a_bug(target: LanguageModel, cut: str) -> None:
    (text, *_) = generate_texts(target, "autoregressive", Sampling(max_new_tokens=12))
    if cut == "short":
        wrong = replace(text, output=text.output[:-1])
    elif cut == "long":
        wrong = replace(text, sampling=replace(text.sampling, max_new_tokens=11))
    else:
        wrong = replace(text, sampling=replace(text.sampling, stop_token_ids=(text.output[3],)))
    check = check_tokens(target, [wrong], [wrong], 1e9)
    assert (check.wrong, check.ended) == (1, 1)


def test_noise_is_how_far_the_target_differs_from_itself(target: LanguageModel) -> None:
    noise = measure_noise(target, generate_texts(target, "autoregressive", Sampling(max_new_tokens=12)), WARM)
    assert noise == Noise(1e-9, 1e-9), "in float64 there is next to none"
    low = LanguageModel(tiny_model(dtype=torch.bfloat16))
    noise = measure_noise(low, generate_texts(low, "autoregressive", Sampling(max_new_tokens=12)), WARM)
    assert 1e-3 < noise.sampled < 0.3 and 1e-3 < noise.greedy < 3


@pytest.mark.parametrize("sampling", [replace(WARM, top_p=0.9), replace(WARM, top_p=1.0, top_k=10)])
def test_the_edge_of_the_nucleus_is_rounding(sampling: Sampling) -> None:
    """In bfloat16 a token falls in or out of it with the shape of the forward."""
    low = LanguageModel(tiny_model(dtype=torch.bfloat16))
    texts = generate_texts(low, "autoregressive", replace(sampling, max_new_tokens=64), count=24)
    assert check_tokens(low, texts, texts, measure_noise(low, texts, sampling).sampled).wrong == 0
