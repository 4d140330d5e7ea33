"""The draft tree's derived values against walking from parent to parent."""

import random

import pytest
import torch

from specbench.decoding.tree import DraftTree, TreeShape
from specbench.decoding.tree_batch import read_depths
from tests.random_trees import random_tree, way


@pytest.mark.parametrize("seed", range(20))
def test_ancestors_and_depths_equal_a_walk_to_the_root(seed: int) -> None:
    tree = random_tree(random.Random(seed), nodes=seed + 1, vocabulary=5)
    for node in range(len(tree)):
        assert tree.ancestors[node].nonzero().flatten().tolist() == sorted(way(tree, node))
        assert int(tree.depths[node]) == len(way(tree, node)) - 1
    assert tree.depth == max(len(way(tree, node)) - 1 for node in range(len(tree)))
    assert tree.drafted == len(tree) - 1


@pytest.mark.parametrize("nodes", [1, 2, 7, 65])
def test_a_chain_is_the_tree_whose_every_parent_is_the_node_before(nodes: int) -> None:
    tokens = torch.arange(nodes)
    chain, spelt = DraftTree.chain(tokens), DraftTree(tokens, torch.tensor([i - 1 for i in range(nodes)]))
    assert chain.linear and not spelt.linear
    assert chain.parents.tolist() == spelt.parents.tolist()
    assert torch.equal(chain.ancestors, spelt.ancestors) and torch.equal(chain.depths, spelt.depths)
    assert chain.depth == spelt.depth == chain.drafted == spelt.drafted == len(chain) - 1
    assert chain.ancestors.dtype == torch.bool and chain.depths.dtype == chain.parents.dtype == torch.int64


@pytest.mark.parametrize("seed", range(20))
def test_scratch_nodes_count_neither_as_drafted_nor_for_the_depth(seed: int) -> None:
    tree = random_tree(random.Random(seed), nodes=12, vocabulary=5, scratch=0.5)
    assert tree.scratch is not None
    offered = [node for node in range(len(tree)) if not tree.scratch[node]]
    assert tree.drafted == len(offered) - 1, "the root is no draft"
    assert tree.depth == max(len(way(tree, node)) - 1 for node in offered)
    for node in range(len(tree)):
        assert tree.ancestors[node].nonzero().flatten().tolist() == sorted(way(tree, node)), "scratch has a place in the mask"


def test_a_tree_of_scratch_alone_offers_nothing() -> None:
    tree = DraftTree(torch.tensor([5, 6, 7]), torch.tensor([-1, 0, 1]), scratch=torch.tensor([False, True, True]))
    assert (len(tree), tree.drafted, tree.depth) == (3, 0, 0)


def test_a_star_has_depth_one() -> None:
    tree = DraftTree(torch.arange(9), torch.tensor([-1] + [0] * 8))
    assert (tree.depth, tree.drafted, int(tree.ancestors.sum())) == (1, 8, 9 + 8), "each sees itself, leaves also the root"


def test_a_tree_of_the_host_is_the_same_on_a_device() -> None:
    """What was packed makes the same tree again, whatever its maker knew of it."""
    probs, scratch = torch.rand(2, 5), torch.tensor([False, False, True, False])
    shape = TreeShape([[0], [1], [0, 0]])
    for tree in (
        DraftTree.chain(torch.tensor([4, 3, 2]), probs),
        DraftTree.from_lists([4, 3, 2, 1], [-1, 0, 0, 1]),
        DraftTree(torch.tensor([4, 3, 2, 1]), torch.tensor([-1, 0, 0, 1]), probs, scratch, deepest=2),
        shape.build_tree(torch.tensor([4, 3, 2, 1]), probs),
    ):
        other = tree.unpack(tree.pack())
        assert torch.equal(other.tokens, tree.tokens) and torch.equal(other.parents, tree.parents)
        assert torch.equal(other.ancestors, tree.ancestors) and other.children == tree.children
        assert (other.probs is None) == (tree.probs is None) and (other.probs is None or torch.equal(other.probs, probs))
        assert (other.depth, other.drafted, other.deepest) == (tree.depth, tree.drafted, tree.deepest)


def test_nodes_that_are_never_accepted_make_no_tree_deeper() -> None:
    tokens, parents = torch.tensor([4, 3, 2, 1]), torch.tensor([-1, 0, 1, 2])
    tree = DraftTree(tokens, parents, scratch=torch.tensor([False, False, True, True]))
    assert read_depths([tree, DraftTree.chain(tokens)]) == [tree.depth, 3] == [1, 3]
