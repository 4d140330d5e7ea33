"""specbench compared with other engines on the same weights and token ids: decoding speed, greedy, one prompt at a time.

    python -m benchmarks.peers [--shape 100m] [--dtype bfloat16] [--model FOLDER] [--out FOLDER] [KEY=VALUE ...]

Engines: specbench, transformers' generate, llama.cpp, OpenVINO GenAI. Methods: autoregressive, sps (8 draft tokens), pld (copies
up to 10 tokens after an n-gram of at most 3). Two prompts per task of the mini suite. All are decoded once to warm up. Then arms
(a method on an engine) take turns, prompt by prompt, in two rounds. docs/peers.md has the rest.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.embedded import exit_with
from benchmarks.peers.arms import METHODS, Job, Opener
from benchmarks.peers.contest import Contest
from benchmarks.peers.llama_cpp import open_llama_cpp
from benchmarks.peers.openvino import open_openvino
from benchmarks.peers.own import open_native, open_transformers
from benchmarks.peers.results import HEADER, OWN, build_rows, format_row, write_results
from specbench.cli.output import console, print_lines, widen_console
from specbench.cli.parser import Parser
from specbench.errors import InputError, suggest_choices, warn
from specbench.exchange.gguf_layout import OUTPUT_BIAS
from specbench.machine.locks import lock_devices
from specbench.records.names import make_file_name
from specbench.records.trial import BASELINE
from specbench.setup.compose import compose_run
from specbench.setup.objects import build_sampling, check_nodes, check_threads, load_target
from specbench.setup.provenance import collect_provenance
from specbench.setup.questions import open_suite, select_questions

ENGINES: dict[str, Opener] = {
    OWN: open_native,
    "transformers": open_transformers,
    "llama.cpp": open_llama_cpp,
    "OpenVINO": open_openvino,
}
SET_BY_OPTIONS = {
    "method": "--methods",
    "engine": "--engines",
    "limit": "--limit",
    "threads": "--threads",
    "target.dtype": "--dtype",
    "sampling.max_new_tokens": "--tokens",
    "out": "--out",
}
PACKAGES = {"llama.cpp": ("gguf", "xllamacpp"), "OpenVINO": ("gguf", "openvino_genai")}


def parse_names(text: str) -> list[str]:
    """Parse an option such as sps,pld. Raises ArgumentTypeError."""
    names = [name for name in text.split(",") if name]
    if not names:
        raise argparse.ArgumentTypeError("expected a name or several, such as sps,pld")
    return names


def check_binary(path: Path) -> str:
    """Return the path as text. Raises InputError."""
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise InputError(f"--llama-binary {path}: expected a program, llama.cpp's llama-server")
    return str(path.resolve())


def parse_arguments() -> argparse.Namespace:
    parser = Parser("peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="further settings of a run")
    parser.add_argument("--shape", default="100m", help="of the embedded target; default: 100m")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--model", metavar="FOLDER", help="another target instead, only autoregressive")
    parser.add_argument("--engines", type=parse_names, default=list(ENGINES), metavar="A,B", help=", ".join(ENGINES))
    parser.add_argument("--methods", type=parse_names, default=list(METHODS), metavar="A,B", help=", ".join(METHODS))
    parser.add_argument("--limit", type=int, default=2, help="prompts per task; default: 2")
    parser.add_argument("--tokens", type=int, help="per answer, at most; default: as in a run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-binary", type=Path, metavar="PATH", help="a llama-server instead of llama.cpp's wheel")
    parser.add_argument("--out", type=Path, default=Path("reports/reference/peers"))
    options = parser.parse_intermixed_args()
    check_words(options.overrides)
    for name, known in (("engines", [*ENGINES]), ("methods", [*METHODS])):
        for given in getattr(options, name):
            if given not in known:
                raise InputError(f"--{name} {given}: expected some of {suggest_choices(given, known)}")
    options.llama_binary = check_binary(options.llama_binary) if options.llama_binary else None
    check_counts(options)
    check_threads(options.threads)
    return options


def create_folder(out: Path) -> None:
    """Raise InputError, before anything is timed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from None


def check_counts(options: argparse.Namespace) -> None:
    """Raise InputError."""
    if min(options.limit, options.rounds) < 1:
        raise InputError("--limit and --rounds: expected 1 or more")
    if options.tokens is not None and options.tokens < 2:
        raise InputError("--tokens: expected 2 or more, as prefill gives the first")


