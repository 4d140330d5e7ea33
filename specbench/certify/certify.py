"""`specbench certify`: from a config to a certificate. Loads as a run does, and decides by tests instead of timing."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from specbench.build import built, check, check_types
from specbench.certify import enumeration, permutation
from specbench.certify.asked import Asked
from specbench.certify.certificate import FILE, UNFINISHED, Certificate, Unfinished, Verdict, most_wrong
from specbench.certify.following import followed
from specbench.certify.miniature import drafter_of, miniature
from specbench.certify.shown import markdown
from specbench.continuation import stamped
from specbench.decoding.drafter import Drafter
from specbench.decoding.sampling import Sampling
from specbench.errors import InputError, one_line
from specbench.locks import alone
from specbench.metrics import BASELINE
from specbench.models import load_model
from specbench.progress import Watch
from specbench.provenance import provenance
from specbench.records import RunDirectory, write_atomic
from specbench.run import (
    LOADING,
    RULES,
    SHARED_RULES,
    WHOLE,
    Rules,
    check_drafters,
    check_prompts,
    check_rules,
    plain_config,
    prints,
    questions_of,
    quiet,
    target_of,
    tokenizer_of,
)

Findings = tuple[list[str], dict[str, Any]]  # what is wrong, and the figures behind it
Part = Callable[[], Findings]
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
    check_drafters(drafters, config.target, tokenizer_of(config.target)[0])
    out.mkdir(parents=True, exist_ok=True)  # one that cannot be written to is told of now
    target = target_of(config.target)
    check_prompts(questions, target)
    about = provenance(target.model.device) | prints(config, target, suite, drafters)
    tests = _Tests(Asked(config, target, drafters, questions, watch))
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
    if not RunDirectory(out).is_new() and not (out / UNFINISHED).exists():
        raise InputError(f"out={out}: expected an interrupted certificate's folder, an empty one or a new one")
    return out


class _Tests:
    """All that is tried of what was asked, and what follows."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.config, self.drafters = asked, asked.config, asked.drafters
        self.claimed = [label for label, drafter in self.drafters.items() if drafter.typical is None]
        drawing = [label for label in self.claimed if self.drafters[label].draws]
        self.compared = [BASELINE, *drawing] if drawing else []
        # Bonferroni: half of the level for what is counted out, half for what is compared. A method whose drafts are not drawn
        # writes autoregressive decoding's own texts, so that its tests are the same ones.
        share = self.config.level / (2 if self.compared else 1)
        self.counted_level = share / ((1 + len(drawing)) * len(enumeration.WINDOWS))
        self.compared_level = share / max(1, len(self.compared))

    def check_enough(self) -> None:
        """Raises InputError where tests could show nothing, before they begin."""
        if not self._can_count():
            raise InputError(f"draws={self.config.draws}: too few at this temperature; expected more, or a higher temperature")
        samples = self.asked.samples_by_prompt()
        if self.compared and not permutation.can_show(samples, self.compared_level):
            few = f"too few for {len(samples)} prompt{'s' * (len(samples) > 1)}"
            raise InputError(f"samples={self.config.samples}: {few}; expected more, or a higher limit")

    def _can_count(self) -> bool:
        try:
            small, _ = miniature(self.asked.target.model.config.model_type)
            return enumeration.can_show(small, self.asked.sampled, self.config.draws)
        except Exception:  # what has no miniature is told of in the certificate
            return True

    def certificate(self, about: dict[str, Any], unfinished: Unfinished) -> Certificate:
        greedy = [self._verdict(label, True, unfinished) for label in self.drafters]
        floor = greedy[list(self.drafters).index(BASELINE)].tests.get("texts", {"texts": 0, "equal": 0})
        return Certificate(
            about=about,
            config=plain_config(self.config),
            level=self.config.level,
            noise=asdict(self.asked.noise),
            floor={"texts": floor["texts"], "differing": floor["texts"] - floor["equal"]},
            greedy=greedy,
            sampled=[self._verdict(label, False, unfinished) for label in self.drafters],
        )

    def _verdict(self, label: str, greedy: bool, unfinished: Unfinished) -> Verdict:
        known = unfinished.verdict(greedy, label)
        if known is None:
            known = self._greedy(label) if greedy else self._sampled(label)
            unfinished.add(greedy, known)
        return known

    def _greedy(self, label: str) -> Verdict:
        sampling = self.asked.greedy
        return self._judged(label, [partial(self._followed, label, sampling), *self._ordered(label, sampling)])

    def _sampled(self, label: str) -> Verdict:
        parts: list[Part] = []
        if not self.drafters[label].draws:
            parts.append(partial(self._followed, label, self.asked.sampled))
        if label in self.claimed:
            parts.append(partial(self._counted, label))
        if label in self.compared:
            parts.append(partial(self._compared, label))
        verdict = self._judged(label, [*parts, *self._ordered(label, self.asked.sampled)])
        return verdict if label in self.claimed or verdict.why else replace(verdict, class_="lossy")

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
        asked = self.asked
        noise = asked.noise.sampled if sampling.temperature else asked.noise.greedy
        found = followed(asked.target.model, asked.texts(label, sampling), asked.reference[sampling], noise)
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
        leaked, texts = self.asked.leaks(label, sampling)
        wrong = f"remembers: {leaked} of {texts} texts took other steps in another order"
        return [wrong] * (leaked > 0), {"order": {"texts": texts, "differing": leaked}}

    def _counted(self, label: str) -> Findings:
        level = self.counted_level
        settings: Any = OmegaConf.to_container(self.config.method[label], resolve=True)
        self.asked.watch(f"{label} on the miniature target, by text", 0, self.config.draws)
        given = replace(self.asked.sampled, seed=self.config.seed)
        try:
            small, draft = miniature(self.asked.target.model.config.model_type)
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
            theirs = self.asked.baseline_samples if times == 1 else self.asked.samples(BASELINE, 0, times)
            return self.asked.samples(label, 1, times), theirs

        found = permutation.examined(drawn, self.compared_level)
        wrong = f"against autoregressive decoding: p = {found[-1].p_value:.1e}"
        figures = dict(zip(("permuted", "permuted_again"), map(asdict, found), strict=False))
        return [wrong] * (found[-1].p_value < self.compared_level), figures
