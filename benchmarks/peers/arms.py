"""What an engine of the comparison offers: one arm per method, which decodes a prompt and reports how long it took."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from specbench.decoding.language_model import LanguageModel
from specbench.decoding.sampling import Sampling
from specbench.exchange.gguf_file import export_gguf
from specbench.models.load import load_draft
from specbench.models.target import Target
from specbench.records.trial import BASELINE
from specbench.setup.settings import RunSettings

DRAFT_TOKENS = 8  # of `sps`, in all engines
NGRAM, CONTINUATION = 3, 10  # of `pld`: the longest n-gram that is looked up, the most tokens that are copied
METHODS = (BASELINE, "sps", "pld")


@dataclass(frozen=True)
class Answer:
    """ids: with the token that ended it. tokens: decoded in `seconds`, that is after prefill and its first token."""

    ids: list[int]
    tokens: int
    seconds: float
    drafted: int | None = None  # None: the engine does not say


@dataclass(frozen=True)
class Arm:
    """A method on an engine. worker: what computes, the calling thread or others. processes: those of this arm only."""

    engine: str
    method: str
    decode: Callable[[list[int]], Answer]
    worker: Literal["caller", "others"]
    processes: frozenset[int] = frozenset()

    @property
    def label(self) -> str:
        return f"{self.engine}/{self.method}"


@dataclass(frozen=True)
class Job:
    """What all engines decode with. folder: for their files. logs: where servers print. llama_binary: None: llama.cpp's wheel.

    output_bias: refuse to leave out a bias on the target's output. notes: what a reader of the numbers has to know.
    """

    settings: RunSettings
    target: Target
    methods: tuple[str, ...]
    prompts: list[list[int]]
    sampling: Sampling
    folder: Path
    logs: Path
    llama_binary: str | None = None
    output_bias: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Tokens of the longest prompt and answer, and of a draft."""
        return max(map(len, self.prompts)) + self.sampling.max_new_tokens + 2 * CONTINUATION

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def load_draft(self) -> LanguageModel:
        """Return the draft model that the methods of this process share."""
        target = self.settings.target
        return load_draft(target.draft, target.device, target.weights)

    def export(self, draft: bool = False, dtype: torch.dtype | None = None) -> Path:
        """Write the target or its draft model as a GGUF file, once. dtype: if not the model's own."""
        model = self.load_draft() if draft else self.target.model
        kind = str(dtype or model.dtype).removeprefix("torch.")
        name = f"{'draft' if draft else 'target'}-{kind}"
        path = self.folder / name / f"{name}.gguf"
        if not path.exists():
            export_gguf(model, self.target.tokenizer, name, path, self.output_bias, dtype)
        return path


Opener = Callable[[Job, ExitStack], Iterator[Arm]]  # the stack closes what it opens
