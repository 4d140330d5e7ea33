"""What is asked of the methods, and their texts, greedy and sampled ones."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from omegaconf import DictConfig

from specbench.certify.certificate import KEYS
from specbench.certify.following import Noise, Text, noise_of
from specbench.certify.order import leaks
from specbench.decoding.drafter import Drafter
from specbench.decoding.sampling import Sampling
from specbench.engine.native import Native
from specbench.harness import Target
from specbench.metrics import BASELINE
from specbench.progress import Watch
from specbench.prompts import answer_text, render
from tasks.question import Question

NOISE_TEXTS = 24  # texts from which the target's rounding is measured
ORDERED = 12  # prompts asked in two orders


class Asked:
    """Of one target; what several methods are held against is made once."""

    def __init__(
        self, config: DictConfig, target: Target, drafters: dict[str, Drafter], questions: Sequence[Question], watch: Watch
    ) -> None:
        self.config, self.target, self.drafters, self.questions, self.watch = config, target, drafters, questions, watch
        self.engine = Native(profile=False)
        self.engine.open(target.model, drafters)
        self.greedy = Sampling(max_new_tokens=config.sampling.max_new_tokens, stop_token_ids=target.model.eos_ids)
        self.sampled = replace(self.greedy, **{key: config.sampling[key] for key in KEYS})

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

    def texts(self, label: str, sampling: Sampling) -> list[Text]:
        """Above temperature 0 with another seed for every prompt, the same for every method."""
        self.engine.reset(label)
        found, most = [], len(self.prompts)
        for at, prompt in enumerate(self.prompts):
            own = replace(sampling, seed=self.config.seed * most + at) if sampling.temperature else sampling
            found.append(Text(prompt, self.engine.generate(label, prompt, own).output_ids, own))
            self.watch(f"{label} {'sampled' if sampling.temperature else 'greedy'}: text", at + 1, most)
        return found

    def leaks(self, label: str, sampling: Sampling) -> tuple[int, int]:
        """Of so many prompts in another order, how many are answered in other steps."""
        asked = self.prompts[:ORDERED]
        self.watch(f"{label} in another order, by prompt", 0, len(asked))
        return leaks(lambda prompt: self.engine.generate(label, prompt, sampling), asked), len(asked)
