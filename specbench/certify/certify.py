"""`specbench certify`: from a config to a certificate. Loads as a run does, and decides by tests instead of timing."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from specbench.certify import enumeration
from specbench.certify.miniature import build_drafter, build_miniature
from specbench.certify.tables import format_certificate
from specbench.certify.texts import TextSampler
from specbench.certify.token_check import bound_error_rate, check_tokens
from specbench.decoding.sampling import Sampling
from specbench.errors import InputError, format_error
from specbench.machine.locks import lock_run
from specbench.records.certificates import FILE, JOURNAL, Certificate, Verdict, VerdictJournal
from specbench.records.files import write_atomic
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE
from specbench.running.checks import check_drafters, check_prompts
from specbench.running.resume import stamp_path
from specbench.setup.instantiate import check_node, instantiate
from specbench.setup.objects import (
    check_methods,
    collect_fingerprints,
    instantiate_methods,
    load_target,
    load_target_tokenizer,
    select_questions,
    silence_libraries,
)
from specbench.setup.provenance import collect_provenance
from specbench.setup.settings import CertifySettings
from specbench.watch import Watch

Findings = tuple[list[str], dict[str, Any]]  # what is wrong, and the figures behind it
Part = Callable[[], Findings]


def certify(settings: CertifySettings, watch: Watch) -> tuple[Certificate, Path]:
    """The certificate and its folder. Raises InputError; KeyboardInterrupt with the folder once that is written to."""
    silence_libraries()
    check_methods(settings.method)
    check_node(settings.suite, "suite")
    out = _choose_folder(settings)
    if BASELINE not in settings.method:
        raise InputError(f"method: {BASELINE} is missing, which all are held against")
    suite = instantiate(settings.suite)
    questions = select_questions(settings, suite, settings.limit)
    drafters = instantiate_methods(settings.method)
    check_drafters(drafters, settings.target, load_target_tokenizer(settings.target)[0])
    out.mkdir(parents=True, exist_ok=True)  # one that cannot be written to is told of now
    target = load_target(settings.target)
    check_prompts(questions, target)
    about = collect_provenance(target.model.device) | collect_fingerprints(settings, target, suite, drafters)
    tests = _Tests(TextSampler(settings, target, drafters, questions, watch))
    tests.check_enough()
    with lock_run(out):
        unfinished = VerdictJournal(out, settings.recorded, about)
        try:
            made = tests.build_certificate(about, unfinished)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(out) from None
        made.write(out)
        write_atomic(out / "certificate.md", format_certificate(made))
        unfinished.delete()
    return made, out


def _choose_folder(settings: CertifySettings) -> Path:
    """Where no certificate lies yet."""
    if settings.out is None:
        return stamp_path(Path("results") / "certificates", "-".join(filter(None, (settings.target.name, settings.target.shape))))
    out = Path(settings.out).expanduser()
    if (out / FILE).exists():
        raise InputError(f"out={out}: holds a certificate already; choose another folder, or remove it")
    if not RunDirectory(out).is_new() and not (out / JOURNAL).exists():
        raise InputError(f"out={out}: expected an interrupted certificate's folder, an empty one or a new one")
    return out


class _Tests:
    """All that is tried of what was asked, and what follows."""

    def __init__(self, asked: TextSampler) -> None:
        self.asked, self.settings, self.drafters = asked, asked.settings, asked.drafters
        self.claimed = [label for label, drafter in self.drafters.items() if drafter.lossless]
        drawing = [label for label in self.claimed if self.drafters[label].draws]
        # Bonferroni. A method whose drafts are not drawn writes autoregressive decoding's own texts: its tests are the same ones.
        self.counted_level = self.settings.level / ((1 + len(drawing)) * len(enumeration.WINDOWS))

    def check_enough(self) -> None:
        """Raises InputError where tests could show nothing, before they begin."""
        if not self._can_enumerate():
            raise InputError(f"draws={self.settings.draws}: too few at this temperature; expected more, or a higher temperature")

    def _can_enumerate(self) -> bool:
        try:
            small, _ = build_miniature(self.asked.target.model.config.model_type)
            return enumeration.can_show(small, self.asked.sampled, self.settings.draws)
        except Exception:  # what has no miniature is told of in the certificate
            return True

    def build_certificate(self, about: dict[str, Any], unfinished: VerdictJournal) -> Certificate:
        greedy = [self._get_verdict(label, True, unfinished) for label in self.drafters]
        floor = greedy[list(self.drafters).index(BASELINE)].tests.get("texts", {"texts": 0, "equal": 0})
        return Certificate(
            about=about,
            config=self.settings.recorded,
            level=self.settings.level,
            noise=asdict(self.asked.noise),
            floor={"texts": floor["texts"], "differing": floor["texts"] - floor["equal"]},
            greedy=greedy,
            sampled=[self._get_verdict(label, False, unfinished) for label in self.drafters],
        )

    def _get_verdict(self, label: str, greedy: bool, unfinished: VerdictJournal) -> Verdict:
        known = unfinished.get_verdict(greedy, label)
        if known is None:
            known = self._judge_greedy(label) if greedy else self._judge_sampled(label)
            unfinished.add(greedy, known)
        return known

    def _judge_greedy(self, label: str) -> Verdict:
        sampling = self.asked.greedy
        return self._judge(label, [partial(self._check_tokens, label, sampling), *self._list_order_parts(label, sampling)])

    def _judge_sampled(self, label: str) -> Verdict:
        parts: list[Part] = []
        if not self.drafters[label].draws:
            parts.append(partial(self._check_tokens, label, self.asked.sampled))
        if label in self.claimed:
            parts.append(partial(self._check_enumeration, label))
        verdict = self._judge(label, [*parts, *self._list_order_parts(label, self.asked.sampled)])
        return verdict if label in self.claimed or verdict.why else replace(verdict, class_="lossy")

    def _judge(self, label: str, parts: Sequence[Part]) -> Verdict:
        why: list[str] = []
        figures: dict[str, Any] = {}
        try:
            for part in parts:
                wrong, found = part()
                why, figures = why + wrong, figures | found
        except (Exception, SystemExit) as error:  # what stops may be right or wrong: nobody knows
            return Verdict(label, "bug" if why else "untested", figures, "; ".join([*why, f"stopped: {format_error(error)}"]))
        fine = figures["texts"]["class_"] if "texts" in figures else "sampled"
        return Verdict(label, "bug" if why else fine, figures, "; ".join(why))

    def _check_tokens(self, label: str, sampling: Sampling) -> Findings:
        asked = self.asked
        noise = asked.noise.sampled if sampling.temperature else asked.noise.greedy
        found = check_tokens(asked.target.model, asked.generate_texts(label, sampling), asked.reference[sampling], noise)
        texts = asdict(found) | {"class_": found.class_, "most_wrong": bound_error_rate(found.wrong, found.texts)}
        wrong = []
        if found.wrong > found.ended and (label in self.claimed or not sampling.temperature):
            unit = "of probability" if sampling.temperature else "logits"
            wrong = [f"{found.wrong} of {found.texts} texts are not the target's own: off by up to {found.worst:.3g} {unit}"]
        if found.ended:
            wrong.append(f"{found.ended} of {found.texts} texts end elsewhere than they should")
        return wrong, {"texts": texts}

    def _list_order_parts(self, label: str, sampling: Sampling) -> list[Part]:
        forgets = not self.drafters[label].warm
        return [partial(self._check_order, label, sampling)] if forgets else []

    def _check_order(self, label: str, sampling: Sampling) -> Findings:
        leaked, texts = self.asked.count_leaks(label, sampling)
        wrong = f"remembers: {leaked} of {texts} texts took other steps in another order"
        return [wrong] * (leaked > 0), {"order": {"texts": texts, "differing": leaked}}

    def _check_enumeration(self, label: str) -> Findings:
        level = self.counted_level
        node = self.settings.method[label]
        self.asked.watch(f"{label} on the miniature target, by text", 0, self.settings.draws)
        given = replace(self.asked.sampled, seed=self.settings.seed)
        try:
            small, draft = build_miniature(self.asked.target.model.config.model_type)
            drafter = build_drafter(node, draft)
            drafter.bind(small)
        except Exception as error:  # an architecture or a method that cannot be made so small
            if self.drafters[label].draws:
                raise
            return [], {"not enumerated": format_error(error)}  # its texts are followed on the target itself
        found = enumeration.run_tests(small, drafter, given, self.settings.draws, level)
        bad = [test for test in found[-1] if test.p_value < level]
        wrong = [f"token {'+'.join(str(at + 2) for at in test.tokens)}: p = {test.p_value:.1e}" for test in bad]
        rounds = [[asdict(test) for test in tests] for tests in found]
        return wrong, dict(zip(("enumerated", "enumerated_again"), rounds, strict=False))
