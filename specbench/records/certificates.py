"""Certificates: the tests and verdicts of methods on one target. JSON on disk; no torch in here.

exact      every text equals autoregressive decoding's, token for token, and there were enough (records/evidence.py)
exact so far  the same, with less evidence
tie        where a text differs, the target itself is undecided: the difference is within its rounding
sampled    drafts are sampled, so texts differ; no test found a distribution other than the target's
lossy      by design, and declared so
bug        claimed lossless, but is not
untested   claimed lossless, but stopped with an error during the test
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specbench import ROOT
from specbench.errors import InputError, escape_controls
from specbench.records.certificate_fields import CertificateFields, JournalRow, check_verdicts
from specbench.records.documents import parse_document
from specbench.records.evidence import EXACT, SO_FAR, Evidence, read_evidence
from specbench.records.files import JsonLines, read_text, write_atomic
from specbench.records.moved import translate_targets
from specbench.records.typed import check

SCHEMA = 1
FILE = "certificate.json"
JOURNAL = "verdicts.jsonl"
OWN_FOLDERS = (ROOT / "results" / "reference" / "certificates", ROOT / "results" / "certificates")  # of this checkout
GRAVITY = ("untested", SO_FAR, EXACT, "sampled", "tie", "lossy", "bug")  # from the least to the gravest
DOUBTS = ("untested", "bug")  # verdicts with which no text counts as certified
KEYS = ("temperature", "top_p", "top_k")
LEAST = "min_new_tokens"  # of sampling: it affects the text even at temperature 0
TARGET = ("name", "shape", "path", "revision", "weights", "config")  # of a run's config
ENGINE = "specbench.engine.native.Native"  # the engine whose texts are tested
VERSIONS = ("torch", "transformers")
WEIGHTS = ("dtype", "target_sha256", "draft_sha256")  # keys of run.json
TESTED = (
    *WEIGHTS,
    "suite_sha256",
    "code_sha256",
    "codes",
    "checkpoints",
    "versions",
    "forward",
)  # what verdicts depend on


@dataclass(frozen=True)
class Verdict:
    """The verdict on one method at one temperature. tests: its figures by name; why: what is wrong, or empty."""

    method: str
    class_: str
    tests: dict[str, Any]
    why: str = ""

    @property
    def evidence(self) -> Evidence:
        """What it rests on."""
        return read_evidence(self.tests)


@dataclass(frozen=True)
class Certificate:
    """config, about: as in a run's config.yaml and run.json; greedy, sampled: verdicts at temperature 0 and at config's.

    level: of all statistical tests together; noise: differences above it are bugs; floor: autoregressive decoding compared with
    itself.
    """

    about: dict[str, Any]
    config: dict[str, Any]
    level: float
    noise: dict[str, float]
    floor: dict[str, int]
    greedy: list[Verdict]
    sampled: list[Verdict]

    @property
    def passed(self) -> bool:
        """Whether every method that claims to be lossless was found to be."""
        return all(verdict.class_ not in DOUBTS for verdict in [*self.greedy, *self.sampled])

    def write(self, folder: Path) -> Path:
        """Write the certificate into the folder and return its path."""
        write_atomic(folder / FILE, json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, allow_nan=False) + "\n")
        return folder / FILE

    def find_verdicts(self, config: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Verdict]:
        """Return, by label, the verdicts on a run's methods that have the same settings, target and engine here."""
        if _identify_target(config, about) != _identify_target(self.config, self.about) or not _is_native(config):
            return {}
        sampling, tested = config.get("sampling") or {}, self.config["sampling"]
        greedy = sampling.get("temperature") == 0
        if sampling.get(LEAST) != tested.get(LEAST):
            return {}
        if not greedy and any(sampling.get(key) != tested[key] for key in KEYS):
            return {}
        return {
            verdict.method: verdict
            for verdict in (self.greedy if greedy else self.sampled)
            if _identify_method(config, about, verdict.method) == _identify_method(self.config, self.about, verdict.method)
        }


