"""What the harness asks of whoever generates: tokens in, tokens and counts out. Engines know no tasks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import Generation
from specbench.decoding.sampling import Sampling


class Engine(ABC):
    """Generates with one target by several methods, each known by its label."""

    in_process: ClassVar[bool] = True  # whether it runs in this process, whose memory can be measured

    @abstractmethod
    def open(self, target: LanguageModel, drafters: Mapping[str, Drafter]) -> None:
        """Meet the target and the methods, before anything is generated."""

    @abstractmethod
    def has(self, label: str) -> bool:
        """Whether this engine can run the method."""

    @abstractmethod
    def generate(self, label: str, prompt: list[int], sampling: Sampling) -> Generation:
        """Decode one prompt, clocked from ids on the device to the last output id. Raises CapacityError."""

    def reserve(self, prompt_tokens: int, sampling: Sampling) -> None:
        """The longest prompt to come, so that memory can be taken before the clock runs."""

    def reset(self, label: str) -> None:
        """Start of a repeat: clear what the method keeps from turn to turn."""

    def is_warm(self, label: str) -> bool:
        """Whether what the method learns outlives a turn."""
        return False

    def get_kind(self, label: str) -> str:
        """What the method's figures are: `measured`, or `synthetic` where its drafts are made from the answer itself."""
        return "measured"
