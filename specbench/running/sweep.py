"""Sweeps: specbench run -m method=pld,sps [hydra/launcher=…], by Hydra itself. Each job has a run directory of its own."""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from rich.console import Console

from specbench.errors import InputError
from specbench.records.files import write_atomic
from specbench.records.run_directory import find_runs
from specbench.setup.compose import CONF, add_import_path, compose_run, parse_job, translate_errors
from specbench.setup.settings import RunSettings

MARK = "multirun.yaml"  # that Hydra leaves in a sweep's folder
NOTE = ".failed"  # in a job's folder, why it could not run: launchers hand on what is returned, Hydra does not
LAUNCHER = "hydra/launcher"
HERE = ("basic", "joblib", "submitit_local")  # launchers whose jobs find this machine's devices


@dataclass(frozen=True)
class SweepResult:
    """A sweep's folder, the finished runs in it, and what the other jobs ended with."""

    folder: Path
    runs: list[Path]
    failed: list[str]


def sweep(overrides: Sequence[str], config_dir: Path | None) -> SweepResult:
    """Run every combination, all checked before the first. A job that fails does not keep the others from running.

    Raises KeyboardInterrupt with the folder once that is written to.
    """
    with translate_errors(overrides, config_dir):
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    jobs = [compose_run(job, config_dir) for job in _list_jobs(parsed)]  # before torch is imported, which takes seconds
    if swept := expand_sweep(jobs[0].sweep, overrides):
        return sweep([*overrides, *swept], config_dir)
    from specbench.setup.objects import check_nodes

    launcher = next((one.get_value_string() for one in parsed if one.key_or_group == LAUNCHER), "basic")
    for job in jobs:
        check_nodes(job, here=launcher in HERE)
    folder = _choose_folder(parsed)
    if folder.exists() and not (folder.is_dir() and ((folder / MARK).exists() or not any(folder.iterdir()))):
        raise InputError(f"out={folder}: expected a sweep's folder, an empty one or a new one")
    own = [f"hydra.sweep.dir={_quote(str(folder.resolve()))}", *_name_folders(parsed, len(jobs))]
    extra = ["--config-dir", str(config_dir.resolve())] if config_dir else []
    sys.argv = ["specbench", "--multirun", *overrides, *own, *extra]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's only way not to print tracebacks and exit by itself
    failed = _launch(launcher, folder, overrides, config_dir)
    return SweepResult(folder, find_runs(folder), failed)


def _launch(launcher: str, folder: Path, overrides: Sequence[str], config_dir: Path | None) -> list[str]:
    """Hydra's own sweep, of what sys.argv holds; a line for each job that failed."""
    for note in folder.rglob(NOTE):
        note.unlink()
    lost = []
    try:
        with translate_errors(overrides, config_dir):
            _run_job()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(folder) from None
    except Exception as error:
        if launcher == "basic" or isinstance(error, InputError):
            raise
        first, _, _ = str(error).partition("\n")  # the launcher's own, or of a job that was killed, with its log behind
        lost = [f"{LAUNCHER}={launcher}: {type(error).__name__}: {first}"]
    return [f"{note.parent.name}: {note.read_text(encoding='utf-8')}" for note in sorted(folder.rglob(NOTE))] + lost


def expand_sweep(swept: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The overrides that a config's `sweep` stands for; what the command line gives itself is not swept. Raises InputError."""
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    found = []
    for key, values in _flatten(swept):
        if not isinstance(values, list) or not values or any(not isinstance(value, (str, int, float)) for value in values):
            raise InputError(f"sweep.{key}={values}: expected a list of values")
        if key not in given:
            found.append(f"{key}={','.join(map(str, values))}")
    return found


def check_single_run(settings: RunSettings, overrides: Sequence[str], command: str) -> None:
    """Raises InputError for a sweep, where a command is about one run."""
    if swept := expand_sweep(settings.sweep, overrides):
        once = [choices.partition(",")[0] for choices in swept]
        raise InputError(f"{' '.join(swept)}: {command} is about one run; expected one value, such as {' '.join(once)}")


def _flatten(swept: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values: sweep.target.dtype=[…] on the command line makes a mapping of mappings."""
    for key, value in swept.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _run_job(config: Any) -> None:
    """One job, here or wherever a launcher has sent it."""
    from specbench.running.execute import execute
    from specbench.running.progress import ProgressDisplay

    runtime = HydraConfig.get().runtime
    for source in runtime.config_sources:
        if source.provider == "command-line":
            add_import_path(Path(source.path))
    out = runtime.output_dir
    try:
        with ProgressDisplay(Console()) as display:
            execute(parse_job(config, out), display)
    except (InputError, OSError) as error:
        write_atomic(Path(out) / NOTE, " ".join(str(error).split()))


def _list_jobs(parsed: Sequence[Override]) -> list[list[str]]:
    """The overrides of each job, as Hydra's own sweeper combines them; a range is left to whichever sweeper was asked for."""
    choices = []
    for one in parsed:
        if one.is_discrete_sweep():
            choices.append([f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()])
        elif not one.is_sweep_override():
            choices.append([str(one.input_line)])
    return [list(job) for job in product(*choices)]


def _choose_folder(parsed: Sequence[Override]) -> Path:
    given = [one for one in parsed if one.key_or_group == "out"]
    if any(one.is_sweep_override() for one in given):
        raise InputError(f"{given[0].input_line}: expected one folder; each job of -m gets its own inside")
    value = given[-1].value() if given else None
    return Path(str(value)).expanduser() if value is not None else Path("results") / f"sweep-{time.strftime('%Y%m%d-%H%M%S')}"


def _name_folders(parsed: Sequence[Override], jobs: int) -> list[str]:
    """A job's folder is called after what it does not share with the others; by number where that would be a path, or nothing."""
    if jobs == 1 or any("/" in one.get_value_string() for one in parsed if one.is_sweep_override()):
        return ["hydra.sweep.subdir=${hydra.job.num}"]
    shared = ",".join(_quote(one.key_or_group) for one in parsed if not one.is_sweep_override())
    return [
        "hydra.sweep.subdir=${hydra.job.override_dirname}",
        f"hydra.job.config.override_dirname.exclude_keys=[{shared}]",
    ]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"
