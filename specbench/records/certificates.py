"""A certificate: what was tested of each method on one target, and what follows from it. JSON on disk; no torch in here.

exact      every text is autoregressive decoding's own, token for token
tie        where a text differs, the target itself is undecided: the difference is within its own rounding
sampled    drafts are drawn, so texts differ; no test found another distribution than the target's
lossy      by design, and says so
bug        claimed lossless, and is not
untested   claimed lossless, and stopped while it was tested
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specbench import ROOT
from specbench.errors import InputError
from specbench.records.files import JsonLines, write_atomic
from specbench.records.moved import translate_targets

SCHEMA = 1
FILE = "certificate.json"
JOURNAL = "verdicts.jsonl"
OWN_FOLDERS = (ROOT / "results" / "reference" / "certificates", ROOT / "results" / "certificates")  # of this checkout
GRAVITY = ("untested", "exact", "sampled", "tie", "lossy", "bug")  # of classes
KEYS = ("temperature", "top_p", "top_k")
TARGET = ("name", "shape", "path", "revision", "weights", "config")  # of a run's config
ENGINE = "specbench.engine.native.Native"  # whose texts are tested
VERSIONS = ("torch", "transformers")
WEIGHTS = ("dtype", "target_sha256", "draft_sha256")  # of its run.json
TESTED = (*WEIGHTS, "suite_sha256", "code_sha256", "codes", "checkpoints", "versions")  # what verdicts are of


@dataclass(frozen=True)
class Verdict:
    """Of one method at one temperature. tests: the figures behind it, by name; why: what is wrong, or empty."""

    method: str
    class_: str
    tests: dict[str, Any]
    why: str = ""


@dataclass(frozen=True)
class Certificate:
    """config, about: as in a run's config.yaml and run.json; greedy, sampled: verdicts at temperature 0, and as config says.

    level: of the statistical tests together; noise: beyond which a difference is a bug; floor: autoregressive decoding against
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
        """Whether all that is claimed lossless is shown to be."""
        return all(verdict.class_ not in ("bug", "untested") for verdict in [*self.greedy, *self.sampled])

    def write(self, folder: Path) -> Path:
        write_atomic(folder / FILE, json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, allow_nan=False) + "\n")
        return folder / FILE

    def find_verdicts(self, config: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, str]:
        """Classes by label of the methods of a run: those that it has with the same settings on the same target and engine."""
        if _identify_target(config, about) != _identify_target(self.config, self.about) or not _is_native(config):
            return {}
        asked, tested = config.get("sampling", {}), self.config["sampling"]
        greedy = asked.get("temperature") == 0
        if not greedy and any(asked.get(key) != tested[key] for key in KEYS):
            return {}
        found = self.greedy if greedy else self.sampled
        return {
            one.method: one.class_
            for one in found
            if _identify_method(config, about, one.method) == _identify_method(self.config, self.about, one.method)
        }


