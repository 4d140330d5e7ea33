"""REST (He et al. 2024): what followed the last tokens elsewhere, in a store of texts, is the draft."""

from typing import Literal

import numpy as np
import torch

from specbench.datastore.build import build_in_memory
from specbench.datastore.prefixes import Prefixes
from specbench.datastore.store import Datastore, Sample, StoreMatch
from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification
from specbench.drafters.checkpoints import RANDOM
from specbench.errors import InputError

RANDOM_DOCUMENTS, RANDOM_TOKENS = 320, 128


class Rest(Drafter):
    """Looks up the longest ending, of `shortest` to `longest` tokens, that the store knows; drafts what is frequent behind it.

    datastore: a folder, or `random` for a store of random documents. sample, occurrences: which places are looked at, see
    Datastore.continuations. depth: tokens read behind each. nodes: most of the draft tree, the root not counted. cut: `none`, or
    `cost`, the authors' cuts (see Prefixes.authors_cut). filler: the token drafted when nothing is found (Spec-Bench: 100), or
    none.
    """

    def __init__(
        self,
        datastore: str | None,
        longest: int,
        shortest: int,
        sample: Sample,
        occurrences: int,
        depth: int,
        nodes: int,
        cut: Literal["none", "cost"],
        filler: int | None,
    ) -> None:
        if datastore is None:
            raise InputError("this target names no datastore: set method.LABEL.datastore to a folder or random")
        if not 1 <= shortest <= longest or min(occurrences, depth, nodes) < 1:
            raise InputError("rest: expected 1 ≤ shortest ≤ longest, and at least one occurrence, depth and node")
        self.random = datastore == RANDOM
        self.datastore = None if self.random else Datastore.open(datastore)
        self.longest, self.shortest, self.sample, self.occurrences = longest, shortest, sample, occurrences
        self.depth, self.most, self.cut, self.filler = depth, nodes, cut, filler
        self.nodes = 1 + nodes

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        if self.random:
            self.datastore = build_random_store(target.vocabulary)
        assert self.datastore is not None
        if self.datastore.about.vocabulary > target.vocabulary:
            held = f"{self.datastore.name} holds ids up to {self.datastore.about.vocabulary - 1}"
            raise InputError(f"the datastore {held}, but the target has a vocabulary of {target.vocabulary}")

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> list[int]:
        return list(prompt)

    def draft(self, state: list[int], budget: int) -> DraftTree:
        return self.draft_match(state[-1], self.find(state), budget)

    def find(self, tokens: list[int]) -> StoreMatch | None:
        """Where their longest known ending stands."""
        assert self.datastore is not None
        return self.datastore.find(tokens, self.longest, self.shortest)

    def draft_match(self, root: int, match: StoreMatch | None, budget: int) -> DraftTree:
        """What is frequent behind the match, or the filler."""
        found = self.select_prefixes(match, min(budget, self.depth)) if match and budget else None
        if found is None or not len(found):
            filler = [] if self.filler is None else [self.filler]
            return DraftTree.chain(self.to_tensor([root, *filler[:budget]]))
        return self._build_tree(root, found)

    def select_prefixes(self, match: StoreMatch, depth: int) -> Prefixes:
        """The continuations worth a node each, no longer than `depth`."""
        assert self.datastore is not None
        rows = self.datastore.read_continuations(match, depth, self.occurrences, self.sample)
        found = Prefixes.of(rows)
        return found.cut_by_cost(self.most) if self.cut == "cost" else found.keep_most_frequent(self.most)

    def _build_tree(self, root: int, found: Prefixes) -> DraftTree:
        """One transfer to the device for tokens and parents."""
        nodes = np.stack([np.append(root, found.tokens), np.append(-1, found.parents + 1)])
        tokens, parents = torch.from_numpy(nodes).to(self.target.device)
        return DraftTree.chain(tokens) if found.depth[-1] + 1 == len(found) else DraftTree(tokens, parents)

    def observe(self, state: list[int], tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state.extend(verified.tokens)


def build_random_store(vocabulary: int) -> Datastore:
    """For tests of what needs a store: the same for the same vocabulary, small, and good for nothing else."""
    documents = np.random.default_rng(0).integers(0, vocabulary, (RANDOM_DOCUMENTS, RANDOM_TOKENS))
    return build_in_memory(list(documents), vocabulary)
