"""`specbench certify`: from a config to a certificate. Loads as a run does, and decides by tests instead of timing."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from specbench.build import built, check, check_types
from specbench.certify import enumeration, permutation
from specbench.certify.certificate import FILE, KEYS, UNFINISHED, Certificate, Unfinished, Verdict, most_wrong
from specbench.certify.following import Noise, Text, followed, noise_of
from specbench.certify.miniature import drafter_of, miniature
from specbench.certify.order import leaks
from specbench.certify.shown import markdown
from specbench.continuation import stamped
from specbench.datastore.leakage import check_tokenizers
from specbench.decoding.drafter import Drafter
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.engine.native import Native
from specbench.errors import InputError, one_line
from specbench.harness import Target
from specbench.locks import alone
from specbench.metrics import BASELINE
from specbench.models import load_model
from specbench.progress import Watch
from specbench.prompts import answer_text, render
from specbench.provenance import provenance
from specbench.records import RunDirectory, write_atomic
from specbench.run import (
    LOADING,
    RULES,
    SHARED_RULES,
    WHOLE,
    Rules,
    check_prompts,
    check_rules,
    plain_config,
    prints,
    questions_of,
    quiet,
    target_of,
    tokenizer_of,
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
    "sampling.temperature": (lambda value: type(value) in (int, float) and 0.01 <= value <= 10, "a number from 0.01 to 10"),
    "level": (
        lambda value: type(value) is float and LEAST_LEVEL <= value < 1,
        f"a probability, at least {LEAST_LEVEL} and below 1",
    ),
    "draws": (lambda value: type(value) is int and value >= 256, "a whole number, at least 256"),
    "samples": (lambda value: type(value) is int and value >= 8, "a whole number, at least 8"),
    "tokens": WHOLE,
}


def certify(config: DictConfig, watch: Watch) -> tuple[Certificate, Path]:
    """The certificate and its folder. Raises InputError; KeyboardInterrupt with the folder once that is written to."""
    quiet()
    check_rules(config, SHARED_RULES | OWN_RULES)
    check_types(load_model, {key: config.target[key] for key in LOADING}, "target")
    for label, settings in config.method.items():
        check(settings, f"method.{label}")
    check(config.suite, "suite")
    out = _unused(config)
    if BASELINE not in config.method:
        raise InputError(f"method: {BASELINE} is missing, which all are held against")
    suite = built(config.suite)
    questions = questions_of(config, suite, config.limit)
    drafters: dict[str, Drafter] = {str(label): built(settings) for label, settings in config.method.items()}
    check_tokenizers(drafters, tokenizer_of(config.target)[0])
    out.mkdir(parents=True, exist_ok=True)  # one that cannot be written to is told of now
    target = target_of(config.target)
    check_prompts(questions, target)
    about = provenance(target.model.device) | prints(config, target, suite, drafters)
    tests = _Tests(config, target, drafters, questions, watch)
    tests.check_enough()
    with alone(RunDirectory(out)):
        unfinished = Unfinished(out, plain_config(config), about)
        try:
            made = tests.certificate(about, unfinished)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(out) from None
        made.write(out)
        write_atomic(out / "certificate.md", markdown(made))
        unfinished.done()
    return made, out


def _unused(config: DictConfig) -> Path:
    """Where no certificate lies yet."""
    if config.out is None:
        return stamped(Path("results") / "certificates", "-".join(filter(None, (config.target.name, config.target.shape))))
    out = Path(config.out).expanduser()
    if (out / FILE).exists():
        raise InputError(f"out={out}: holds a certificate already; choose another folder, or remove it")
    if out.is_dir() and any(out.iterdir()) and not (out / UNFINISHED).exists():
        raise InputError(f"out={out}: expected an interrupted certificate's folder, an empty one or a new one")
    return out


class _Tests:
    """All that is tried on one target; what several methods are held against is made once."""

    unfinished: Unfinished

    def __init__(
        self, config: DictConfig, target: Target, drafters: dict[str, Drafter], questions: Sequence[Question], watch: Watch
    ) -> None:
        self.config, self.target, self.drafters, self.questions, self.watch = config, target, drafters, questions, watch
        self.engine = Native(profile=False)
        self.engine.open(target.model, drafters)
        self.plain = Sampling(max_new_tokens=config.sampling.max_new_tokens, stop_token_ids=target.model.eos_ids)
        self.warm = replace(self.plain, **{key: config.sampling[key] for key in KEYS})
        self.claimed = [label for label, drafter in drafters.items() if drafter.typical is None]
        drawing = [label for label in self.claimed if drafters[label].draws]
        self.compared = [BASELINE, *drawing] if drawing else []
        # Bonferroni: half of the level for what is counted out, half for what is compared. A method whose drafts are not drawn
        # writes autoregressive decoding's own texts, so that its tests are the same ones.
        share = config.level / (2 if self.compared else 1)
        self.counted_level = share / ((1 + len(drawing)) * len(enumeration.WINDOWS))
        self.compared_level = share / max(1, len(self.compared))

    def check_enough(self) -> None:
        """Raises InputError where tests could show nothing, before they begin."""
        if not self._can_count():
            raise InputError(f"draws={self.config.draws}: too few at this temperature; expected more, or a higher temperature")
        turns = sum(len(question.turns) for question in self.questions)
        prompts = len(range(turns)[:: ceil(turns / CUT)])
        if self.compared and not permutation.can_show([self.config.samples] * prompts, self.compared_level):
            few = f"too few for {prompts} prompt{'s' * (prompts > 1)}"
            raise InputError(f"samples={self.config.samples}: {few}; expected more, or a higher limit")

    def _can_count(self) -> bool:
        try:
            small, _ = miniature(self.target.model.config.model_type)
            return enumeration.can_show(small, self.warm, self.config.draws)
        except Exception:  # what has no miniature is told of in the certificate
            return True

    def certificate(self, about: dict[str, Any], unfinished: Unfinished) -> Certificate:
        self.unfinished = unfinished
        greedy = [self._greedy(label) for label in self.drafters]
        floor = greedy[list(self.drafters).index(BASELINE)].tests.get("texts", {"texts": 0, "equal": 0})
        return Certificate(
            about=about,
            config=plain_config(self.config),
            level=self.config.level,
            noise=asdict(self.noise),
            floor={"texts": floor["texts"], "differing": floor["texts"] - floor["equal"]},
            greedy=greedy,
            sampled=[self._sampled(label) for label in self.drafters],
        )

    @cached_property
    def reference(self) -> dict[Sampling, list[Text]]:
        """Autoregressive decoding's texts, greedy and sampled."""
        return {sampling: self._texts(BASELINE, sampling) for sampling in (self.plain, self.warm)}

    @cached_property
    def plain_samples(self) -> permutation.Texts:
        return self._samples(BASELINE, 0, 1)

    @cached_property
    def noise(self) -> Noise:
        self.watch("the target's rounding", 0, NOISE_TEXTS)
        return noise_of(self.target.model, self.reference[self.plain][:NOISE_TEXTS], self.warm)

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
                out = self.engine.generate(BASELINE, prompt, self.plain)
                said.append((turn, answer_text(self.target.chat, self.target.tokenizer, out.output_ids)))
            self.watch("the target answers", done + 1, len(self.questions))
        return found

    def _texts(self, label: str, sampling: Sampling) -> list[Text]:
        """Above temperature 0 with another seed for every prompt, the same for every method."""
        self.engine.reset(label)
        found, most = [], len(self.prompts)
        for at, prompt in enumerate(self.prompts):
            own = replace(sampling, seed=self.config.seed * most + at) if sampling.temperature else sampling
            found.append(Text(prompt, self.engine.generate(label, prompt, own).output_ids, own))
            self.watch(f"{label} answers {'sampled' if sampling.temperature else 'greedily'}", at + 1, most)
        return found

    def _greedy(self, label: str) -> Verdict:
        parts: list[Part] = [partial(self._followed, label, self.plain)]
        return self._verdict(label, [*parts, *self._ordered(label, self.plain)], greedy=True)

    def _sampled(self, label: str) -> Verdict:
        parts: list[Part] = []
        if not self.drafters[label].draws:
            parts.append(partial(self._followed, label, self.warm))
        if label in self.claimed:
            parts.append(partial(self._counted, label))
        if label in self.compared:
            parts.append(partial(self._compared, label))
        verdict = self._verdict(label, [*parts, *self._ordered(label, self.warm)], greedy=False)
        return verdict if label in self.claimed or verdict.why else replace(verdict, class_="lossy")

    def _verdict(self, label: str, parts: Sequence[Part], greedy: bool) -> Verdict:
        known = self.unfinished.verdict(greedy, label)
        verdict = known or self._judged(label, parts)
        if not known:
            self.unfinished.add(greedy, verdict)
        return verdict

    def _judged(self, label: str, parts: Sequence[Part]) -> Verdict:
        why: list[str] = []
        figures: dict[str, Any] = {}
        try:
            for part in parts:
                wrong, found = part()
                why, figures = why + wrong, figures | found
        except (Exception, SystemExit) as error:  # what stops may be right or wrong: nobody knows
            return Verdict(label, "bug" if why else "untested", figures, "; ".join([*why, f"stopped: {one_line(error)}"]))
        fine = figures["texts"]["class_"] if "texts" in figures else "sampled"
        return Verdict(label, "bug" if why else fine, figures, "; ".join(why))

    def _followed(self, label: str, sampling: Sampling) -> Findings:
        noise = self.noise.sampled if sampling.temperature else self.noise.greedy
        found = followed(self.target.model, self._texts(label, sampling), self.reference[sampling], noise)
        texts = asdict(found) | {"class_": found.class_, "most_wrong": most_wrong(found.wrong, found.texts)}
        wrong = []
        if found.wrong > found.ended and (label in self.claimed or not sampling.temperature):
            unit = "of probability" if sampling.temperature else "logits"
            wrong = [f"{found.wrong} of {found.texts} texts are not the target's own: off by up to {found.worst:.3g} {unit}"]
        if found.ended:
            wrong.append(f"{found.ended} of {found.texts} texts end elsewhere than they should")
        return wrong, {"texts": texts}

    def _ordered(self, label: str, sampling: Sampling) -> list[Part]:
        forgets = self.drafters[label].outlives == "turn"
        return [partial(self._in_another_order, label, sampling)] if forgets else []

    def _in_another_order(self, label: str, sampling: Sampling) -> Findings:
        asked = self.prompts[:ORDERED]
        self.watch(f"{label} in another order", 0, len(asked))
        leaked = leaks(lambda prompt: self.engine.generate(label, prompt, sampling), asked)
        wrong = f"remembers: {leaked} of {len(asked)} texts took other steps in another order"
        return [wrong] * (leaked > 0), {"order": {"texts": len(asked), "differing": leaked}}

    def _counted(self, label: str) -> Findings:
        level = self.counted_level
        settings: Any = OmegaConf.to_container(self.config.method[label], resolve=True)
        self.watch(f"{label} on the miniature target", 0, self.config.draws)
        given = replace(self.warm, seed=self.config.seed)
        try:
            small, draft = miniature(self.target.model.config.model_type)
            drafter = drafter_of(settings, draft)
            drafter.bind(small)
        except Exception as error:  # an architecture or a method that cannot be made so small
            if self.drafters[label].draws:
                raise
            return [], {"not enumerated": one_line(error)}  # its texts are followed on the target itself
        found = enumeration.examined(small, drafter, given, self.config.draws, level)
        bad = [test for test in found[-1] if test.p_value < level]
        wrong = [f"token {'+'.join(str(at + 2) for at in test.tokens)}: p = {test.p_value:.1e}" for test in bad]
        rounds = [[asdict(test) for test in tests] for tests in found]
        return wrong, dict(zip(("enumerated", "enumerated_again"), rounds, strict=False))

    def _compared(self, label: str) -> Findings:
        def drawn(times: int) -> tuple[permutation.Texts, permutation.Texts]:
            theirs = self.plain_samples if times == 1 else self._samples(BASELINE, 0, times)
            return self._samples(label, 1, times), theirs

        found = permutation.examined(drawn, self.compared_level)
        wrong = f"against autoregressive decoding: p = {found[-1].p_value:.1e}"
        figures = dict(zip(("permuted", "permuted_again"), map(asdict, found), strict=False))
        return [wrong] * (found[-1].p_value < self.compared_level), figures

    def _samples(self, label: str, side: int, times: int) -> permutation.Texts:
        """`times` `samples` texts of `tokens` tokens. Both sides, and each number of times, have random numbers of their own."""
        chosen = sorted(self.prompts, key=len)[:: ceil(len(self.prompts) / CUT)]
        found, drafter, count = [], self.drafters[label], times * self.config.samples
        self.target.model.tap(drafter.taps)
        drafter.reset()
        for at, prompt in enumerate(chosen):
            seed = (2 * self.config.seed + side) * 1_000_003 + (times - 1) * 1_009 + at
            ids = torch.tensor(prompt[: max(1, len(prompt) // 2)], device=self.target.model.device)
            sampling = replace(self.warm, max_new_tokens=self.config.tokens, seed=seed)
            found.append([out.output_ids for out in generate(self.target.model, drafter, [ids] * count, sampling)])
            self.watch(f"{label} answers again and again", at + 1, len(chosen))
        return found
