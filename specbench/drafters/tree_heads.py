"""What Medusa and Hydra share: draft heads over a static tree, and optional typical acceptance."""

from collections.abc import Mapping

from specbench.bounds import StaticTree
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import TreeShape
from specbench.decoding.verify import TypicalVerifier, Verifier, parse_thresholds
from specbench.drafters.network_drafter import NetworkDrafter


class TreeHeads(NetworkDrafter):
    """tree: paths of a static tree; the head of number d drafts the nodes of depth d.

    typical: `threshold` and `alpha` of typical acceptance above temperature 0, which is lossy (Cai et al. 2024, section 2.3.1);
    null: lossless.
    """

    def __init__(self, checkpoint: str | None, tree: StaticTree, dtype: str, typical: Mapping[str, float] | None = None) -> None:
        super().__init__(checkpoint, dtype)
        self.paths = tree["paths"]
        self.typical = None if typical is None else parse_thresholds(typical)
        self.lossless = typical is None

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self.tree = TreeShape(self.paths, target.device, heads=len(self.network))
        self.nodes = len(self.tree)

    def verifier(self, sampling: Sampling, row: int) -> Verifier:
        if self.typical is None or sampling.temperature == 0:
            return super().verifier(sampling, row)
        return TypicalVerifier(sampling.temperature, *self.typical)
