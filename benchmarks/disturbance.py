"""Do disturbed runs report what quiet ones do? Plants busy processes into the last pass of runs, and compares.

    python -m benchmarks.disturbance [--quiet N] [--planted N] [--busy N] [--seconds S] [--out FOLDER] [KEY=VALUE ...]

Without settings the runs are those of `make bench`. Each is a process of its own, and the busy ones are none of its children.
Runs already in FOLDER are not repeated. The tables show each run with its marked turns, /proc/pressure/cpu and steal time (a
quiet run tells about false marks only if both are below 1 %); each speedup and the width of its interval, relative to those of
the same run's passes before the last one, with and without the blocks measured again, and to the quiet runs' mean; and the
counters during the turns of quiet runs, as a share, next to the bound. All turns' counters are in each run's signals.csv.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import psutil

from benchmarks.embedded import build_table, check_complete
from specbench import ROOT
from specbench.analysis.loaded_run import LoadedRun, read_run
from specbench.analysis.metrics import build_trial_frame
from specbench.analysis.summary import summarise
from specbench.cli.output import console, widen_console
from specbench.machine.load import SHARE, Load, LoadMeter
from specbench.records.files import write_atomic
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE, OVERALL, Trial
from specbench.report.alarms import find_alarms
from specbench.running.execute import execute
from specbench.running.progress import ProgressDisplay
from specbench.setup.compose import compose_run

BENCH = ("target.shape=100m", "suite=mini", "limit=4", "repeats=3", "method=[pld,sps,eagle2]")
BUSY = "import time; end = time.monotonic() + {}\nwhile time.monotonic() < end: pass"  # it ends whichever process is killed
PRESSURE = Path("/proc/pressure/cpu")
SIGNALS = "signals.csv"
CORES, TIME = ("others", "stolen"), ("waited", "still")  # what is a share of the cores, and of the time


def execute_logged(overrides: Sequence[str], out: Path) -> None:
    """Execute a run and write all counters of its turns, in the order of trials.jsonl."""
    loads: list[Load] = []

    class LoggingMeter(LoadMeter):
        def stop(self, in_process: bool = True) -> Load:
            loads.append(super().stop(in_process))
            return loads[-1]

    with patch("specbench.running.harness.LoadMeter", LoggingMeter), ProgressDisplay() as display:
        execute(compose_run([*overrides, f"out={out}"]), display)
    trials = RunDirectory(check_complete(out)).read_attempts()
    names = ("method", "repeat", "question_id", "turn", "attempt", "seconds")
    rows = [
        {f"turn_{name}": getattr(trial, name) for name in names} | asdict(load) for trial, load in zip(trials, loads, strict=True)
    ]
    write_atomic(out / SIGNALS, pd.DataFrame(rows).to_csv(index=False))


def read_idle_signs() -> tuple[float, float, float]:
    """Return seconds: now, stalled by the pressure on the cores, and stolen from all cores, so far."""
    lines = PRESSURE.read_text().splitlines() if PRESSURE.exists() else []
    stalled = [int(line.rpartition("total=")[2]) / 1e6 for line in lines if line.startswith("some")]
    return time.perf_counter(), sum(stalled) if stalled else np.nan, getattr(psutil.cpu_times(), "steal", np.nan)


def run_child(overrides: Sequence[str], out: Path, busy: int, seconds: float) -> None:
    """Run in a separate process, with busy processes next to it from the first turn of the last pass on."""
    if (out / "summary.csv").exists():
        return
    command = [sys.executable, "-m", "benchmarks.disturbance", "--execute", "--out", str(out), *overrides]
    repeats, planted = compose_run(overrides).repeats, False
    before = read_idle_signs()
    with subprocess.Popen(command, cwd=ROOT) as child:
        while child.poll() is None:
            time.sleep(0.5)
            if busy and not planted and is_last_pass(out, repeats):
                planted = True
                plant(busy, seconds)
    if child.returncode:
        sys.exit(f"{out}: exit status {child.returncode}")
    passed, stalled, stolen = np.subtract(read_idle_signs(), before)
    signs = {"pressure": stalled / passed, "steal": stolen / passed / (psutil.cpu_count() or 1), "planted": planted}
    write_atomic(out / "idle.json", json.dumps(signs))


def is_last_pass(out: Path, repeats: int) -> bool:
    """Return whether a run has written a turn of its last pass."""
    trials = out / "trials.jsonl"
    return trials.exists() and f'"repeat":{repeats - 1},' in trials.read_text(encoding="utf-8")


def plant(busy: int, seconds: float) -> None:
    for process in [subprocess.Popen([sys.executable, "-c", BUSY.format(seconds)]) for _ in range(busy)]:
        process.wait()


def describe_run(path: Path) -> dict[str, Any]:
    """Return the row of a run: how quiet the machine was, and its marked turns. marked: share of all first attempts."""
    run = read_run(path)
    firsts = [one for one in run.attempts if one.attempt == 1]
    marked = [one for one in firsts if (one.key, 1) in run.disturbed]
    signs = json.loads((path / "idle.json").read_text())
    again = {one.block for one in run.attempts if one.attempt > 1}
    said = [alarm.level for alarm in find_alarms(run, summarise(run)) if "disturbed" in alarm.message]
    return {
        "run": path.name,
        "pressure_%": 100 * signs["pressure"],
        "steal_%": 100 * signs["steal"],
        "turns": len(firsts),
        "marked": len(marked),
        "marked_in_last_pass": sum(one.repeat == max(other.repeat for other in firsts) for one in marked),
        "marked_%": 100 * len(marked) / len(firsts),
        "blocks_again": len(again),
        "still_disturbed": sum((one.key, one.attempt) in run.disturbed for one in run.trials),
        "report": ", ".join(said) or "silent",
    }


def measure_speedups(run: LoadedRun, trials: list[Trial]) -> pd.DataFrame:
    """Return, by method, the overall speedup in some of a run's turns, and the logarithmic width of its interval."""
    summary = summarise(replace(run, trials=trials, frame=build_trial_frame(trials)))
    rows = summary[(summary["task"] == OVERALL) & (summary["method"] != BASELINE)].set_index("method")
    return pd.DataFrame({"speedup": rows["speedup"], "width": np.log(rows["speedup_high"] / rows["speedup_low"])})


