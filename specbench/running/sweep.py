"""Sweeps, run by Hydra: specbench run -m method=pld,sps [hydra/launcher=…]. Each job has its own run directory."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override

from specbench.errors import RECORD, InputError, describe_file_error, format_error, is_about_file
from specbench.records.files import write_atomic
from specbench.records.nested import flatten
from specbench.records.run_directory import find_runs
from specbench.running.log import start_log
from specbench.setup.compose import CONF, add_import_path, compose_run, parse_job, translate_errors
from specbench.setup.local import imply_local, list_asked
from specbench.setup.overrides import parse_overrides
from specbench.setup.settings import RunSettings
from specbench.setup.words import format_value

MARK = "multirun.yaml"  # written by Hydra into a sweep's folder
NOTE = ".failed"  # in a job's folder: why it failed, since Hydra does not pass on what jobs return
LAUNCHER = "hydra/launcher"
HERE = ("basic", "joblib", "submitit_local")  # launchers whose jobs run on this machine


@dataclass(frozen=True)
class SweepResult:
    """A sweep's folder, the finished runs in it, and the errors of the other jobs."""

    folder: Path
    runs: list[Path]
    failed: list[str]


def sweep(overrides: Sequence[str], config_dir: Path | None) -> SweepResult:
    """Run every combination, after checking all of them. A failing job does not stop the others.

    Raises InputError, and once the jobs have started, KeyboardInterrupt with the folder.
    """
    with translate_errors(overrides, config_dir):
        overrides = imply_local(overrides, parse_overrides(overrides))  # Hydra composes the jobs again
        parsed = parse_overrides(overrides)
    jobs = [compose_run(job, config_dir) for job in _list_jobs(parsed)]  # before torch is imported, which takes seconds
    if swept := expand_sweep(jobs[0].sweep, overrides):
        return sweep([*overrides, *swept], config_dir)
    from specbench.setup.objects import check_nodes

    launcher = next((override.get_value_string() for override in parsed if override.key_or_group == LAUNCHER), "basic")
    for job in jobs:
        check_nodes(job, here=launcher in HERE)
    folder = _choose_folder(parsed)
    if folder.exists() and not (folder.is_dir() and ((folder / MARK).exists() or not any(folder.iterdir()))):
        raise InputError(f"out={folder}: expected a sweep's folder, an empty one or a new one")
    sys.argv = ["specbench", "--multirun", *overrides, f"hydra.sweep.dir={_quote(str(folder.resolve()))}"]
    sys.argv += _name_folders(parsed, len(jobs))
    sys.argv += ["--config-dir", str(config_dir.resolve())] if config_dir else []
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints tracebacks and exits by itself
    failed = _launch(launcher, folder, overrides, config_dir)
    return SweepResult(folder, find_runs(folder), failed)


def _launch(launcher: str, folder: Path, overrides: Sequence[str], config_dir: Path | None) -> list[str]:
    """Start Hydra's sweep with sys.argv as its command line, and return a line for each job that failed."""
    for note in folder.rglob(NOTE):
        note.unlink()
    failed = []
    try:
        with translate_errors(overrides, config_dir):
            _run_job()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(folder) from None
    except Exception as error:
        if launcher == "basic" or isinstance(error, InputError):
            raise
        first, _, _ = str(error).partition("\n")  # of the launcher, or of a killed job, whose log follows
        failed = [f"{LAUNCHER}={launcher}: {type(error).__name__}: {first}"]
    return [f"{note.parent.name}: {note.read_text(encoding='utf-8')}" for note in sorted(folder.rglob(NOTE))] + failed


def expand_sweep(swept: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Return a config's `sweep` as overrides, without the settings that the command line gives. Raises InputError."""
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    expanded = []
    for key, values in flatten(swept):
        if not isinstance(values, list) or not values or any(isinstance(value, list) for value in values):
            raise InputError(f"sweep.{key}={values}: expected a list of values")
        if key not in given:
            expanded.append(f"{key}={','.join(format_value(value, f'sweep.{key}') for value in values)}")
    return expanded


def check_single_run(settings: RunSettings, overrides: Sequence[str], command: str) -> None:
    """Raise InputError for a sweep, in a command that is about one run."""
    if swept := expand_sweep(settings.sweep, overrides):
        single = [choices.partition(",")[0] for choices in swept]
        raise InputError(f"{' '.join(swept)}: {command} is about one run; expected one value, such as {' '.join(single)}")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _run_job(config: Any) -> None:
    """Execute one job, here or wherever a launcher has sent it."""
    from specbench.running.execute import execute
    from specbench.running.progress import ProgressDisplay

    runtime = HydraConfig.get().runtime
    for source in runtime.config_sources:
        if source.provider == "command-line":
            add_import_path(Path(source.path))
    out = runtime.output_dir
    try:
        settings = parse_job(config, out, list_asked(parse_overrides(HydraConfig.get().overrides.task)))
        start_log(settings.log)  # in this process, which may be another one
        with ProgressDisplay() as display:
            execute(settings, display)
    except Exception as error:  # of any type: the other jobs go on
        failure = " ".join(_describe(error).split())
        RECORD.info(f"{out}: {failure}")
        write_atomic(Path(out) / NOTE, failure)


def _describe(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    return describe_file_error(error) if is_about_file(error) else format_error(error)


def _list_jobs(parsed: Sequence[Override]) -> list[list[str]]:
    """Return the overrides of each job, combined as Hydra's basic sweeper does. Ranges are left to the sweeper in use."""
    choices = []
    for override in parsed:
        if override.is_discrete_sweep():
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        elif not override.is_sweep_override():
            choices.append([str(override.input_line)])
    return [list(job) for job in product(*choices)]


def _choose_folder(parsed: Sequence[Override]) -> Path:
    given = [override for override in parsed if override.key_or_group == "out"]
    if any(override.is_sweep_override() for override in given):
        raise InputError(f"{given[0].input_line}: expected one folder; each job of -m gets its own inside")
    value = given[-1].value() if given else None
    return Path(str(value)).expanduser() if value is not None else Path("results") / f"sweep-{time.strftime('%Y%m%d-%H%M%S')}"


def _name_folders(parsed: Sequence[Override], jobs: int) -> list[str]:
    """Name each job's folder after the overrides that differ, or by number if that would be empty or a path."""
    if jobs == 1 or any("/" in override.get_value_string() for override in parsed if override.is_sweep_override()):
        return ["hydra.sweep.subdir=${hydra.job.num}"]
    shared = ",".join(_quote(override.key_or_group) for override in parsed if not override.is_sweep_override())
    return [
        "hydra.sweep.subdir=${hydra.job.override_dirname}",
        f"hydra.job.config.override_dirname.exclude_keys=[{shared}]",
    ]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"
