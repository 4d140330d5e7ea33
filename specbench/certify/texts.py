"""The prompts of a certificate, and the greedy and sampled texts that methods generate for them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from specbench.certify.token_check import GeneratedText, Noise, measure_noise
from specbench.decoding.drafter import Drafter
from specbench.decoding.loop import Generation
from specbench.decoding.sampling import Sampling
from specbench.engine.native import Native
from specbench.models.chat import decode_answer, render_prompt
from specbench.models.target import Target
from specbench.records.trial import BASELINE
from specbench.setup.objects import build_sampling, instantiate_methods
from specbench.setup.settings import CertifySettings
from specbench.watch import Watch
from tasks.question import Question

NOISE_TEXTS = 24  # texts from which the target's rounding is measured
ORDERED = 12  # prompts answered in two orders


class TextSampler:
    """Generates the texts that are checked. Baseline texts are generated once per target and shared."""

    def __init__(
        self, settings: CertifySettings, target: Target, drafters: dict[str, Drafter], questions: Sequence[Question], watch: Watch
    ) -> None:
        self.settings, self.target, self.drafters = settings, target, drafters
        self.questions, self.watch = questions, watch
        self.engine = Native(profile=False, forward=settings.forward)
        self.engine.open(target.model, drafters)
        self.sampled = build_sampling(settings.sampling, target)
        self.greedy = replace(self.sampled, temperature=0.0, top_p=1.0, top_k=0)

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Every turn's prompt, after autoregressive decoding's greedy answers to the earlier turns."""
        prompts = []
        for done, question in enumerate(self.questions):
            turns: list[tuple[str, str | None]] = []
            for turn in question.turns:
                prompt = render_prompt(self.target.chat, [*turns, (turn, None)], self.target.tokenizer)
                if len(prompt) >= self.target.model.context:
                    break
                prompts.append(prompt)
                out = self.engine.generate(BASELINE, prompt, self.greedy)
                turns.append((turn, decode_answer(self.target.chat, self.target.tokenizer, out.output_ids)))
            self.watch("prompts: the target answers question", done + 1, len(self.questions))
        return prompts

    @cached_property
    def baseline_texts(self) -> dict[Sampling, list[GeneratedText]]:
        """Autoregressive decoding's texts by sampling, greedy and sampled."""
        return {sampling: self.generate_texts(BASELINE, sampling) for sampling in (self.greedy, self.sampled)}

    @cached_property
    def noise(self) -> Noise:
        """The target's rounding error, from its first greedy texts."""
        texts = self.baseline_texts[self.greedy][:NOISE_TEXTS]
        self.watch("the target's rounding, by text", 0, len(texts))
        return measure_noise(self.target.model, texts, self.sampled)

    def generate_texts(self, label: str, sampling: Sampling) -> list[GeneratedText]:
        """Return a text per prompt. Above temperature 0 each prompt has its own seed, the same for every method."""
        self.engine.reset(label)
        kind = "sampled" if sampling.temperature else "greedy"
        texts, count = [], len(self.prompts)
        for index, prompt in enumerate(self.prompts):
            seeded = replace(sampling, seed=self.settings.seed * count + index) if sampling.temperature else sampling
            texts.append(GeneratedText(prompt, self.engine.generate(label, prompt, seeded).output_ids, seeded))
            self.watch(f"{label} {kind}: text", index + 1, count)
        return texts

    def count_leaks(self, label: str, sampling: Sampling) -> tuple[int, int]:
        """Return how many prompts take different steps when they come again in another order, and how many were tried.

        The drafter is built afresh: this run's own has seen every prompt, and may remember it.
        """
        prompts = self.prompts[:ORDERED]
        self.watch(f"{label} in another order, by prompt", 0, len(prompts))
        engine = Native(profile=False, forward=self.settings.forward)
        engine.open(self.target.model, instantiate_methods({label: self.settings.method[label]}))
        engine.reset(label)
        return count_leaks(lambda prompt: engine.generate(label, prompt, sampling), prompts), len(prompts)


Generate = Callable[[list[int]], Generation]


def count_leaks(generate: Generate, prompts: Sequence[list[int]]) -> int:
    """Return how many prompts are answered in different steps when they come a second time, in reverse order."""
    forwards = [_collect_steps(generate(prompt)) for prompt in prompts]
    backwards = [_collect_steps(generate(prompt)) for prompt in reversed(prompts)]
    return sum(a != b for a, b in zip(forwards, reversed(backwards), strict=True))


def _collect_steps(out: Generation) -> tuple[list[int], ...]:
    return out.output_ids, out.drafted, out.nodes, out.depth, out.accepted, out.committed
