"""What is asked of the methods, and their texts: greedy ones, sampled ones, and many short samples of a few prompts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from math import ceil

import torch

from specbench.certify.permutation import Texts
from specbench.certify.token_check import Noise, Text, noise_of
from specbench.decoding.drafter import Drafter
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Sampling
from specbench.engine.native import Native
from specbench.models.chat import answer_text, render
from specbench.models.target import Target
from specbench.records.certificates import KEYS
from specbench.records.trial import BASELINE
from specbench.setup.settings import CertifySettings
from specbench.watch import Watch
from tasks.question import Question

NOISE_TEXTS = 24  # texts from which the target's rounding is measured
ORDERED = 12  # prompts asked in two orders
CUT = 6  # prompts that are broken off in the middle, where what comes next is least certain, and continued again and again


class Asked:
    """Of one target; what several methods are held against is made once."""

    def __init__(
        self, settings: CertifySettings, target: Target, drafters: dict[str, Drafter], questions: Sequence[Question], watch: Watch
    ) -> None:
        self.settings, self.target, self.drafters, self.questions, self.watch = settings, target, drafters, questions, watch
        self.engine = Native(profile=False)
        self.engine.open(target.model, drafters)
        self.greedy = Sampling(max_new_tokens=settings.sampling.max_new_tokens, stop_token_ids=target.model.eos_ids)
        self.sampled = replace(self.greedy, **{key: getattr(settings.sampling, key) for key in KEYS})

    def samples_by_prompt(self) -> list[int]:
        """How many short samples each prompt that is broken off is to get; known before any is asked."""
        turns = sum(len(question.turns) for question in self.questions)
        return [self.settings.samples] * len(range(turns)[:: ceil(turns / CUT)])

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Every turn's prompt, behind autoregressive decoding's greedy answers."""
        found = []
        for done, question in enumerate(self.questions):
            said: list[tuple[str, str | None]] = []
            for turn in question.turns:
                prompt = render(self.target.chat, [*said, (turn, None)], self.target.tokenizer)
                if len(prompt) >= self.target.model.context:
                    break
                found.append(prompt)
                out = self.engine.generate(BASELINE, prompt, self.greedy)
                said.append((turn, answer_text(self.target.chat, self.target.tokenizer, out.output_ids)))
            self.watch("prompts: the target answers question", done + 1, len(self.questions))
        return found

    @cached_property
    def reference(self) -> dict[Sampling, list[Text]]:
        """Autoregressive decoding's texts, greedy and sampled."""
        return {sampling: self.texts(BASELINE, sampling) for sampling in (self.greedy, self.sampled)}

    @cached_property
    def noise(self) -> Noise:
        texts = self.reference[self.greedy][:NOISE_TEXTS]
        self.watch("the target's rounding, by text", 0, len(texts))
        return noise_of(self.target.model, texts, self.sampled)

    @cached_property
    def baseline_samples(self) -> Texts:
        return self.samples(BASELINE, 0, 1)

    def texts(self, label: str, sampling: Sampling) -> list[Text]:
        """Above temperature 0 with another seed for every prompt, the same for every method."""
        self.engine.reset(label)
        found, most = [], len(self.prompts)
        for at, prompt in enumerate(self.prompts):
            own = replace(sampling, seed=self.settings.seed * most + at) if sampling.temperature else sampling
            found.append(Text(prompt, self.engine.generate(label, prompt, own).output_ids, own))
            self.watch(f"{label} {'sampled' if sampling.temperature else 'greedy'}: text", at + 1, most)
        return found

    def leaks(self, label: str, sampling: Sampling) -> tuple[int, int]:
        """Of so many prompts in another order, how many are answered in other steps."""
        asked = self.prompts[:ORDERED]
        self.watch(f"{label} in another order, by prompt", 0, len(asked))
        return leaks(lambda prompt: self.engine.generate(label, prompt, sampling), asked), len(asked)

    def samples(self, label: str, side: int, times: int) -> Texts:
        """`times` `samples` texts of `tokens` tokens. Both sides, and each number of times, have random numbers of their own."""
        chosen = sorted(self.prompts, key=len)[:: ceil(len(self.prompts) / CUT)]
        found, drafter, count = [], self.drafters[label], times * self.settings.samples
        self.target.model.tap(drafter.taps)
        drafter.reset()
        for at, prompt in enumerate(chosen):
            seed = (2 * self.settings.seed + side) * 1_000_003 + (times - 1) * 1_009 + at
            ids = torch.tensor(prompt[: max(1, len(prompt) // 2)], device=self.target.model.device)
            sampling = replace(self.sampled, max_new_tokens=self.settings.tokens, seed=seed)
            found.append([out.output_ids for out in generate(self.target.model, drafter, [ids] * count, sampling)])
            self.watch(f"{label} compared: {count} samples of prompt", at + 1, len(chosen))
        return found


Generate = Callable[[list[int]], Generation]


def leaks(generate: Generate, prompts: Sequence[list[int]]) -> int:
    """How many of the prompts are answered in other steps when they come in reverse order."""
    forwards = [_steps(generate(prompt)) for prompt in prompts]
    backwards = [_steps(generate(prompt)) for prompt in reversed(prompts)]
    return sum(one != other for one, other in zip(forwards, reversed(backwards), strict=True))


def _steps(out: Generation) -> tuple[list[int], ...]:
    return out.output_ids, out.drafted, out.nodes, out.depth, out.accepted, out.committed
