"""`specbench certify`: from settings to a certificate. Loads what a run loads, and tests texts instead of timing them."""

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
from specbench.records.evidence import read_evidence
from specbench.records.files import write_atomic
from specbench.records.names import stamp_path
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE
from specbench.running.checks import check_drafters, check_prompts
from specbench.setup.instantiate import check_node
from specbench.setup.objects import (
    check_methods,
    collect_fingerprints,
    instantiate_methods,
    load_target,
    load_target_tokenizer,
    silence_libraries,
)
from specbench.setup.provenance import collect_provenance
from specbench.setup.questions import open_suite, select_questions
from specbench.setup.settings import CertifySettings
from specbench.watch import Watch
from tasks.suite import Suite

Findings = tuple[list[str], dict[str, Any]]  # what is wrong, and the measured figures
Part = Callable[[], Findings]


def certify(settings: CertifySettings, watch: Watch) -> tuple[Certificate, Path]:
    """Return the certificate and its folder. Raises InputError; KeyboardInterrupt carries the folder once it holds verdicts."""
    silence_libraries()
    check_methods(settings.method)
    check_node(settings.suite, "suite", Suite)
    settings.check_recorded()
    out = _choose_folder(settings)
    if BASELINE not in settings.method:
        raise InputError(f"method: {BASELINE} is missing; every method is compared with it")
    suite = open_suite(settings)
    questions = select_questions(settings, suite, settings.limit)
    drafters = instantiate_methods(settings.method)
    check_drafters(drafters, settings.target, load_target_tokenizer(settings.target)[0])
    out.mkdir(parents=True, exist_ok=True)  # fails early if it cannot be written
    target = load_target(settings.target)
    check_prompts(questions, target)
    about = collect_provenance(target.model.device) | collect_fingerprints(settings, target, suite, drafters)
    texts = TextSampler(settings, target, drafters, questions, watch)
    about["forward"] = {
        part: {key: choice[key] for key in ("kind", "why", "expected", "products", "sums")}
        for part, choice in texts.engine.describe_forwards().items()
    }
    tests = _Tests(texts)
    tests.check_draws()
    with lock_run(out):
        journal = VerdictJournal(out, settings.recorded, about)
        try:
            certificate = tests.build_certificate(about, journal)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(out) from None
        certificate.write(out)
        write_atomic(out / "certificate.md", format_certificate(certificate))
        journal.delete()
    return certificate, out


def _choose_folder(settings: CertifySettings) -> Path:
    """Return a folder without a certificate. Raises InputError where `out` already holds one, or anything else."""
    if settings.out is None:
        return stamp_path(Path("results") / "certificates", "-".join(filter(None, (settings.target.name, settings.target.shape))))
    out = Path(settings.out).expanduser()
    if (out / FILE).exists():
        raise InputError(f"out={out}: already holds a certificate; choose another folder, or remove it")
    if not RunDirectory(out).is_new() and not (out / JOURNAL).exists():
        raise InputError(f"out={out}: expected an interrupted certificate's folder, an empty one or a new one")
    return out


