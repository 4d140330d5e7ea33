"""A saved target small enough to run everywhere, and specbench's command line in this process."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pynvml
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from specbench.machine import nvml
from specbench.models.load import load_tokenizer
from specbench.setup.objects import EMBEDDED
from tests.quiet import build_quiet_meter, pack_large

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker per core
    torch.set_num_threads(1)
tempfile.tempdir = tempfile.mkdtemp(prefix="specbench-tests-")  # of this process: its runs wait for no other's device lock
atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.report.canvas.DPI", 30)


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No turn is disturbed, and a time that is far outside has no consequence, whoever else uses the machine."""
    monkeypatch.setattr("specbench.running.harness.LoadMeter", build_quiet_meter)
    monkeypatch.setattr("specbench.running.attempts.MORE_TIME", 0.0)


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """No forward is compiled, and no product chosen by its time, unless a test asks for it."""
    monkeypatch.setattr("specbench.models.forwards.SMALLEST", 1 << 62)
    monkeypatch.setattr("specbench.models.products.measure_first_row", pack_large)


@pytest.fixture(autouse=True)
def nothing_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is rehearsed, which takes a second, unless a test asks for it."""
    monkeypatch.setattr("specbench.running.execute.say_needs", lambda *_: None)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Hydra's sweeps set up logging for their process: their handlers write to a test's captured streams, which close with it."""
    before = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = before


@pytest.fixture(autouse=True)
def no_stage_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, no stage of a job is named on stderr, unless a test asks for it."""
    monkeypatch.setattr("specbench.running.progress.NAMED_AFTER", float("inf"))


class Driver:
    """A fake pynvml with one GPU, which gives the answers in `answers`; an unknown function or argument fails the test."""

    NVMLError = RuntimeError
    __spec__ = None

    def __init__(self) -> None:
        self.answers: dict[str, object] = {"nvmlInit": None, "nvmlDeviceGetHandleByUUID": "the card"}

    def __getattr__(self, question: str) -> Callable[..., object]:
        def answer(*about: object) -> object:
            signature(getattr(pynvml, question)).bind(*about)
            if question not in self.answers:
                raise self.NVMLError("Not Supported")
            result = self.answers[question]
            return result(*about) if callable(result) else result

        return answer


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """A fake NVIDIA driver with one GPU, cuda:0."""
    fake = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a"))
    nvml._load_library.cache_clear()
    yield fake
    nvml._load_library.cache_clear()


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Cli = Callable[..., Outcome]
Refuse = Callable[..., str]


class Tiny(NamedTuple):
    """Folders of a random target and draft model with the embedded tokenizer, and overrides that make a run of them short."""

    target: Path
    draft: Path
    tokenizer: PreTrainedTokenizerBase

    def overrides(self, *more: str) -> list[str]:
        paths = [
            "target=mini",
            f"target.path={self.target}",
            f"target.draft.path={self.draft}",
            "target.dtype=float32",
            "threads=1",
        ]
        return [*paths, "check_baseline=false", "suite.per_task=2", "sampling.max_new_tokens=8", *more]

    def model(self, folder: Path, layers: int = 1, **changes: int) -> Path:
        """Save another model with the same tokenizer."""
        config = {
            "vocab_size": 1024,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "max_position_embeddings": 2048,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "initializer_range": 0.4,
        }
        with torch.random.fork_rng():
            torch.manual_seed(layers)
            LlamaForCausalLM(LlamaConfig(**{**config, **changes})).save_pretrained(folder)  # type: ignore[arg-type]
        self.tokenizer.save_pretrained(folder)
        return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    saved = Tiny(root / "target", root / "draft", load_tokenizer(EMBEDDED, None, False))
    saved.model(saved.target, layers=2)
    saved.model(saved.draft, layers=1)
    return saved


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """cli("run", "limit=3") returns exit status and output; relative paths are in tmp_path."""
    from specbench.cli.main import main

    monkeypatch.chdir(tmp_path)

    def call(*argv: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["specbench", *argv])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capfd.readouterr()
        return Outcome(int(exit_.value.code or 0), printed.out, printed.err)

    return call


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refuse(cli: Cli, tmp_path: Path) -> Refuse:
    """Return the one line that refuses a command, after checking that no file was changed."""

    def call(*argv: str) -> str:
        before = contents(tmp_path)
        status, out, err = cli(*argv)
        assert status == 2 and out == "", (status, out, err)
        assert err.startswith("specbench: ") and err.count("\n") == 1 and err.endswith("\n"), err
        assert contents(tmp_path) == before, "nothing is written"
        return err.removeprefix("specbench: ").rstrip()

    return call


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
