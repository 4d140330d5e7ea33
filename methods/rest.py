"""REST (He et al. 2024): draft what followed the last tokens in a datastore of texts."""

from typing import Annotated, Literal

import numpy as np
import torch

from specbench.bounds import Length, Nodes, TokenId, Within
from specbench.datastore.build import build_in_memory
from specbench.datastore.prefixes import Prefixes
from specbench.datastore.store import Datastore, Sample, StoreMatch
from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput, check_token
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification
from specbench.drafters.checkpoints import RANDOM
from specbench.errors import InputError

RANDOM_DOCUMENTS, RANDOM_TOKENS = 320, 128


class Rest(Drafter):
    """Finds the longest suffix of `shortest` to `longest` tokens in the datastore and drafts its most frequent continuations.

    datastore: a folder, or `random` for a store of random documents. sample, occurrences: which occurrences are read, see
    Datastore.read_continuations. depth: tokens read after each. nodes: most draft nodes, without the root. cut: `none`, or `cost`
    for the authors' cuts (see Prefixes.cut_by_cost). filler: token drafted when nothing is found (Spec-Bench: 100), or null.
    """

    datastore: Datastore

    def __init__(
        self,
        datastore: str | None,
        longest: Length,
        shortest: Length,
        sample: Sample,
        occurrences: Annotated[int, Within(1, 1_000_000)],
        depth: Length,
        nodes: Nodes,
        cut: Literal["none", "cost"],
        filler: TokenId | None,
    ) -> None:
        if datastore is None:
            raise InputError("this target names no datastore: set method.LABEL.datastore to a folder or random")
        if shortest > longest:
            raise InputError(f"rest: shortest={shortest} is above longest={longest}")
        self.random = datastore == RANDOM
        if not self.random:
            self.datastore = Datastore.open(datastore)
        self.longest, self.shortest, self.sample, self.occurrences = longest, shortest, sample, occurrences
        self.depth, self.most, self.cut, self.filler = depth, nodes, cut, filler
        self.nodes = 1 + nodes

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        check_token(self.filler, "filler", target.vocabulary)
        if self.random:
            self.datastore = build_random_store(target.vocabulary)
        if (vocabulary := self.datastore.about.vocabulary) > target.vocabulary:
            contents = f"{self.datastore.name} holds ids up to {vocabulary - 1}"
            raise InputError(f"the datastore {contents}, but the target has a vocabulary of {target.vocabulary}")

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> list[int]:
        return list(prompt)

    def draft(self, state: list[int], budget: int) -> DraftTree:
        return self.draft_match(state[-1], self.find(state), budget)

    def find(self, tokens: list[int]) -> StoreMatch | None:
        """Return the match of the longest known suffix of the tokens."""
        return self.datastore.find(tokens, self.longest, self.shortest)

    def draft_match(self, root: int, match: StoreMatch | None, budget: int) -> DraftTree:
        """Draft the most frequent continuations of the match, or the filler."""
        prefixes = self.select_prefixes(match, min(budget, self.depth)) if match and budget else None
        if prefixes is None or not len(prefixes):
            filler = [] if self.filler is None else [self.filler]
            return DraftTree.chain(torch.tensor([root, *filler[:budget]]))
        return self._build_tree(root, prefixes)

    def select_prefixes(self, match: StoreMatch, depth: int) -> Prefixes:
        """Return the prefixes of continuations, at most `depth` tokens long, that get a node each."""
        prefixes = Prefixes.of(self.datastore.read_continuations(match, depth, self.occurrences, self.sample))
        return prefixes.cut_by_cost(self.most) if self.cut == "cost" else prefixes.keep_most_frequent(self.most)

    def _build_tree(self, root: int, prefixes: Prefixes) -> DraftTree:
        tokens = [root, *prefixes.tokens.tolist()]
        if prefixes.depth[-1] + 1 == len(prefixes):
            return DraftTree.chain(torch.tensor(tokens))
        return DraftTree.from_lists(tokens, [-1, *(prefixes.parents + 1).tolist()])

    def observe(self, state: list[int], tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state.extend(verified.tokens)


def build_random_store(vocabulary: int) -> Datastore:
    """Build a small store of random documents, for tests; the same for the same vocabulary."""
    documents = np.random.default_rng(0).integers(0, vocabulary, (RANDOM_DOCUMENTS, RANDOM_TOKENS))
    return build_in_memory(list(documents), vocabulary)
