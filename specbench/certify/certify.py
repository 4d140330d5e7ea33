"""`specbench certify`: from a config to a certificate. Loads as a run does, and decides by tests instead of timing."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from specbench.build import built, check, check_types
from specbench.certify import enumeration
from specbench.certify.certificate import FILE, Certificate, Verdict, most_wrong
from specbench.certify.following import Text, followed, noise_of
from specbench.certify.miniature import drafter_of, miniature
from specbench.certify.order import leaks
from specbench.certify.permutation import permutation_test
from specbench.certify.shown import markdown
from specbench.continuation import stamped
from specbench.decoding.drafter import Drafter
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.engine.native import Native
from specbench.errors import InputError, one_line
from specbench.harness import Target
from specbench.metrics import BASELINE
from specbench.models import load_model
from specbench.progress import Watch
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

Findings = tuple[list[str], dict[str, Any]]  # what is wrong, and the figures behind it
Part = Callable[[], Findings]
NOISE_TEXTS = 24  # texts from which the target's rounding is measured
ORDERED = 12  # prompts asked in two orders
CUT = 6  # prompts that are broken off in the middle, where what comes next is least certain, and continued again and again
LEAST_LEVEL = 0.0001  # a permutation test takes the longer the lower it is
OWN_RULES: Rules = {
    **{name: rule for name, rule in RULES.items() if name.startswith("sampling.")},
    "sampling.temperature": (lambda value: type(value) in (int, float) and 0 < value < 1e3, "a number above 0"),
    "level": (
        lambda value: type(value) is float and LEAST_LEVEL <= value < 1,
        f"a probability, at least {LEAST_LEVEL} and below 1",
    ),
    **dict.fromkeys(("draws", "samples", "tokens"), WHOLE),
}


def certify(config: DictConfig, watch: Watch) -> tuple[Certificate, Path]:
    """The certificate and its folder. Raises InputError."""
    quiet()
    check_rules(config, SHARED_RULES | OWN_RULES)
    check_types(load_model, {key: config.target[key] for key in LOADING}, "target")
    for label, settings in config.method.items():
        check(settings, f"method.{label}")
    out = _unused(config)
    suite = built(config.suite)
    questions = questions_of(config, suite, config.limit)
    drafters: dict[str, Drafter] = {str(label): built(settings) for label, settings in config.method.items()}
    target = target_of(config.target)
    check_prompts(questions, target)
    out.mkdir(parents=True, exist_ok=True)  # one that cannot be written to is told of now
    about = provenance(target.model.device) | prints(config, target, suite) | {"checkpoints": checkpoints(drafters)}
    made = _Tests(config, target, drafters, watch).certificate(questions, about)
    made.write(out)
    write_atomic(out / "certificate.md", markdown(made))
    return made, out


def _unused(config: DictConfig) -> Path:
    """Where no certificate lies yet."""
    if config.out is None:
        return stamped(Path("results") / "certificates", "-".join(filter(None, (config.target.name, config.target.shape))))
    out = Path(config.out).expanduser()
    if (out / FILE).exists():
        raise InputError(f"out={out}: holds a certificate already; choose another folder, or remove it")
    return out


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
        self.plain = Sampling(max_new_tokens=self.config.sampling.max_new_tokens, stop_token_ids=self.target.model.eos_ids)
        self.warm = replace(self.plain, **given)
        self.prompts = self._prompts(questions)
        reference = self._texts(BASELINE, self.plain)
        noise = noise_of(self.target.model, reference[:NOISE_TEXTS], self.warm)
        greedy = [self._greedy(label, reference, noise.greedy) for label in self.drafters]
        floor = next(one for one in greedy if one.method == BASELINE).tests["texts"]
        return Certificate(
            about=about,
            config=plain_config(self.config),
            level=self.config.level,
            noise=asdict(noise),
            floor={"texts": floor["texts"], "differing": floor["texts"] - floor["equal"]},
            greedy=greedy,
            sampled=self._sampled(noise.sampled),
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

    def _texts(self, label: str, sampling: Sampling) -> list[Text]:
        """Above temperature 0 with another seed for every prompt, the same for every method."""
        self.engine.reset(label)
        found, most = [], len(self.prompts)
        for at, prompt in enumerate(self.prompts):
            own = replace(sampling, seed=self.config.seed * most + at) if sampling.temperature else sampling
            found.append(Text(prompt, self.engine.generate(label, prompt, own).output_ids, own))
            self.watch(f"{label} answers", at + 1, most)
        return found

    def _greedy(self, label: str, reference: list[Text], noise: float) -> Verdict:
        parts: list[Part] = [lambda: self._followed(label, self.plain, reference, noise)]
        if self.drafters[label].outlives == "turn":
            parts.append(lambda: self._in_another_order(label))
        return self._verdict(label, parts)

    def _sampled(self, noise: float) -> list[Verdict]:
        """Bonferroni: half of the level for what is counted out, half for what is compared."""
        claimed = [label for label, drafter in self.drafters.items() if drafter.typical is None]
        drawing = [label for label in claimed if self.drafters[label].draws]
        compared = [BASELINE, *drawing] if drawing else []
        share = self.config.level / (2 if compared else 1)
        reference = self._texts(BASELINE, self.warm)
        self.plain_samples = self._samples(BASELINE, 1) if compared else []
        verdicts = []
        for label, drafter in self.drafters.items():
            parts: list[Part] = []
            if not drafter.draws:
                parts.append(partial(self._followed, label, self.warm, reference, noise))
            if label in claimed:
                parts.append(partial(self._counted, label, share / (len(claimed) * len(enumeration.WINDOWS))))
            if label in compared:
                parts.append(partial(self._compared, label, share / len(compared)))
            verdict = self._verdict(label, parts)
            verdicts.append(verdict if label in claimed else replace(verdict, class_="lossy"))
        return verdicts

    def _verdict(self, label: str, parts: Sequence[Part]) -> Verdict:
        why: list[str] = []
        figures: dict[str, Any] = {}
        try:
            for part in parts:
                wrong, found = part()
                why, figures = why + wrong, figures | found
        except Exception as error:  # what stops has not written the target's text
            why.append(f"stopped: {one_line(error)}")
        fine = figures["texts"]["class_"] if "texts" in figures else "sampled"
        return Verdict(label, "bug" if why else fine, figures, "; ".join(why))

    def _followed(self, label: str, sampling: Sampling, reference: list[Text], noise: float) -> Findings:
        found = followed(self.target.model, self._texts(label, sampling), reference, noise)
        wrong = f"{found.wrong} of {found.texts} texts are not the target's own: off by up to {found.worst:.3g}"
        texts = asdict(found) | {"class_": found.class_, "most_wrong": most_wrong(found.wrong, found.texts)}
        return [wrong] * (found.wrong > 0), {"texts": texts}

    def _in_another_order(self, label: str) -> Findings:
        asked = self.prompts[:ORDERED]
        self.watch(f"{label} in another order", 0, len(asked))
        leaked = leaks(lambda prompt: self.engine.generate(label, prompt, self.plain), asked)
        wrong = f"remembers: {leaked} of {len(asked)} texts took other steps in another order"
        return [wrong] * (leaked > 0), {"order": {"texts": len(asked), "differing": leaked}}

    def _counted(self, label: str, level: float) -> Findings:
        settings: Any = OmegaConf.to_container(self.config.method[label], resolve=True)
        self.watch(f"{label} on the miniature target", 0, self.config.draws)
        small, draft = miniature(self.target.model.config.model_type)
        given = replace(self.warm, seed=self.config.seed)
        found = enumeration.examined(small, drafter_of(settings, draft), given, self.config.draws, level)
        bad = [test for test in found[-1] if test.p_value < level]
        wrong = [f"token {'+'.join(str(at + 2) for at in test.tokens)}: p = {test.p_value:.1e}" for test in bad]
        rounds = [[asdict(test) for test in tests] for tests in found]
        return wrong, dict(zip(("enumerated", "enumerated_again"), rounds, strict=False))

    def _compared(self, label: str, level: float) -> Findings:
        found = permutation_test(self._samples(label, 2), self.plain_samples, level)
        wrong = f"against autoregressive decoding: p = {found.p_value:.1e}"
        return [wrong] * (found.p_value < level), {"permuted": asdict(found)}

    def _samples(self, label: str, seed: int) -> list[list[list[int]]]:
        """By prompt, `samples` texts of `tokens` tokens, side by side."""
        found, chosen = [], sorted(self.prompts, key=len)[:: max(1, len(self.prompts) // CUT)]
        prompts = [prompt[: max(1, len(prompt) // 2)] for prompt in chosen]
        drafter, count = self.drafters[label], self.config.samples
        self.target.model.tap(drafter.taps)
        drafter.reset()
        for at, prompt in enumerate(prompts):
            sampling = replace(self.warm, max_new_tokens=self.config.tokens, seed=seed * 1_000_003 + at)
            ids = torch.tensor(prompt, device=self.target.model.device)
            found.append([out.output_ids for out in generate(self.target.model, drafter, [ids] * count, sampling)])
            self.watch(f"{label} answers again and again", at + 1, len(prompts))
        return found
