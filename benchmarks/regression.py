"""Does `specbench compare` miss slowdowns, or cry wolf? Runs equal and slowed checkouts against this one, again and again.

    python -m benchmarks.regression [--equal N] [--slow N] [--loop N] [--out FOLDER] [KEY=VALUE ...]

A slowed checkout has a busy wait, in `pld`'s drafting or in the decode loop that all methods share, long enough to make `pld` or
autoregressive decoding 5 % slower. It is the new version, this checkout the reference. Runs already in FOLDER are not repeated.
The last table shows how often each ratio failed and how much it scatters between runs, beyond what its questions explain; then
the same for POOLED runs taken as one.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.embedded import build_table
from specbench import ROOT
from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import format_csv
from specbench.cli.output import console
from specbench.compare.comparison import REFERENCE_ENGINE, Comparison, compare_checkouts
from specbench.compare.gate import Change, estimate_paired_change
from specbench.compare.runs import compute_log_ratios
from specbench.records.files import write_atomic
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE
from specbench.running.execute import execute
from specbench.running.progress import ProgressDisplay
from specbench.setup.compose import compose_run

SLOWED = 0.05
POOLED = 5
METHODS = (BASELINE, "pld")
CHOSEN = ("method=[pld]", "repeats=2", "check_baseline=false")
COPIED = ("specbench", "methods", "tasks", "conf")
WAIT = (
    "    _until = __import__('time').perf_counter() + {seconds}",
    "    while __import__('time').perf_counter() < _until:",
    "        pass",
)
PLACES = {  # file, and the line after which the wait is planted
    "slow": ("methods/pld.py", "    def draft(self, state: NgramIndex, budget: int) -> DraftTree:\n"),
    "loop": ("specbench/decoding/loop.py", "    t0 = clock.now()\n"),
}


def measure_waits(out: Path, chosen: Sequence[str]) -> dict[str, float]:
    """Return the seconds per step that slow each kind by SLOWED, from a short run."""
    pilot = out / "pilot"
    if not RunDirectory(pilot).is_run():
        with ProgressDisplay() as display:
            execute(compose_run([*chosen, "limit=1", f"out={pilot}"]), display)
    sums = read_run(pilot).frame.groupby("method")[["seconds", "steps"]].sum()
    per_step = (1 / (1 - SLOWED) - 1) * sums["seconds"] / sums["steps"]
    return {"equal": 0.0, "slow": float(per_step["pld"]), "loop": float(per_step[BASELINE])}


def copy_checkout(folder: Path, kind: str, seconds: float) -> Path:
    """Copy this checkout with a busy wait in it."""
    root = folder / kind
    shutil.rmtree(root, ignore_errors=True)
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    if kind in PLACES:
        file, line = PLACES[kind]
        text = (root / file).read_text(encoding="utf-8")
        assert text.count(line) == 1
        indent = "    " * (kind == "slow")  # inside a class
        wait = "".join(f"{indent}{row.format(seconds=seconds)}\n" for row in WAIT)
        (root / file).write_text(text.replace(line, line + wait), encoding="utf-8")
    return root


def run_comparison(root: Path, out: Path, seed: int, chosen: Sequence[str]) -> Comparison:
    """Compare with the planted checkout as the new version: it runs as the other engine, and the sides are exchanged."""
    if not (out / "summary.csv").exists():
        config = compose_run([*chosen, f"seed={seed}", f"out={out}", f"engine=[native,{REFERENCE_ENGINE}]"])
        other = [word for word in chosen if not word.startswith("limit=")]
        config = config.with_engine(REFERENCE_ENGINE, root=str(root), overrides=other)
        with ProgressDisplay() as display:
            execute(config, display)
    return compare_checkouts(out, exchanged=True)


def measure_scatter(changes: Sequence[Change]) -> tuple[float, float]:
    """Return the SD over runs of one ratio's log(new / reference), and the part that questions explain."""
    logs = np.log([change.ratio.estimate for change in changes])
    return float(logs.std(ddof=1)), float(np.sqrt(np.mean([change.over_questions for change in changes])))


def pool_runs(runs: Sequence[Path]) -> list[Change]:
    """Compare over all questions of the runs, as if they were one."""
    changes = []
    for method in METHODS:
        ratios = {run.name: compute_log_ratios(read_run(run), f"{method}@{REFERENCE_ENGINE}", method) for run in runs}
        changes.append(estimate_paired_change(f"{method}@{REFERENCE_ENGINE} over {method}", pd.concat(ratios), len(METHODS)))
    return changes


def tabulate(results: Mapping[str, Sequence[Sequence[Change]]]) -> pd.DataFrame:
    """Return a row per kind of runs and ratio; standard deviations are of logarithms."""
    rows = []
    for kind, comparisons in results.items():
        for changes in zip(*comparisons, strict=True):
            verdicts = [change.verdict for change in changes]
            counts = {verdict: verdicts.count(verdict) for verdict in ("fail", "undecided", "pass")}
            over_runs, of_questions = measure_scatter(changes) if len(changes) > 1 else (np.nan, np.nan)
            mean = float(np.exp(np.mean(np.log([change.ratio.estimate for change in changes]))))
            about = {"new_version": kind, "ratio": changes[0].what, "questions": changes[0].questions, "new_over_reference": mean}
            rows.append({**about, **counts, "sd_over_runs": over_runs, "sd_of_questions": of_questions})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--equal", type=int, default=20)
    parser.add_argument("--slow", type=int, default=20)
    parser.add_argument("--loop", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/regression"), metavar="FOLDER")
    parser.add_argument("overrides", nargs="*", default=["limit=4"], metavar="KEY=VALUE")
    options = parser.parse_args()
    chosen = [*CHOSEN, *options.overrides]
    times = {"equal": options.equal, "slow": options.slow, "loop": options.loop}
    comparisons: dict[str, list[Comparison]] = {kind: [] for kind in times}
    runs = {kind: [options.out / f"{kind}-{seed}" for seed in range(count)] for kind, count in times.items()}
    roots = {
        kind: copy_checkout(options.out.resolve() / "versions", kind, wait)
        for kind, wait in measure_waits(options.out, chosen).items()
    }
    for kind, paths in runs.items():
        for seed, path in enumerate(paths):
            comparisons[kind].append(run_comparison(roots[kind], path, seed, chosen))
            verdicts = {c.what: f"{c.ratio.estimate:.3f} {c.verdict}" for c in comparisons[kind][-1].changes}
            console.print(kind, seed, verdicts, highlight=False)
    groups = {kind: [paths[start : start + POOLED] for start in range(0, len(paths), POOLED)] for kind, paths in runs.items()}
    pools = {f"{kind}, {POOLED} runs as one": [pool_runs(group) for group in parts] for kind, parts in groups.items()}
    table = tabulate({kind: [one.changes for one in made] for kind, made in comparisons.items()} | pools)
    console.print(build_table(table))
    write_atomic(options.out / "regression.csv", format_csv(table))


if __name__ == "__main__":
    main()
