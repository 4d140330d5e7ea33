"""What is asked of the methods, and their texts, greedy and sampled ones."""

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
from specbench.records.certificates import KEYS
from specbench.records.trial import BASELINE
from specbench.setup.settings import CertifySettings
from specbench.watch import Watch
from tasks.question import Question

NOISE_TEXTS = 24  # texts from which the target's rounding is measured
ORDERED = 12  # prompts asked in two orders


class TextSampler:
    """Of one target; what several methods are held against is made once."""

    def __init__(
        self, settings: CertifySettings, target: Target, drafters: dict[str, Drafter], questions: Sequence[Question], watch: Watch
    ) -> None:
        self.settings, self.target, self.drafters, self.questions, self.watch = settings, target, drafters, questions, watch
        self.engine = Native(profile=False)
        self.engine.open(target.model, drafters)
        self.greedy = Sampling(max_new_tokens=settings.sampling.max_new_tokens, stop_token_ids=target.model.eos_ids)
        self.sampled = replace(self.greedy, **{key: getattr(settings.sampling, key) for key in KEYS})

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Every turn's prompt, behind autoregressive decoding's greedy answers."""
        found = []
        for done, question in enumerate(self.questions):
            said: list[tuple[str, str | None]] = []
            for turn in question.turns:
                prompt = render_prompt(self.target.chat, [*said, (turn, None)], self.target.tokenizer)
                if len(prompt) >= self.target.model.context:
                    break
                found.append(prompt)
                out = self.engine.generate(BASELINE, prompt, self.greedy)
                said.append((turn, decode_answer(self.target.chat, self.target.tokenizer, out.output_ids)))
            self.watch("prompts: the target answers question", done + 1, len(self.questions))
        return found

    @cached_property
    def reference(self) -> dict[Sampling, list[GeneratedText]]:
        """Autoregressive decoding's texts, greedy and sampled."""
        return {sampling: self.generate_texts(BASELINE, sampling) for sampling in (self.greedy, self.sampled)}

    @cached_property
    def noise(self) -> Noise:
        texts = self.reference[self.greedy][:NOISE_TEXTS]
        self.watch("the target's rounding, by text", 0, len(texts))
        return measure_noise(self.target.model, texts, self.sampled)

    def generate_texts(self, label: str, sampling: Sampling) -> list[GeneratedText]:
        """Above temperature 0 with another seed for every prompt, the same for every method."""
        self.engine.reset(label)
        found, most = [], len(self.prompts)
        for at, prompt in enumerate(self.prompts):
            own = replace(sampling, seed=self.settings.seed * most + at) if sampling.temperature else sampling
            found.append(GeneratedText(prompt, self.engine.generate(label, prompt, own).output_ids, own))
            self.watch(f"{label} {'sampled' if sampling.temperature else 'greedy'}: text", at + 1, most)
        return found

    def count_leaks(self, label: str, sampling: Sampling) -> tuple[int, int]:
        """Of so many prompts in another order, how many are answered in other steps."""
        asked = self.prompts[:ORDERED]
        self.watch(f"{label} in another order, by prompt", 0, len(asked))
        return count_leaks(lambda prompt: self.engine.generate(label, prompt, sampling), asked), len(asked)


Generate = Callable[[list[int]], Generation]


def count_leaks(generate: Generate, prompts: Sequence[list[int]]) -> int:
    """How many of the prompts are answered in other steps when they come in reverse order."""
    forwards = [_collect_steps(generate(prompt)) for prompt in prompts]
    backwards = [_collect_steps(generate(prompt)) for prompt in reversed(prompts)]
    return sum(one != other for one, other in zip(forwards, reversed(backwards), strict=True))


def _collect_steps(out: Generation) -> tuple[list[int], ...]:
    return out.output_ids, out.drafted, out.nodes, out.depth, out.accepted, out.committed
