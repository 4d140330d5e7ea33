"""Does `specbench compare` sleep, or cry wolf? Two checkouts take turns in one run, again and again: equal ones, and slowed ones.

    python -m benchmarks.regression [--equal N] [--slow N] [--loop N] [--out FOLDER] [KEY=VALUE ...]

The slowed checkouts are this one with a busy wait planted: in `pld`'s drafting, or in the decode loop that all methods share;
each as long as it takes to make `pld`, or autoregressive decoding, 5 % slower here. A slowed checkout is the new one, this one
the reference. Runs that lie in FOLDER are not made again. The last table says how often each ratio failed, and how far it
scatters from run to run beyond what its questions explain; then the same of POOLED runs as if they were one.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from specbench import ROOT
from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import format_csv
from specbench.cli.parser import console
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
PLACES = {  # file, and the line behind which the wait is planted
    "slow": ("methods/pld.py", "    def draft(self, state: NgramIndex, budget: int) -> DraftTree:\n"),
    "loop": ("specbench/decoding/loop.py", "    t0 = clock.now()\n"),
}


def waits(out: Path, chosen: Sequence[str]) -> dict[str, float]:
    """Seconds a step that make a method slower by SLOWED, from a short run."""
    pilot = out / "pilot"
    if not RunDirectory(pilot).is_run():
        with ProgressDisplay(console) as display:
            execute(compose_run([*chosen, "limit=1", f"out={pilot}"]), display)
    sums = read_run(pilot).frame.groupby("method")[["seconds", "steps"]].sum()
    per_step = (1 / (1 - SLOWED) - 1) * sums["seconds"] / sums["steps"]
    return {"equal": 0.0, "slow": float(per_step["pld"]), "loop": float(per_step[BASELINE])}


def planted(folder: Path, kind: str, seconds: float) -> Path:
    """A copy of this checkout with a busy wait in it."""
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


def beside(root: Path, out: Path, seed: int, chosen: Sequence[str]) -> Comparison:
    """The planted checkout is the new one: it runs as the engine beside, and the sides are exchanged."""
    if not (out / "summary.csv").exists():
        config = compose_run([*chosen, f"seed={seed}", f"out={out}", f"engine=[native,{REFERENCE_ENGINE}]"])
        other = [word for word in chosen if not word.startswith("limit=")]
        config = config.with_engine(REFERENCE_ENGINE, root=str(root), overrides=other)
        with ProgressDisplay(console) as display:
            execute(config, display)
    return compare_checkouts(out, exchanged=True)


def scatter(changes: Sequence[Change]) -> tuple[float, float]:
    """Of one ratio: SD over runs of log(new / reference), and what the questions inside the runs explain of it."""
    logs = np.log([one.ratio.estimate for one in changes])
    return float(logs.std(ddof=1)), float(np.sqrt(np.mean([one.over_questions for one in changes])))


def pooled(runs: Sequence[Path]) -> list[Change]:
    """The runs as if they were one, of all their questions."""
    found = []
    for method in METHODS:
        ratios = {run.name: compute_log_ratios(read_run(run), f"{method}@{REFERENCE_ENGINE}", method) for run in runs}
        found.append(estimate_paired_change(f"{method}@{REFERENCE_ENGINE} over {method}", pd.concat(ratios), len(METHODS)))
    return found


def rows(found: Mapping[str, Sequence[Sequence[Change]]]) -> pd.DataFrame:
    """A row a kind of runs and ratio; shares and standard deviations in logarithms."""
    made = []
    for kind, comparisons in found.items():
        for changes in zip(*comparisons, strict=True):
            verdicts = [one.verdict for one in changes]
            counts = {verdict: verdicts.count(verdict) for verdict in ("fail", "undecided", "pass")}
            over_runs, of_questions = scatter(changes) if len(changes) > 1 else (np.nan, np.nan)
            mean = float(np.exp(np.mean(np.log([one.ratio.estimate for one in changes]))))
            about = {"new_version": kind, "ratio": changes[0].what, "questions": changes[0].questions, "new_over_reference": mean}
            made.append({**about, **counts, "sd_over_runs": over_runs, "sd_of_questions": of_questions})
    return pd.DataFrame(made)


def told(found: pd.DataFrame) -> Table:
    shown = Table(*found.columns)
    for row in found.itertuples(index=False):
        shown.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
    return shown


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
    found: dict[str, list[Comparison]] = {kind: [] for kind in times}
    runs = {kind: [options.out / f"{kind}-{seed}" for seed in range(count)] for kind, count in times.items()}
    roots = {kind: planted(options.out.resolve() / "versions", kind, wait) for kind, wait in waits(options.out, chosen).items()}
    for kind, paths in runs.items():
        for seed, path in enumerate(paths):
            found[kind].append(beside(roots[kind], path, seed, chosen))
            verdicts = {one.what: f"{one.ratio.estimate:.3f} {one.verdict}" for one in found[kind][-1].changes}
            console.print(kind, seed, verdicts, highlight=False)
    groups = {kind: [paths[at : at + POOLED] for at in range(0, len(paths), POOLED)] for kind, paths in runs.items()}
    together = {f"{kind}, {POOLED} runs as one": [pooled(group) for group in parts] for kind, parts in groups.items()}
    table = rows({kind: [one.changes for one in comparisons] for kind, comparisons in found.items()} | together)
    console.print(told(table))
    write_atomic(options.out / "regression.csv", format_csv(table))


if __name__ == "__main__":
    main()