class _Tests:
    """The tests of every method, and their verdicts."""

    def __init__(self, sampler: TextSampler) -> None:
        self.sampler, self.settings, self.drafters = sampler, sampler.settings, sampler.drafters
        self.claimed = [label for label, drafter in self.drafters.items() if drafter.lossless]
        drawing = [label for label in self.claimed if self.drafters[label].draws]
        # Bonferroni. Methods whose drafts are not drawn write autoregressive decoding's own texts: their tests count once.
        self.test_level = self.settings.level / ((1 + len(drawing)) * len(enumeration.WINDOWS))

    def check_draws(self) -> None:
        """Raise InputError, before any test, if there are too few draws for any test to fail."""
        try:
            small, _ = build_miniature(self.sampler.target.model.config.model_type)
            enough = enumeration.can_show(small, self.sampler.sampled, self.settings.draws)
        except Exception:  # the certificate reports that there is no miniature
            return
        if not enough:
            raise InputError(f"draws={self.settings.draws}: too few at this temperature; expected more, or a higher temperature")

    def build_certificate(self, about: dict[str, Any], journal: VerdictJournal) -> Certificate:
        greedy = [self._get_verdict(label, True, journal) for label in self.drafters]
        floor = greedy[list(self.drafters).index(BASELINE)].tests.get("texts", {"texts": 0, "equal": 0})
        return Certificate(
            about=about,
            config=self.settings.recorded,
            level=self.settings.level,
            noise=asdict(self.sampler.noise),
            floor={"texts": floor["texts"], "differing": floor["texts"] - floor["equal"]},
            greedy=greedy,
            sampled=[self._get_verdict(label, False, journal) for label in self.drafters],
        )

    def _get_verdict(self, label: str, greedy: bool, journal: VerdictJournal) -> Verdict:
        verdict = journal.get_verdict(greedy, label)
        if verdict is None:
            verdict = self._judge_greedy(label) if greedy else self._judge_sampled(label)
            journal.add(greedy, verdict)
        return verdict

    def _judge_greedy(self, label: str) -> Verdict:
        sampling = self.sampler.greedy
        # The order comes first: what outlives a drafter, in its class or module, has not yet seen the prompts.
        return self._judge(label, [*self._list_order_parts(label, sampling), partial(self._check_tokens, label, sampling)])

    def _judge_sampled(self, label: str) -> Verdict:
        parts: list[Part] = []
        if not self.drafters[label].draws:
            parts.append(partial(self._check_tokens, label, self.sampler.sampled))
        if label in self.claimed:
            parts.append(partial(self._check_enumeration, label))
        verdict = self._judge(label, [*parts, *self._list_order_parts(label, self.sampler.sampled)])
        return verdict if label in self.claimed or verdict.why else replace(verdict, class_="lossy")

    def _judge(self, label: str, parts: Sequence[Part]) -> Verdict:
        why: list[str] = []
        figures: dict[str, Any] = {}
        try:
            for part in parts:
                wrong, measured = part()
                why += wrong
                figures |= measured
        except (Exception, SystemExit) as error:  # a method that stops may be right or wrong
            return Verdict(label, "bug" if why else "untested", figures, "; ".join([*why, f"stopped: {format_error(error)}"]))
        fine = figures["texts"]["class_"] if "texts" in figures else "sampled"
        fine = read_evidence(figures).weigh(fine)
        return Verdict(label, "bug" if why else fine, figures, "; ".join(why))

    def _check_tokens(self, label: str, sampling: Sampling) -> Findings:
        sampler = self.sampler
        noise = sampler.noise.sampled if sampling.temperature else sampler.noise.greedy
        texts = sampler.generate_texts(label, sampling)
        check = check_tokens(sampler.target.model, texts, sampler.baseline_texts[sampling], noise)
        figures = asdict(check) | {"class_": check.class_, "most_wrong": bound_error_rate(check.wrong, check.texts)}
        wrong = []
        if check.wrong > check.ended and (label in self.claimed or not sampling.temperature):
            unit = "in probability" if sampling.temperature else "logits"
            wrong = [f"{check.wrong} of {check.texts} texts are not the target's own: off by up to {check.worst:.3g} {unit}"]
        if check.ended:
            wrong.append(f"{check.ended} of {check.texts} texts end in the wrong place")
        return wrong, {"texts": figures}

    def _list_order_parts(self, label: str, sampling: Sampling) -> list[Part]:
        return [] if self.drafters[label].warm else [partial(self._check_order, label, sampling)]

    def _check_order(self, label: str, sampling: Sampling) -> Findings:
        leaked, texts = self.sampler.count_leaks(label, sampling)
        wrong = f"remembers earlier prompts: {leaked} of {texts} texts took different steps when their prompts came again"
        return [wrong] * (leaked > 0), {"order": {"texts": texts, "differing": leaked}}

    def _check_enumeration(self, label: str) -> Findings:
        level = self.test_level
        self.sampler.watch(f"{label} on the miniature target, by text", 0, self.settings.draws)
        sampling = replace(self.sampler.sampled, seed=self.settings.seed)
        try:
            small, draft = build_miniature(self.sampler.target.model.config.model_type)
            drafter = build_drafter(self.settings.method[label], draft)
            drafter.bind(small)
        except Exception as error:  # this architecture or method has no miniature
            if self.drafters[label].draws:
                raise
            return [], {"not enumerated": format_error(error)}  # its texts are checked on the target itself
        results = enumeration.run_tests(small, drafter, sampling, self.settings.draws, level)
        failed = [test for test in results[-1] if test.p_value < level]
        wrong = [f"token {'+'.join(str(index + 2) for index in test.tokens)}: p = {test.p_value:.1e}" for test in failed]
        rounds = [[asdict(test) for test in tests] for tests in results]
        return wrong, dict(zip(("enumerated", "enumerated_again"), rounds, strict=False))
