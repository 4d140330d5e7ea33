"""From a finished run to a bundle: checked, without what is private, and without texts that may not be passed on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from specbench.analysis.loaded_run import LoadedRun, find_first, read_run
from specbench.bundles.container import MANIFEST, RECORDS, RUN, describe_file, pack
from specbench.bundles.manifest import Manifest, build_manifest, read_staged
from specbench.bundles.private import Mask, build_mask, check_keys
from specbench.errors import InputError
from specbench.records.certificates import FILE, list_folders, read_certificate
from specbench.records.files import read_object, write_atomic
from specbench.records.names import make_file_name
from specbench.records.run_directory import RunDirectory
from specbench.records.stripped import format_rows, name_files, strip_run

OPEN = ("Apache-2.0", "MIT", "CC BY 4.0", "CC0-1.0")  # licences under which questions and answers may be passed on
DOCUMENTS = ("config.yaml", "run.json")


def write_bundle(path: Path, out: Path, code_sha256: str, without_texts: bool = False) -> Manifest:
    """Write the bundle of a run and return its manifest. Raises InputError for a run that is not finished, or holds a secret.

    Prompts and answers are kept only where the suite's licence is in OPEN.
    """
    if out.exists():
        raise InputError(f"--out {out}: already exists; choose another file")
    run = read_run(path)
    _check_run(run, path)
    strips = without_texts or find_first(run.provenance, "suite.licence") not in OPEN
    with tempfile.TemporaryDirectory(prefix="specbench-") as temporary:
        folder, mask = Path(temporary), build_mask()
        _stage_run(path, folder / RUN, strips, mask)
        _stage_certificates(path, run, folder, mask)
        files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
        for name, content in files.items():
            if not name.endswith(".jsonl"):
                check_keys(content.decode(), f"{path}: {name}")
        manifest = build_manifest(
            read_staged(folder, run.name), {name: describe_file(files[name]) for name in files}, code_sha256
        )
    files[MANIFEST] = (json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    try:
        write_atomic(out, pack(files))
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from None
    return manifest


def _check_run(run: LoadedRun, path: Path) -> None:
    """Raise InputError for a run that claims nothing yet, or nothing that was measured here."""
    kinds = {trial.kind for trial in run.trials} - {"measured", "synthetic"}
    if kinds:
        raise InputError(f"{path}: its turns are {min(kinds)}, not measured; a bundle claims speeds")
    if not run.provenance.get("turns") or not run.config.get("repeats"):
        raise InputError(f"{path}: its run.json does not say how many turns it needs, so it cannot be called finished")
    if missing := sum(run.missing.values()):
        raise InputError(f"{path}: not finished: {missing} turns are missing; run the same command again to resume")
    if all(trial.failed for trial in run.trials):
        raise InputError(f"{path}: every turn failed, so it claims nothing")
    if run.unreadable:
        raise InputError(f"{path}: the certificate {run.unreadable[0]} cannot be read, and what it found would be missing")


def _stage_run(path: Path, staged: Path, strips: bool, mask: Mask) -> None:
    """Write the run's records into a folder, read and written again: nothing else of its files is passed on."""
    source = RunDirectory(path)
    if strips:
        strip_run(path, staged.parent / "stripped").rename(staged)
        (staged.parent / "stripped").rmdir()
        (staged / "summary.csv").unlink(missing_ok=True)
        source = RunDirectory(staged)
    provenance, config = source.read_provenance(), yaml.safe_load(name_files((source.path / "config.yaml").read_bytes()))
    rows: Mapping[str, Iterable[Mapping[str, Any]]] = {
        "trials": [_mask_trial(trial.to_row(), mask) for trial in source.read_attempts()],
        "prompts": map(asdict, source.read_prompts()),
        "texts": source.read_texts(),
    }
    written = {f"{name}.jsonl": format_rows(list_) for name, list_ in rows.items()}
    written["run.json"] = json.dumps(mask(provenance), indent=1, ensure_ascii=False) + "\n"
    written["config.yaml"] = yaml.safe_dump(mask(config), sort_keys=False, allow_unicode=True)
    for name in RECORDS:
        if written[name]:
            write_atomic(staged / name, written[name])


def _mask_trial(row: dict[str, Any], mask: Mask) -> dict[str, Any]:
    check_keys(row["error"] or "", "trials.jsonl")
    return {**row, **{name: mask(row[name]) for name in ("error", "disturbed", "throttled")}}


def _stage_certificates(path: Path, run: LoadedRun, folder: Path, mask: Mask) -> None:
    """Copy the certificates that say something of the run's methods."""
    taken: set[str] = set()
    for file in (file for place in list_folders(path) for file in sorted(place.glob(f"*/{FILE}"))):
        if read_certificate(file).find_verdicts(run.config, run.provenance):
            base = make_file_name(file.parent.name)
            name = next(one for one in (base, *(f"{base}-{n}" for n in range(2, 100))) if one not in taken)
            taken.add(name)
            write_atomic(folder / "certificates" / name / FILE, json.dumps(mask(read_object(file)), indent=1) + "\n")