class VerdictJournal:
    """Verdicts of an unfinished certificate, stored one by one, so that an interrupted one can be resumed."""

    def __init__(self, folder: Path, config: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Open or create the journal. Raises InputError if it belongs to another certificate."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / JOURNAL
        self._lines = JsonLines(self._path)
        self._lines.repair()
        rows = list(self._lines.read_numbered())
        device = {key: (about.get("device") or {}).get(key) for key in ("kind", "name")}
        head = {"schema": SCHEMA, "config": config, "about": {key: about.get(key) for key in TESTED}, "device": device}
        if not rows:
            self._lines.append(head)
        elif rows[0][1] != json.loads(json.dumps(head)):
            raise InputError(f"out={folder}: holds verdicts of another target, other settings or other code; choose another out")
        self._verdicts = dict(self._parse(number, row) for number, row in rows[1:])

    def _parse(self, number: int, row: dict[str, Any]) -> tuple[tuple[bool, str], Verdict]:
        try:
            check(row, JournalRow, "")
            return (row.pop("greedy"), row["method"]), Verdict(**row)
        except (InputError, TypeError) as problem:
            raise InputError(f"{self._path}:{number}: not a verdict: {problem}") from None

    def get_verdict(self, greedy: bool, method: str) -> Verdict | None:
        """Return the stored verdict, None if there is none yet."""
        return self._verdicts.get((greedy, method))

    def add(self, greedy: bool, verdict: Verdict) -> None:
        """Store a verdict, unless the test stopped with an error: such a test is repeated on resuming."""
        if verdict.class_ != "untested":
            self._lines.append({"greedy": greedy, **asdict(verdict)})

    def delete(self) -> None:
        """Delete the journal."""
        self._path.unlink()


def _identify_target(config: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return everything that determines a target's text."""
    target = config.get("target") or {}
    shape = (target.get("shapes") or {}).get(target.get("shape"))
    kind = (about.get("device") or {}).get("kind")
    forward = (about.get("forward") or {}).get("target") or {}
    computed = forward.get("kind", "eager"), forward.get("products"), forward.get("sums")
    return (*map(target.get, TARGET), shape, *map(about.get, WEIGHTS), kind, computed)


def _is_native(config: Mapping[str, Any]) -> bool:
    """Return whether labels without @ ran on the engine that certificates test."""
    engine = next(iter((config.get("engine") or {}).values()), None)
    return isinstance(engine, Mapping) and engine.get("_target_") == ENGINE


def _collect_versions(about: Mapping[str, Any], label: str) -> set[tuple[Any, ...]]:
    """Return the versions of the code that generates a method's texts; a certificate holds only for them."""
    code = (about.get("codes") or {}).get(label)
    parts = [about, *(about.get("continued") or ())]
    return {(code, part.get("code_sha256"), *((part.get("versions") or {}).get(name) for name in VERSIONS)) for part in parts}


def _identify_method(config: Mapping[str, Any], about: Mapping[str, Any], label: str) -> tuple[Any, Any]:
    """Return the method's settings and the fingerprint of its checkpoint."""
    return _drop_nulls((config.get("method") or {}).get(label)), (about.get("checkpoints") or {}).get(label)


def _drop_nulls(settings: Any) -> Any:
    """Drop settings that are null; an older version may not have had them."""
    if isinstance(settings, Mapping):
        return {key: _drop_nulls(value) for key, value in settings.items() if value is not None}
    return settings


def read_certificate(path: Path) -> Certificate:
    """Read a certificate. Raises InputError if the file is not one."""
    text = read_text(path)
    try:
        plain = parse_document(text, CertificateFields)
        check_verdicts(plain["greedy"], plain["sampled"])
        return _build_certificate(plain)
    except InputError as problem:
        raise InputError(f"{path}: not a certificate: {problem}") from None


def _build_certificate(plain: dict[str, Any]) -> Certificate:
    fields = {field.name for field in dataclasses.fields(Certificate)}
    if unknown := sorted(plain.keys() - fields - {"schema"}):
        raise InputError(f"unknown fields {unknown}")
    if plain["schema"] != SCHEMA:
        raise InputError(f"schema version {plain['schema']}, this specbench reads version {SCHEMA}")
    verdicts = {part: [Verdict(**row) for row in plain[part]] for part in ("greedy", "sampled")}
    others = {name: plain[name] for name in fields - verdicts.keys()}
    return Certificate(**{**others, **verdicts, "config": translate_targets(plain["config"])})


@dataclass(frozen=True)
class Certification:
    """The verdict of certificates on a method; those of the same code, torch and transformers take precedence."""

    class_: str
    day: str
    evidence: Evidence
    same_version: bool

    @property
    def word(self) -> str:
        """The word for the verdict that its evidence supports."""
        return self.evidence.weigh(self.class_)

    @property
    def coverage(self) -> str:
        """What was checked, and when."""
        limit = f": at most {self.evidence.most_wrong:.1%} are wrong" if self.evidence.texts else ""
        return f"{self.evidence}, {self.day}{limit}"

    def __str__(self) -> str:
        return self.word if self.same_version else f"{self.word}, in another version"


def list_folders(run: Path) -> list[Path]:
    """Return the folders of a run's certificates: this checkout's, and `certificates` next to the run."""
    return list(dict.fromkeys([*OWN_FOLDERS, run.resolve().parent / "certificates"]))


def find_certifications(
    config: Mapping[str, Any], about: Mapping[str, Any], certificates: Sequence[Certificate]
) -> dict[str, Certification]:
    """Return the certifications of a run's methods by label.

    The gravest verdict wins, among equals the newest; a later, weaker certificate never overrides it. `untested` is the weakest.
    """
    certified: dict[str, Certification] = {}
    for certificate in sorted(certificates, key=lambda certificate: str(certificate.about.get("started"))):
        day = str(certificate.about.get("started"))[:10]
        for label, verdict in certificate.find_verdicts(config, about).items():
            same = _collect_versions(certificate.about, label) == _collect_versions(about, label)
            new = Certification(verdict.class_, day, verdict.evidence, same)
            certified[label] = max(new, certified.get(label, new), key=_rank_gravity)  # the first of equals
    if (config.get("batch") or 1) > 1:  # texts of a certificate were decoded one at a time: only doubts carry over
        return {label: known for label, known in certified.items() if known.class_ in DOUBTS}
    return certified


def _rank_gravity(certification: Certification) -> tuple[bool, int]:
    return certification.same_version, GRAVITY.index(certification.word)


def read_certificates(folders: Sequence[Path]) -> tuple[list[Certificate], list[str]]:
    """Return the certificates in the folders, and the names of those that cannot be read."""
    certificates: list[Certificate] = []
    unreadable: list[str] = []
    for path in (path for folder in folders for path in sorted(folder.glob(f"*/{FILE}"))):
        try:
            certificates.append(read_certificate(path))
        except InputError:
            unreadable.append(escape_controls(f"{path.parent.name}/{FILE}"))
    return certificates, unreadable
