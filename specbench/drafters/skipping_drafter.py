"""Drafters that run the target without some of its sublayers; `specbench train` searches for the skip set."""

from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.skip_sets import load_skip_set
from specbench.drafters.skipping import SkipSet, count_layers, skip_sublayers


class SkippingDrafter(Drafter):
    """Drafts with the target's own layers. checkpoint: a skip-set file, a folder with skip.yaml, or `random`."""

    def __init__(self, checkpoint: str | None) -> None:
        self.checkpoint = checkpoint

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self.skip(load_skip_set(self.checkpoint, count_layers(target)))

    def skip(self, skipped: SkipSet) -> None:
        """Set the sublayers that drafting skips."""
        self.model = skip_sublayers(self.target, skipped)
