"""Whether a bundle holds what it claims: its files, its records, and the numbers and alarms that follow from them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from specbench.analysis.loaded_run import LoadedRun
from specbench.bundles.container import MANIFEST, NEEDED, RUN, HeldFile, unpack
from specbench.bundles.manifest import Manifest, build_manifest, find_differences, read_manifest, read_staged
from specbench.errors import InputError
from specbench.records.certificates import FILE, OWN_FOLDERS, find_certifications, read_certificate, read_certificates
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import Prompt


class ClaimError(Exception):
    """A bundle that can be read does not hold what it claims; in one line."""


@dataclass(frozen=True)
class Bundle:
    """An unpacked bundle. held: size and fingerprint of every file but the manifest."""

    path: Path
    folder: Path
    manifest: Manifest
    held: dict[str, HeldFile]

    def read_prompts(self) -> list[Prompt]:
        """Return the prompts of the run."""
        return RunDirectory(self.folder / RUN).read_prompts()


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """Unpack a bundle into a folder that lasts as long as the context. Raises InputError if it is none that can be read."""
    with tempfile.TemporaryDirectory(prefix="specbench-") as temporary:
        folder = Path(temporary)
        held = unpack(path, folder)
        if held.pop(MANIFEST, None) is None:
            raise InputError(f"{path}: holds no {MANIFEST}")
        with _name_bundle(path, folder):
            manifest = read_manifest(folder / MANIFEST)
        yield Bundle(path, folder, manifest, held)


@contextmanager
def _name_bundle(path: Path, folder: Path) -> Iterator[None]:
    """Name the bundle in an InputError that names the temporary folder."""
    try:
        yield
    except InputError as problem:
        said = str(problem).replace(f"{folder}/", "").replace(str(folder), "it")
        raise InputError(f"{path}: {said}") from None


def check_bundle(bundle: Bundle) -> tuple[LoadedRun, list[str]]:
    """Return the run and what was found to hold. Raises ClaimError for the first claim that does not."""
    _check_files(bundle)
    try:
        with _name_bundle(bundle.path, bundle.folder):
            run = read_staged(bundle.folder, bundle.manifest["run"])
            certificates = _check_certificates(bundle, run)
            _check_records(bundle, run)
    except InputError as problem:
        raise ClaimError(str(problem)) from None
    computed = build_manifest(run, bundle.held, bundle.manifest["code_sha256"])
    if difference := next(find_differences(bundle.manifest, computed), None):
        raise ClaimError(f"{bundle.path}: {MANIFEST}: {difference}")
    levels = Counter(alarm["level"] for alarm in computed["alarms"])
    size = sum(file["bytes"] for file in bundle.held.values())
    return run, [
        f"{len(bundle.held)} files of {size:,} bytes have the listed fingerprints",
        f"{len(run.attempts)} turns pass the rules of records",
        f"{len(computed['claims'])} rows of the summary follow from them",
        f"alarms: {levels['alarm']}, notices: {levels['notice']}; all of them are listed",
        f"certificates that belong to it: {', '.join(certificates) or 'none'}",
    ]


def add_own_certificates(bundle: Bundle, run: LoadedRun) -> LoadedRun:
    """Return a checked run with what this checkout's certificates know of its methods, too."""
    certificates, _ = read_certificates([*OWN_FOLDERS, bundle.folder / "certificates"])
    return replace(run, certified=find_certifications(run.config, run.provenance, certificates))


def _check_files(bundle: Bundle) -> None:
    listed, held = bundle.manifest["files"], bundle.held
    for name in sorted({*NEEDED, *listed} - held.keys()):
        raise ClaimError(f"{bundle.path}: {name} is missing")
    for name in sorted(held.keys() - listed.keys()):
        raise ClaimError(f"{bundle.path}: {name} is not listed in {MANIFEST}")
    for name, file in held.items():
        if file != listed[name]:
            raise ClaimError(f"{bundle.path}: {name} was changed after the bundle was made: its size or sha256 is another")


def _check_certificates(bundle: Bundle, run: LoadedRun) -> list[str]:
    """Return the names of the certificates. Raises InputError for one that says nothing of the run."""
    files = sorted(bundle.folder.glob(f"certificates/*/{FILE}"))
    for file in files:
        if not read_certificate(file).find_verdicts(run.config, run.provenance):
            raise InputError(f"{file}: a certificate of another target, or of other methods")
    return [file.parent.name for file in files]


def _check_records(bundle: Bundle, run: LoadedRun) -> None:
    """Raise InputError where the files of the run do not fit together, or a turn is missing."""
    if kinds := {trial.kind for trial in run.attempts} - {"measured", "synthetic"}:
        raise InputError(f"its turns are {min(kinds)}, not measured")
    if not run.provenance.get("turns") or not run.config.get("repeats"):
        raise InputError("run.json does not say how many turns it needs")
    if missing := sum(run.missing.values()):
        raise InputError(f"{missing} turns are missing")
    turns = run.provenance["turns"] * run.config["repeats"]
    counts = Counter(trial.method for trial in run.trials)
    if more := [method for method, count in counts.items() if count > turns]:
        raise InputError(f"{more[0]} has {counts[more[0]]} turns; run.json and config.yaml make {turns}")
    _check_prompts(bundle.read_prompts(), run)
    _check_texts(run)


def _check_prompts(prompts: Sequence[Prompt], run: LoadedRun) -> None:
    """Compare the prompts with those that the turns name, if there are any."""
    lengths = {(one.question_id, one.turn, one.sha256): len(one.prompt_ids or ()) for one in prompts}
    for trial in run.attempts:
        key = (trial.question_id, trial.turn, trial.prompt_sha256)
        if prompts and not trial.failed and key not in lengths:
            raise InputError(f"prompts.jsonl lacks the prompt of question {trial.question_id}, turn {trial.turn}")
        if lengths.get(key) and trial.prompt_tokens != lengths[key]:
            raise InputError(
                f"prompt_tokens of question {trial.question_id} is {trial.prompt_tokens}, its prompt has {lengths[key]}"
            )


def _check_texts(run: LoadedRun) -> None:
    known = {(trial.method, trial.question_id, trial.turn) for trial in run.trials if trial.repeat == 0}
    for row in run.texts:
        if (row["method"], row["question_id"], row["turn"]) not in known:
            raise InputError(f"texts.jsonl holds a text of {row['method']} on question {row['question_id']}, which was not run")
