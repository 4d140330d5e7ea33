"""The commands about bundles of finished runs: submit, verify, leaderboard."""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.cli.output import Result
from specbench.cli.parser import Command, Parser, parse_folder
from specbench.errors import InputError

if TYPE_CHECKING:
    from specbench.analysis.loaded_run import LoadedRun
    from specbench.replay.recorded_counts import CountCheck

UNPROVEN = "not proven: that the times were measured as recorded; only that they were not changed after the bundle was made"


def add_submit_options(parser: Parser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--out", type=parse_folder, metavar="FILE", help="default: exports/<name of RUN>.zip")
    parser.add_argument("--without-texts", action="store_true", help="hashes in place of texts, whatever the suite's licence")


def submit(options: Namespace) -> Result:
    """Write a finished run as one file that others can check (specbench verify)."""
    from specbench.bundles.submit import write_bundle
    from specbench.records.names import make_file_name
    from specbench.report.alarm import Alarm
    from specbench.setup.fingerprints import hash_shared_code

    out = options.out or Path("exports") / f"{make_file_name(options.run.resolve().name)}.zip"
    manifest = write_bundle(options.run, out, hash_shared_code(), options.without_texts)
    alarms = [str(Alarm(**one)) for one in manifest["alarms"] if one["level"] == "alarm"]
    held = "prompts and answers are kept" if manifest["texts"] == "kept" else "hashes are kept in place of prompts and answers"
    shown = [*alarms, f"{len(manifest['files'])} files; {held}", f"bundle: {out}; specbench verify {out}"]
    return Result({"bundle": out, "claims": manifest}, shown)


def add_verify_options(parser: Parser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")


def verify(options: Namespace) -> Result:
    """Check that a bundle holds what it claims (exit status 1 if not)."""
    from specbench.bundles.verify import ClaimError, check_bundle, open_bundle
    from specbench.replay.recorded_counts import check_counts

    document = {"bundle": options.bundle}
    with open_bundle(options.bundle) as bundle:
        try:
            run, held = check_bundle(bundle)
            counts = check_counts(run, bundle.read_prompts())
            if failed := next((one for one in counts if one.failed), None):
                raise ClaimError(f"{options.bundle}: {failed}")
        except ClaimError as problem:
            return Result({**document, "holds": False, "problem": str(problem)}, [str(problem)], status=1)
    replayed = [{"method": one.method, "turns": one.turns, "why_not": one.why or None} for one in counts]
    shown = [*held, *_describe_counts(counts), UNPROVEN, f"{options.bundle}: its claims hold"]
    return Result({**document, "holds": True, "held": held, "replayed": replayed, "claims": bundle.manifest}, shown)


def _describe_counts(counts: "Iterable[CountCheck]") -> list[str]:
    """Return a line for each replayed method, and one for all that cannot be replayed for the same reason."""
    lines, obstacles = [], dict[str, list[str]]()
    for one in counts:
        if one.why:
            obstacles.setdefault(one.why, []).append(one.method)
        else:
            lines.append(str(one))
    return lines + [f"not replayed: {', '.join(methods)}: {why}" for why, methods in obstacles.items()]


def add_leaderboard_options(parser: Parser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN_OR_BUNDLE", help="or a folder of runs, such as a sweep's")
    parser.add_argument("--out", type=parse_folder, default=Path("reports/leaderboard"), help="default: reports/leaderboard")


def leaderboard(options: Namespace) -> Result:
    """Render runs and bundles of several machines as one page; only comparable rows are ranked."""
    from specbench.leaderboard.page import write_leaderboard

    board = write_leaderboard(_read_all(options.paths), options.out)
    return Result({"page": board.page, "rows": board.records}, [*board.lines, f"page: {board.page}"])


def _read_all(paths: Iterable[Path]) -> "list[LoadedRun]":
    """Read runs, folders of runs and bundles; folders of certificates are skipped. Raises InputError for anything else."""
    from specbench.analysis.loaded_run import read_run
    from specbench.bundles.verify import ClaimError, add_own_certificates, check_bundle, open_bundle
    from specbench.records.run_directory import find_runs

    runs = []
    for path in paths:
        if not path.is_dir():
            with open_bundle(path) as bundle:
                try:
                    runs.append(add_own_certificates(bundle, check_bundle(bundle)[0]))
                except ClaimError as problem:
                    raise InputError(str(problem)) from None
        elif (path / "config.yaml").is_file():
            runs.append(read_run(path))
        elif found := find_runs(path):
            runs += map(read_run, found)
        elif not any(path.glob("*/certificate.json")) and not (path / "certificate.json").is_file():
            raise InputError(f"{path}: neither a run, nor a folder of runs or certificates, nor a bundle")
    return runs


COMMANDS = (
    Command("submit", submit, "results/my-run", add_submit_options),
    Command("verify", verify, "exports/my-run.zip", add_verify_options),
    Command("leaderboard", leaderboard, "results/my-run exports/other.zip", add_leaderboard_options),
)