class VerdictJournal:
    """Verdicts of a certificate in the making, on the disk as they come, so that an interrupted one goes on."""

    def __init__(self, folder: Path, config: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Raises InputError for another certificate's."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / JOURNAL
        self._lines = JsonLines(self._path)
        self._lines.repair()
        rows = [row for _, row in self._lines.read_numbered()]
        device = {key: (about.get("device") or {}).get(key) for key in ("kind", "name")}
        head = {"schema": SCHEMA, "config": config, "about": {key: about.get(key) for key in TESTED}, "device": device}
        if not rows:
            self._lines.append(head)
        elif rows[0] != json.loads(json.dumps(head)):
            raise InputError(f"out={folder}: holds verdicts of another target, other settings or code; choose another out")
        self._found = {(row.pop("greedy"), row["method"]): Verdict(**row) for row in rows[1:]}

    def get_verdict(self, greedy: bool, method: str) -> Verdict | None:
        return self._found.get((greedy, method))

    def add(self, greedy: bool, verdict: Verdict) -> None:
        """What stopped is tried again."""
        if verdict.class_ != "untested":
            self._lines.append({"greedy": greedy, **asdict(verdict)})

    def delete(self) -> None:
        self._path.unlink()


def _identify_target(config: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides on a target's text."""
    target = config.get("target")
    named = tuple(target.get(name) for name in TARGET) if isinstance(target, Mapping) else ()
    shape = (target.get("shapes") or {}).get(target.get("shape")) if isinstance(target, Mapping) else None
    device = about.get("device")
    kind = device.get("kind") if isinstance(device, Mapping) else None
    return (*named, shape, *(about.get(name) for name in WEIGHTS), kind)


def _is_native(config: Mapping[str, Any]) -> bool:
    """Whether labels without @ are of the engine that is tested."""
    engine = next(iter((config.get("engine") or {}).values()), None)
    return isinstance(engine, Mapping) and engine.get("_target_") == ENGINE


def _collect_versions(about: Mapping[str, Any], label: str) -> set[tuple[Any, ...]]:
    """Of the code that writes a method's texts; a day's certificate says little of the next day's code."""
    code = (about.get("codes") or {}).get(label)
    parts = [about, *about.get("continued", ())]
    return {(code, part.get("code_sha256"), *((part.get("versions") or {}).get(name) for name in VERSIONS)) for part in parts}


def _identify_method(config: Mapping[str, Any], about: Mapping[str, Any], label: str) -> tuple[Any, Any]:
    """Its settings, and the fingerprint of what it loads."""
    return _drop_nulls((config.get("method") or {}).get(label)), (about.get("checkpoints") or {}).get(label)


def _drop_nulls(settings: Any) -> Any:
    """Settings without those that are null, which an older version may not have had."""
    if isinstance(settings, Mapping):
        return {key: _drop_nulls(value) for key, value in settings.items() if value is not None}
    return settings


def read_certificate(path: Path) -> Certificate:
    """Raises InputError."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        for part in ("greedy", "sampled"):
            plain[part] = [Verdict(**one) for one in plain[part]]
        return Certificate(**{**plain, "config": translate_targets(plain["config"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a certificate: {error}") from None


@dataclass(frozen=True)
class Certification:
    """What certificates say of a method: those of the same code, torch and transformers, if there are any.

    texts: that were followed, of each method; tokens: that a text had at most.
    """

    class_: str
    day: str
    texts: int
    tokens: int
    same_version: bool

    @property
    def coverage(self) -> str:
        """How much was followed, and when."""
        return f"{self.texts} texts of at most {self.tokens} tokens, {self.day}"

    def __str__(self) -> str:
        return self.class_ if self.same_version else f"{self.class_}, in another version"


def list_folders(run: Path) -> list[Path]:
    """Whose certificates count for a run: this checkout's, and those in a folder `certificates` beside the run."""
    return list(dict.fromkeys([*OWN_FOLDERS, run.resolve().parent / "certificates"]))


def find_certifications(config: Mapping[str, Any], about: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Certification]:
    """By label of a run's methods that a certificate in one of the folders covers.

    The gravest verdict wins, of equal ones the newest; a later, weaker certificate never overrides it. `untested` says nothing of
    a method that was tested elsewhere.
    """
    found: dict[str, Certification] = {}
    for one in sorted(_read_certificates(folders), key=lambda one: str(one.about.get("started"))):
        for label, class_ in one.find_verdicts(config, about).items():
            same = _collect_versions(one.about, label) == _collect_versions(about, label)
            texts, tokens = one.floor["texts"], one.config["sampling"]["max_new_tokens"]
            new = Certification(class_, str(one.about.get("started"))[:10], texts, tokens, same)
            found[label] = max(new, found.get(label, new), key=_weigh)  # the first of equals
    return found


def _weigh(one: Certification) -> tuple[bool, int]:
    return one.same_version, GRAVITY.index(one.class_)


def _read_certificates(folders: Sequence[Path]) -> list[Certificate]:
    """Those in the folders; what is none, or of another schema, vouches for nothing."""
    found = []
    for path in (path for folder in folders for path in sorted(folder.glob(f"*/{FILE}"))):
        with suppress(InputError):
            found.append(read_certificate(path))
    return found
