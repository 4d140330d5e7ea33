"""`specbench certify`: from a config to a certificate. Loads as a run does, and decides by tests instead of timing."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from specbench.build import built, check, check_types
from specbench.certify import enumeration
from specbench.certify.certificate import Certificate, Verdict, most_wrong
from specbench.certify.following import Followed, Noise, Text, followed, noise_of
from specbench.certify.miniature import drafter_of, miniature
from specbench.certify.order import leaks
from specbench.certify.permutation import permutation_test
from specbench.certify.shown import markdown
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.engine.native import Native
from specbench.harness import Target
from specbench.metrics import BASELINE
from specbench.models import load_model
from specbench.prompts import answer_text, render
from specbench.provenance import provenance
from specbench.records import write_atomic
from specbench.run import (
    LOADING,
    RULES,
    SHARED_RULES,
    WHOLE,
    Rules,
    check_prompts,
    check_rules,
    checkpoints,
    plain_config,
    prints,
    questions_of,
    quiet,
    target_of,
)
from tasks.question import Question

Watch = Callable[[str, int, int], None]
NOISE_TEXTS = 24  # texts from which the target's rounding is measured
AGAIN = 4  # times as many texts are drawn afresh where the first ones look wrong; only what still does counts
ORDERED = 12  # prompts asked in two orders
CUT = 6  # prompts that are broken off in the middle, where what comes next is least certain, and continued again and again
OWN_RULES: Rules = {
    **{name: rule for name, rule in RULES.items() if name.startswith("sampling.")},
    "sampling.temperature": (lambda value: type(value) in (int, float) and 0 < value < 1e3, "a number above 0"),
    "level": (lambda value: type(value) is float and 0 < value < 1, "a probability, above 0 and below 1"),
    **dict.fromkeys(("draws", "samples", "tokens"), WHOLE),
}


def certify(config: DictConfig, watch: Watch) -> tuple[Certificate, Path]:
    """The certificate and its folder. Raises InputError."""
    quiet()
    check_rules(config, SHARED_RULES | OWN_RULES)
    check_types(load_model, {key: config.target[key] for key in LOADING}, "target")
    for label, settings in config.method.items():
        check(settings, f"method.{label}")
    suite = built(config.suite)
    questions = questions_of(config, suite, config.limit)
    drafters: dict[str, Drafter] = {str(label): built(settings) for label, settings in config.method.items()}
    target = target_of(config.target)
    check_prompts(questions, target)
    about = provenance(target.model.device) | prints(config, target, suite) | {"checkpoints": checkpoints(drafters)}
    made = _Tests(config, target, drafters, watch).certificate(questions, about)
    out = Path(config.out or f"results/certificates/{_name(config, target)}").expanduser()
    made.write(out)
    write_atomic(out / "certificate.md", markdown(made))
    return made, out


def _name(config: DictConfig, target: Target) -> str:
    return "-".join(filter(None, (config.target.name, config.target.shape, target.model.dtype_name)))


@dataclass
class _Tests:
    config: DictConfig
    target: Target
    drafters: dict[str, Drafter]
    watch: Watch

    def certificate(self, questions: Sequence[Question], about: dict[str, Any]) -> Certificate:
        self.engine = Native(profile=False)
        self.engine.open(self.target.model, self.drafters)
        given = {key: self.config.sampling[key] for key in ("temperature", "top_p", "top_k")}
        stops, most = self.target.model.eos_ids, self.config.sampling.max_new_tokens
        self.plain = Sampling(max_new_tokens=most, stop_token_ids=stops)
        self.warm = Sampling(**given, max_new_tokens=most, stop_token_ids=stops)
        prompts = self._prompts(questions)
        greedy = {label: self._texts(label, prompts, self.plain) for label in self.drafters}
        again = self._texts(BASELINE, prompts, self.plain)
        noise = noise_of(self.target.model, greedy[BASELINE][:NOISE_TEXTS], self.warm)
        floor = sum(one != other for one, other in zip(greedy[BASELINE], again, strict=True))
        return Certificate(
            about=about,
            config=plain_config(self.config),
            level=self.config.level,
            noise=asdict(noise),
            floor={"texts": len(again), "differing": floor},
            greedy=[self._greedy(label, texts, greedy[BASELINE], noise) for label, texts in greedy.items()],
            sampled=self._sampled(prompts, noise),
        )

    def _prompts(self, questions: Sequence[Question]) -> list[list[int]]:
        """Every turn's, behind autoregressive decoding's greedy answers."""
        found = []
        for done, question in enumerate(questions):
            said: list[tuple[str, str | None]] = []
            for turn in question.turns:
                prompt = render(self.target.chat, [*said, (turn, None)], self.target.tokenizer)
                if len(prompt) >= self.target.model.context:
                    break
                found.append(prompt)
                out = self.engine.generate(BASELINE, prompt, self.plain)
                said.append((turn, answer_text(self.target.chat, self.target.tokenizer, out.output_ids)))
            self.watch("the target answers", done + 1, len(questions))
        return found

    def _texts(self, label: str, prompts: Sequence[list[int]], sampling: Sampling) -> list[Text]:
        """Above temperature 0 with another seed for every prompt, the same for every method."""
        self.engine.reset(label)
        found = []
        for at, prompt in enumerate(prompts):
            own = replace(sampling, seed=self.config.seed * len(prompts) + at) if sampling.temperature else sampling
            found.append(Text(prompt, self.engine.generate(label, prompt, own).output_ids, own))
            self.watch(f"{label} answers", at + 1, len(prompts))
        return found

    def _greedy(self, label: str, texts: list[Text], reference: list[Text], noise: Noise) -> Verdict:
        why, figures = _of_texts(followed(self.target.model, texts, reference, noise.greedy))
        if self.drafters[label].outlives == "turn":
            asked = [text.prompt for text in texts[:ORDERED]]
            figures["order"] = {"texts": len(asked), "differing": self._leaks(label, asked)}
            if leaked := figures["order"]["differing"]:
                why.append(f"remembers: {leaked} of {len(asked)} texts took other steps in another order")
        return Verdict(label, "bug" if why else figures["texts"]["class_"], figures, "; ".join(why))

    def _leaks(self, label: str, prompts: Sequence[list[int]]) -> int:
        self.watch(f"{label} in another order", 0, len(prompts))
        return leaks(lambda prompt: self.engine.generate(label, prompt, self.plain), prompts)

    def _sampled(self, prompts: Sequence[list[int]], noise: Noise) -> list[Verdict]:
        reference = self._texts(BASELINE, prompts, self.warm)
        small, draft = miniature(self.target.model.config.model_type)
        given = replace(self.warm, seed=self.config.seed)
        claimed = [drafter for drafter in self.drafters.values() if drafter.typical is None]
        drawing = [drafter for drafter in claimed if drafter.draws]
        level = self.config.level / (len(claimed) * len(enumeration.WINDOWS) + len(drawing) + bool(drawing))  # Bonferroni
        cut = [prompt[: max(1, len(prompt) // 2)] for prompt in sorted(prompts, key=len)[:: max(1, len(prompts) // CUT)]]
        plain = self._samples(BASELINE, cut, 1) if drawing else []
        verdicts = []
        for label, drafter in self.drafters.items():
            why: list[str] = []
            figures: dict[str, Any] = {}
            if not drafter.draws:
                why, figures = _of_texts(
                    followed(self.target.model, self._texts(label, prompts, self.warm), reference, noise.sampled)
                )
            if drafter in claimed:
                settings: Any = OmegaConf.to_container(self.config.method[label], resolve=True)
                self.watch(f"{label} on the miniature target", 0, self.config.draws)
                tests = self._counted(small, drafter_of(settings, draft), given, self.config.draws, level)
                figures["enumerated"] = [asdict(test) for test in tests]
                if any(test.p_value < level for test in tests):
                    afresh = replace(given, seed=given.seed + 1)
                    tests = self._counted(small, drafter_of(settings, draft), afresh, AGAIN * self.config.draws, level)
                    figures["enumerated_again"] = [asdict(test) for test in tests]
                bad = [test for test in tests if test.p_value < level]
                why += [f"token {'+'.join(str(at + 2) for at in test.tokens)}: p = {test.p_value:.1e}" for test in bad]
            if drafter in drawing or (label == BASELINE and drawing):
                permuted = permutation_test(self._samples(label, cut, 2), plain)
                figures["permuted"] = asdict(permuted)
                why += [f"against autoregressive decoding: p = {permuted.p_value:.1e}"] * (permuted.p_value < level)
            fine = "sampled" if drafter.draws else figures["texts"]["class_"]
            verdicts.append(Verdict(label, "lossy" if drafter.typical else "bug" if why else fine, figures, "; ".join(why)))
        return verdicts

    @staticmethod
    def _counted(small: LanguageModel, drafter: Drafter, given: Sampling, draws: int, level: float) -> list[enumeration.GTest]:
        return enumeration.g_tests(enumeration.drawn(small, drafter, given, draws), enumeration.exact(small, given), level)

    def _samples(self, label: str, prompts: Sequence[list[int]], seed: int) -> list[list[list[int]]]:
        """By prompt, `samples` texts of `tokens` tokens, side by side."""
        found = []
        drafter, count = self.drafters[label], self.config.samples
        self.target.model.tap(drafter.taps)
        drafter.reset()
        for at, prompt in enumerate(prompts):
            sampling = replace(self.warm, max_new_tokens=self.config.tokens, seed=seed * 1_000_003 + at)
            ids = torch.tensor(prompt, device=self.target.model.device)
            found.append([out.output_ids for out in generate(self.target.model, drafter, [ids] * count, sampling)])
            self.watch(f"{label} answers again and again", at + 1, len(prompts))
        return found


def _of_texts(found: Followed) -> tuple[list[str], dict[str, Any]]:
    """What is wrong, and the figures."""
    figures = {"texts": asdict(found) | {"class_": found.class_, "most_wrong": most_wrong(found.wrong, found.texts)}}
    wrong = f"{found.wrong} of {found.texts} texts are not the target's own: off by up to {found.worst:.3g}"
    return [wrong] * (found.wrong > 0), figures