def check_words(words: Sequence[str]) -> None:
    """Raise InputError for a setting of a run that is an option here."""
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        for name, option in SET_BY_OPTIONS.items():
            if key == name or key.startswith(f"{name}."):
                raise InputError(f"{word}: here this is set by {option}")


def compose_job(options: argparse.Namespace, folder: Path) -> Job:
    """Load the target and render the prompts. Raises InputError."""
    chosen = [f"target.shape={options.shape}"]
    if options.model:
        chosen = [f"target.path={options.model}", f"target.name={Path(options.model).resolve().name}", "target.draft=null"]
    fixed = ["target.device=cpu", f"target.dtype={options.dtype}", "suite=mini", f"limit={options.limit}", "engine=[native,hf]"]
    if options.tokens:
        fixed.append(f"sampling.max_new_tokens={options.tokens}")
    settings = compose_run(["target=mini", "method=[sps,pld]", *chosen, *fixed, *options.overrides])
    check_nodes(settings)
    if settings.sampling.temperature:
        raise InputError(f"sampling.temperature={settings.sampling.temperature}: engines are compared greedily")
    target = load_target(settings.target)
    questions = select_questions(settings, open_suite(settings), settings.limit)
    biased = OUTPUT_BIAS in target.model.model.state_dict()
    methods, notes = tuple(name for name in METHODS if name in options.methods), []
    if biased:
        notes.append("GGUF has no place for the bias on this target's output: engines that read it may write different texts")
    if (biased or options.model) and methods != (BASELINE,):
        notes.append(
            "only autoregressive: " + ("drafts might meet different texts" if biased else "--model is compared without drafts")
        )
        methods = (BASELINE,)
    sampling = build_sampling(settings.sampling, target)
    prompts = [target.render_first_prompt(question) for question in questions]
    return Job(settings, target, methods, prompts, sampling, folder, options.out, options.llama_binary, not biased, notes)


def list_packages(engine: str, llama_binary: str | None) -> tuple[str, ...]:
    """Return the packages that an engine needs."""
    return tuple(one for one in PACKAGES.get(engine, ()) if not (llama_binary and one == "xllamacpp"))


def list_engines(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the chosen engines whose packages are here, and a notice for each of the others."""
    needed = {name: list_packages(name, options.llama_binary) for name in options.engines}
    missing = {name: [one for one in packages if find_spec(one) is None] for name, packages in needed.items()}
    notices = [
        f"{name} is left out: {' and '.join(packages)} missing; pip install -e '.[peers]'"
        for name, packages in missing.items()
        if packages
    ]
    return [name for name, packages in missing.items() if not packages], notices


def describe_run(options: argparse.Namespace, job: Job, names: list[str]) -> dict[str, Any]:
    target = job.settings.target
    about = {"target": target.name, "shape": target.shape, "dtype": job.target.model.dtype_name, "rounds": options.rounds}
    about |= {"max_new_tokens": job.sampling.max_new_tokens, "notes": job.notes}
    packages = {package for name in names for package in list_packages(name, job.llama_binary)}
    about["peers"] = {package: version(package) for package in sorted(packages)}
    return about | collect_provenance(job.target.model.device)


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    names, notices = list_engines(options)
    for notice in notices:
        warn(notice)
    if not names:
        raise InputError("no engine is left to compare")
    create_folder(options.out)
    with ExitStack() as stack:
        stack.enter_context(lock_devices(["cpu"], warn))
        job = compose_job(options, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="specbench-peers-"))))
        arms = [arm for name in names for arm in ENGINES[name](job, stack)]
        contest = Contest(job, arms)
        contest.run(options.rounds)
        job.notes.extend(contest.find_notes())
        about, rows = describe_run(options, job, names), build_rows(contest.turns)
    parts = (about["target"], about["shape"], about["dtype"])
    title = f"Decoding speed of engines, {', '.join(filter(None, parts))}"
    files = write_results(options.out / make_file_name("-".join(filter(None, parts))), about, contest.turns, rows, title)
    widen_console()
    table = Table(*HEADER, title=title)
    for row in rows.to_dict("records"):
        table.add_row(*format_row(row))  # type: ignore[arg-type]
    console.print(table)
    print_lines(*job.notes, f"in {files[0].parent}")
    return 0


if __name__ == "__main__":
    exit_with(main)
