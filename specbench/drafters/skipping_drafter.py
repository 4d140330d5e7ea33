"""A drafter that is the target itself without some of its sublayers; `specbench train` searches which."""

from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.skip_sets import load_skip_set
from specbench.drafters.skipping import SkipSet, count_layers, skip_sublayers


class SkippingDrafter(Drafter):
    """checkpoint: the skip set: a file, a folder with skip.yaml, or `random`."""

    def __init__(self, checkpoint: str | None) -> None:
        self.checkpoint = checkpoint

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self.skip(load_skip_set(self.checkpoint, count_layers(target)))

    def skip(self, skipped: SkipSet) -> None:
        """Draft without these sublayers from now on."""
        self.model = skip_sublayers(self.target, skipped)
