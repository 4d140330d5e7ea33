"""The commands about bundles of finished runs: submit, verify, leaderboard."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbench.cli.parser import Parser, parse_folder, print_lines
from specbench.errors import InputError, warn

if TYPE_CHECKING:
    from specbench.analysis.loaded_run import LoadedRun
    from specbench.replay.recorded_counts import CountCheck

UNPROVEN = "not proven: that the times were measured as they stand; only that they were not changed after the bundle was made"


def submit(argv: list[str]) -> int:
    """Write a finished run as one file that others can check (specbench verify)."""
    parser = Parser(prog="specbench submit", description=submit.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--out", type=parse_folder, metavar="FILE", help="default: exports/<name of RUN>.zip")
    parser.add_argument("--without-texts", action="store_true", help="hashes in place of texts, whatever the suite's licence")
    options = parser.parse_args(argv)
    from specbench.bundles.submit import write_bundle
    from specbench.records.names import make_file_name
    from specbench.report.alarm import Alarm
    from specbench.setup.fingerprints import hash_shared_code

    out = options.out or Path("exports") / f"{make_file_name(options.run.resolve().name)}.zip"
    manifest = write_bundle(options.run, out, hash_shared_code(), options.without_texts)
    alarms = [str(Alarm(**one)) for one in manifest["alarms"] if one["level"] == "alarm"]
    held = "prompts and answers are kept" if manifest["texts"] == "kept" else "hashes are kept in place of prompts and answers"
    print_lines(*alarms, f"{len(manifest['files'])} files; {held}", f"bundle: {out}; specbench verify {out}")
    return 0


def verify(argv: list[str]) -> int:
    """Check that a bundle holds what it claims (exit status 1 if not)."""
    parser = Parser(prog="specbench verify", description=verify.__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--json", action="store_true", help="one JSON document in place of lines")
    options = parser.parse_args(argv)
    from specbench.bundles.verify import ClaimError, check_bundle, open_bundle
    from specbench.replay.recorded_counts import check_counts

    with open_bundle(options.bundle) as bundle:
        try:
            run, held = check_bundle(bundle)
            counts = check_counts(run, bundle.read_prompts())
            if failed := next((one for one in counts if one.failed), None):
                raise ClaimError(f"{options.bundle}: {failed}")
        except ClaimError as problem:
            if options.json:
                _print_json({"bundle": str(options.bundle), "holds": False, "problem": str(problem)})
            warn(str(problem))
            return 1
    if options.json:
        replayed = [{"method": one.method, "turns": one.turns, "why_not": one.why or None} for one in counts]
        _print_json({"bundle": str(options.bundle), "holds": True, "held": held, "replayed": replayed, "claims": bundle.manifest})
        return 0
    print_lines(*held, *_describe_counts(counts), UNPROVEN, f"{options.bundle}: its claims hold")
    return 0


def _describe_counts(counts: "Iterable[CountCheck]") -> list[str]:
    """Return a line for each replayed method, and one for all that cannot be replayed for the same reason."""
    lines, obstacles = [], dict[str, list[str]]()
    for one in counts:
        if one.why:
            obstacles.setdefault(one.why, []).append(one.method)
        else:
            lines.append(str(one))
    return lines + [f"not replayed: {', '.join(methods)}: {why}" for why, methods in obstacles.items()]


def leaderboard(argv: list[str]) -> int:
    """Render runs and bundles of several machines as one page; only comparable rows are ranked."""
    parser = Parser(prog="specbench leaderboard", description=leaderboard.__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN_OR_BUNDLE", help="or a folder of runs, such as a sweep's")
    parser.add_argument("--out", type=parse_folder, default=Path("reports/leaderboard"), help="default: reports/leaderboard")
    parser.add_argument("--json", action="store_true", help="one JSON document in place of lines")
    options = parser.parse_args(argv)
    from specbench.leaderboard.page import write_leaderboard

    board = write_leaderboard(_read_all(options.paths), options.out)
    if options.json:
        _print_json({"page": str(board.page), "rows": board.records})
        return 0
    print_lines(*board.lines, f"page: {board.page}")
    return 0


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


def _print_json(document: dict[str, Any]) -> None:
    print_lines(json.dumps(document, ensure_ascii=False, allow_nan=False))
