"""Random draft trees, and the slow way to walk one."""

import random

import torch

from specbench.decoding.tree import DraftTree


def random_tree(rng: random.Random, nodes: int, vocabulary: int, scratch: float = 0.0) -> DraftTree:
    """Any parents, repeated siblings included; each node but the root is scratch with the given probability."""
    parents = [-1] + [rng.randrange(node) for node in range(1, nodes)]
    tokens = [rng.randrange(vocabulary) for _ in range(nodes)]
    marks = torch.tensor([node > 0 and rng.random() < scratch for node in range(nodes)]) if scratch else None
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), scratch=marks)


def way(tree: DraftTree, node: int) -> list[int]:
    """The nodes from the root to `node`, found parent by parent."""
    walked = [node]
    while walked[-1] != 0:
        walked.append(int(tree.parents[walked[-1]]))
    return walked[::-1]
