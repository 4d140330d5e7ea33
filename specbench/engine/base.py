"""The interface of engines: token ids in, token ids and counts out. Engines know no tasks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import Generation
from specbench.decoding.sampling import Sampling


class Engine(ABC):
    """Generates with one target and several methods, each identified by its label."""

    in_process: ClassVar[bool] = True  # runs in this process, so its memory can be measured
    batches: ClassVar[bool] = False  # decodes several prompts side by side
    serves: ClassVar[bool] = False  # answers several requests at once
    loads_target: ClassVar[bool] = True  # it, or what it is compared with, needs the target's weights in this process
    returns_ids: ClassVar[bool] = True  # else only texts, and equality is of texts
    honours: ClassVar[frozenset[str]] = frozenset()  # the settings of how answers end that it knows, by dotted name
    logs: Path = Path()  # folder for what servers print
    decode: Callable[[list[int]], str]  # the text of token ids, special tokens included, as a prompt

    def say(self, message: str) -> None:
        """Report something that takes long; whoever opens the engine may replace this method."""

    @abstractmethod
    def open(self, target: LanguageModel, drafters: Mapping[str, Drafter], batch: int = 1) -> None:
        """Attach the target and the methods; called before anything is generated. batch: prompts at most, side by side."""

    def close(self) -> None:
        """Release what `open` acquired; always called, even if `open` failed."""

    def list_wanted(self, labels: Collection[str]) -> list[str]:
        """Return which of the GGUF files `model` and `draft` it still needs for these methods."""
        return []

    def take(self, name: str, path: Path) -> None:
        """Accept a file that `list_wanted` named."""

    def probe(self, label: str, prompt: list[int], sampling: Sampling) -> None:
        """Try a method before anything is recorded. Raises InputError for one that cannot be measured."""

    def find_processes(self, label: str) -> Collection[int] | None:
        """Return the processes that compute for a method, besides this one and its children; None if they are unknown."""
        return ()

    def describe_servers(self) -> dict[str, Any]:
        """Return what run.json says about each method's server."""
        return {}

    @abstractmethod
    def has(self, label: str) -> bool:
        """Return whether this engine can run the method."""

    @abstractmethod
    def generate(self, label: str, prompt: list[int], sampling: Sampling) -> Generation:
        """Decode one prompt, timed from ids on the device to the last output id. Raises CapacityError."""

    def generate_group(self, label: str, prompts: list[list[int]], samplings: list[Sampling]) -> list[Generation]:
        """Decode prompts side by side; each Generation has the group's seconds. One that fails by itself has its `error`.

        samplings: differ only in their seeds. An engine that does not batch decodes one prompt.
        """
        ((prompt, sampling),) = zip(prompts, samplings, strict=True)
        return [self.generate(label, prompt, sampling)]

    def reserve(self, prompt_tokens: int, sampling: Sampling, batch: int = 1) -> None:
        """Allocate for `batch` prompts of up to `prompt_tokens` tokens, before the clock runs."""

    def recall(self, forwards: Mapping[str, Mapping[str, Any]]) -> None:
        """Use the forwards that the run's earlier process chose, as in its run.json; called before `open`."""

    def describe_forwards(self) -> dict[str, dict[str, Any]]:
        """Return how the target's and the draft models' forwards run, for run.json."""
        return {}

    def reset(self, label: str) -> None:
        """Clear what the method keeps from turn to turn; called at the start of each repeat."""

    def is_warm(self, label: str) -> bool:
        """Return whether the method keeps something from turn to turn."""
        return False

    def get_kind(self, label: str) -> str:
        """Return the kind of the method's results: `measured`, or `synthetic` if it drafts from the answer itself."""
        return "measured"
