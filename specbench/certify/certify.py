"""`specbench certify`: from a config to a certificate. Loads as a run does, and decides by tests instead of timing."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from specbench.certify import enumeration
from specbench.certify.miniature import drafter_of, miniature
from specbench.certify.tables import markdown
from specbench.certify.texts import Asked
from specbench.certify.token_check import followed, most_wrong
from specbench.decoding.sampling import Sampling
from specbench.errors import InputError, one_line
from specbench.machine.locks import alone
from specbench.records.certificates import FILE, UNFINISHED, Certificate, Unfinished, Verdict
from specbench.records.files import write_atomic
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE
from specbench.running.checks import check_drafters, check_prompts
from specbench.running.resume import stamped
from specbench.setup.instantiate import built, check
from specbench.setup.objects import check_methods, drafters_of, prints, questions_of, quiet, target_of, tokenizer_of
from specbench.setup.provenance import provenance
from specbench.setup.settings import CertifySettings
from specbench.watch import Watch

Findings = tuple[list[str], dict[str, Any]]  # what is wrong, and the figures behind it
Part = Callable[[], Findings]


def certify(settings: CertifySettings, watch: Watch) -> tuple[Certificate, Path]:
    """The certificate and its folder. Raises InputError; KeyboardInterrupt with the folder once that is written to."""
    quiet()
    check_methods(settings.method)
    check(settings.suite, "suite")
    out = _unused(settings)
    if BASELINE not in settings.method:
        raise InputError(f"method: {BASELINE} is missing, which all are held against")
    suite = built(settings.suite)
    questions = questions_of(settings, suite, settings.limit)
    drafters = drafters_of(settings.method)
    check_drafters(drafters, settings.target, tokenizer_of(settings.target)[0])
    out.mkdir(parents=True, exist_ok=True)  # one that cannot be written to is told of now
    target = target_of(settings.target)
    check_prompts(questions, target)
    about = provenance(target.model.device) | prints(settings, target, suite, drafters)
    tests = _Tests(Asked(settings, target, drafters, questions, watch))
    tests.check_enough()
    with alone(out):
        unfinished = Unfinished(out, settings.recorded, about)
        try:
            made = tests.certificate(about, unfinished)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(out) from None
        made.write(out)
        write_atomic(out / "certificate.md", markdown(made))
        unfinished.done()
    return made, out


def _unused(settings: CertifySettings) -> Path:
    """Where no certificate lies yet."""
    if settings.out is None:
        return stamped(Path("results") / "certificates", "-".join(filter(None, (settings.target.name, settings.target.shape))))
    out = Path(settings.out).expanduser()
    if (out / FILE).exists():
        raise InputError(f"out={out}: holds a certificate already; choose another folder, or remove it")
    if not RunDirectory(out).is_new() and not (out / UNFINISHED).exists():
        raise InputError(f"out={out}: expected an interrupted certificate's folder, an empty one or a new one")
    return out


class _Tests:
    """All that is tried of what was asked, and what follows."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.settings, self.drafters = asked, asked.settings, asked.drafters
        self.claimed = [label for label, drafter in self.drafters.items() if drafter.lossless]
        drawing = [label for label in self.claimed if self.drafters[label].draws]
        # Bonferroni. A method whose drafts are not drawn writes autoregressive decoding's own texts: its tests are the same ones.
        self.counted_level = self.settings.level / ((1 + len(drawing)) * len(enumeration.WINDOWS))

    def check_enough(self) -> None:
        """Raises InputError where tests could show nothing, before they begin."""
        if not self._can_count():
            raise InputError(f"draws={self.settings.draws}: too few at this temperature; expected more, or a higher temperature")

    def _can_count(self) -> bool:
        try:
            small, _ = miniature(self.asked.target.model.config.model_type)
            return enumeration.can_show(small, self.asked.sampled, self.settings.draws)
        except Exception:  # what has no miniature is told of in the certificate
            return True

    def certificate(self, about: dict[str, Any], unfinished: Unfinished) -> Certificate:
        greedy = [self._verdict(label, True, unfinished) for label in self.drafters]
        floor = greedy[list(self.drafters).index(BASELINE)].tests.get("texts", {"texts": 0, "equal": 0})
        return Certificate(
            about=about,
            config=self.settings.recorded,
            level=self.settings.level,
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
        forgets = not self.drafters[label].warm
        return [partial(self._in_another_order, label, sampling)] if forgets else []

    def _in_another_order(self, label: str, sampling: Sampling) -> Findings:
        leaked, texts = self.asked.leaks(label, sampling)
        wrong = f"remembers: {leaked} of {texts} texts took other steps in another order"
        return [wrong] * (leaked > 0), {"order": {"texts": texts, "differing": leaked}}

    def _counted(self, label: str) -> Findings:
        level = self.counted_level
        node = self.settings.method[label]
        self.asked.watch(f"{label} on the miniature target, by text", 0, self.settings.draws)
        given = replace(self.asked.sampled, seed=self.settings.seed)
        try:
            small, draft = miniature(self.asked.target.model.config.model_type)
            drafter = drafter_of(node, draft)
            drafter.bind(small)
        except Exception as error:  # an architecture or a method that cannot be made so small
            if self.drafters[label].draws:
                raise
            return [], {"not enumerated": one_line(error)}  # its texts are followed on the target itself
        found = enumeration.examined(small, drafter, given, self.settings.draws, level)
        bad = [test for test in found[-1] if test.p_value < level]
        wrong = [f"token {'+'.join(str(at + 2) for at in test.tokens)}: p = {test.p_value:.1e}" for test in bad]
        rounds = [[asdict(test) for test in tests] for tests in found]
        return wrong, dict(zip(("enumerated", "enumerated_again"), rounds, strict=False))