def compare_passes(path: Path) -> pd.DataFrame:
    """Return a row per method: all passes over the passes before the last one, as measured and with only first attempts."""
    run = read_run(path)
    last = max(trial.repeat for trial in run.trials)
    earlier = measure_speedups(run, [trial for trial in run.trials if trial.repeat < last])
    counted = measure_speedups(run, run.trials)
    first = measure_speedups(run, [trial for trial in run.attempts if trial.attempt == 1])
    table = pd.DataFrame({"run": path.name, "speedup": counted["speedup"], "width": counted["width"]})
    for name, found in (("", counted), ("first_attempts_", first)):
        table[f"{name}over_earlier"] = found["speedup"] / earlier["speedup"]
        table[f"{name}width_over_earlier"] = found["width"] / earlier["width"]
    return table.reset_index()


def compare_runs(quiet: Sequence[Path], planted: Sequence[Path]) -> pd.DataFrame:
    """Return compare_passes of each run, and its speedups and widths over the quiet runs' geometric means."""
    table = pd.concat([compare_passes(path) for path in [*quiet, *planted]], ignore_index=True)
    known = table[table["run"].isin([path.name for path in quiet])].set_index("method")[["speedup", "width"]]
    mean = known.apply(np.log).groupby(level="method").mean().apply(np.exp)
    for name in ("speedup", "width"):
        table[f"{name}_over_quiet"] = table[name] / table["method"].map(mean[name])
    return table.drop(columns="width")


def summarise_signals(paths: Sequence[Path]) -> pd.DataFrame:
    """Return quantiles over turns of each counter, as a share of the cores or of the time."""
    turns = pd.concat([pd.read_csv(path / SIGNALS) for path in paths])
    whole = dict.fromkeys(CORES, turns["cores"] * turns["seconds"]) | dict.fromkeys(TIME, turns["seconds"])
    rows = []
    for name, of in whole.items():
        shares = (turns[name] / of).dropna()
        if len(shares):
            rows.append((name, *(float(shares.quantile(q)) for q in (0.5, 0.9, 0.99, 1.0)), SHARE))
    return pd.DataFrame(rows, columns=["counter", "p50", "p90", "p99", "max", "bound"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quiet", type=int, default=3)
    parser.add_argument("--planted", type=int, default=3)
    parser.add_argument("--busy", type=int, default=3, help="busy processes; default: 3")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long they are busy; default: 20")
    parser.add_argument("--out", type=Path, default=Path("results/disturbance"), metavar="FOLDER")
    parser.add_argument("--execute", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.execute:
        return execute_logged(options.overrides, options.out)
    overrides = options.overrides or BENCH
    quiet = [options.out / f"quiet-{number}" for number in range(options.quiet)]
    planted = [options.out / f"planted-{number}" for number in range(options.planted)]
    for path in [*quiet, *planted]:
        run_child(overrides, path, options.busy if path in planted else 0, options.seconds)
    widen_console()
    console.print(build_table(pd.DataFrame([describe_run(path) for path in [*quiet, *planted]]), "Marked turns"))
    if quiet:
        table = compare_runs(quiet, planted)
        write_atomic(options.out / "disturbance.csv", table.to_csv(index=False))
        console.print(
            build_table(table, "Speedups and widths of intervals over those of the run's earlier passes, and of quiet runs")
        )
        console.print(build_table(summarise_signals(quiet), "Counters during turns of quiet runs, as shares"))


if __name__ == "__main__":
    main()
