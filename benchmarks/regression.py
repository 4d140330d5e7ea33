"""Does `specbench compare` sleep, or cry wolf? Two checkouts take turns in one run, again and again: equal ones, and slowed ones.

    python -m benchmarks.regression [--equal N] [--slow N] [--loop N] [--out FOLDER] [KEY=VALUE ...]

The slowed checkouts are this one with a busy wait planted: in `pld`'s drafting, or in the decode loop that all methods share;
each 5 % of what a step takes here. A slowed checkout is the new one, this one the reference. Runs that lie in FOLDER are not made
again.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from specbench import ROOT
from specbench.compare.comparison import BESIDE, Comparison, compared_beside
from specbench.compose import composed
from specbench.metrics import time_split
from specbench.parsing import console
from specbench.progress import ProgressDisplay
from specbench.records import RunDirectory, write_atomic
from specbench.report.loaded import load
from specbench.run import execute

SHARE = 0.05
CHOSEN = ("target.shape=100m", "method=[pld,sps]", "repeats=2", "check_baseline=false")
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


def step_seconds(out: Path, chosen: Sequence[str]) -> dict[str, float]:
    """Seconds of a step by method, from a short profiled run."""
    pilot = out / "pilot"
    if not RunDirectory(pilot).is_run():
        with ProgressDisplay(console) as display:
            execute(composed([*chosen, "limit=1", "profile=true", f"out={pilot}"]), display)
    split = time_split(load(pilot).frame).set_index("method")
    return {str(method): 1e-3 * milliseconds for method, milliseconds in split["step_ms"].items()}


def planted(folder: Path, kind: str, seconds: float) -> Path:
    """A copy of this checkout with a busy wait in it."""
    root = folder / kind
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
        config = composed([*chosen, f"seed={seed}", f"out={out}", f"engine=[native,{BESIDE}]"])
        OmegaConf.update(config, f"engine.{BESIDE}.root", str(root))
        OmegaConf.update(config, f"engine.{BESIDE}.overrides", [word for word in chosen if not word.startswith("limit=")])
        with ProgressDisplay(console) as display:
            execute(config, display)
    return compared_beside(out, exchanged=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--equal", type=int, default=20)
    parser.add_argument("--slow", type=int, default=20)
    parser.add_argument("--loop", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/regression"), metavar="FOLDER")
    parser.add_argument("overrides", nargs="*", default=["limit=2"], metavar="KEY=VALUE")
    options = parser.parse_args()
    chosen = [*CHOSEN, *options.overrides]
    seconds = step_seconds(options.out, chosen)
    waits = {"equal": 0.0, "slow": SHARE * seconds["pld"], "loop": SHARE * seconds["autoregressive"]}
    found: dict[str, list[Comparison]] = {kind: [] for kind in waits}
    with tempfile.TemporaryDirectory() as folder:
        roots = {kind: planted(Path(folder), kind, wait) for kind, wait in waits.items()}
        for kind, times in (("equal", options.equal), ("slow", options.slow), ("loop", options.loop)):
            for seed in range(times):
                found[kind].append(beside(roots[kind], options.out / f"{kind}-{seed}", seed, chosen))
                told = {one.what: f"{one.ratio.estimate:.3f} {one.verdict}" for one in found[kind][-1].changes}
                console.print(kind, seed, told, highlight=False)
    for kind, comparisons in found.items():
        console.print(f"{kind}: {sum(one.failed for one in comparisons)} of {len(comparisons)} failed")
    plain = {kind: [asdict(one) | {"failed": one.failed} for one in comparisons] for kind, comparisons in found.items()}
    write_atomic(options.out / "regression.json", json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
