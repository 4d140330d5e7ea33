"""verify_greedy against going down every way of the tree node by node."""

import random

import pytest
import torch

from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import verify_greedy
from tests.random_trees import random_tree


def slow(tree: DraftTree, logits: torch.Tensor) -> tuple[list[int], int]:
    """Path and next token: of all ways down the tree that the target would go, the deepest, of equals the one that ends first."""
    scratch = tree.scratch if tree.scratch is not None else torch.zeros(len(tree), dtype=torch.bool)
    ways = [[0]]
    for way in ways:  # grows while it is walked
        wanted = int(logits[way[-1]].argmax())
        for node in range(1, len(tree)):
            if int(tree.parents[node]) == way[-1] and int(tree.tokens[node]) == wanted and not scratch[node]:
                ways.append([*way, node])
    path = min(ways, key=lambda way: (-len(way), way[-1]))
    return path, int(logits[path[-1]].argmax())


@pytest.mark.parametrize("scratch", [0.0, 0.3])
def test_random_trees(scratch: float) -> None:
    rng, longest = random.Random(1), 0
    torch.manual_seed(1)
    for _ in range(300):
        tree = random_tree(rng, rng.randint(1, 15), vocabulary=3, scratch=scratch)
        logits = torch.randn(len(tree), 3)
        found, (path, next_token) = verify_greedy(tree, logits), slow(tree, logits)
        assert (found.path, found.next_token) == (path, next_token)
        assert found.tokens == [int(tree.tokens[node]) for node in path[1:]] + [next_token]
        assert tree.scratch is None or not tree.scratch[path].any(), "scratch is never accepted"
        longest = max(longest, len(path))
    assert longest > 4, "300 trees of up to 15 nodes over 3 tokens hold long accepted paths"


def test_chains_and_the_same_trees_spelt_out() -> None:
    rng = random.Random(2)
    torch.manual_seed(2)
    for _ in range(200):
        chain = DraftTree.chain(torch.tensor([rng.randrange(2) for _ in range(rng.randint(1, 6))]))
        spelt = DraftTree(chain.tokens, chain.parents)
        logits = torch.randn(len(chain), 2)
        assert verify_greedy(chain, logits) == verify_greedy(spelt, logits)
        assert (verify_greedy(chain, logits).path, verify_greedy(chain, logits).next_token) == slow(chain, logits)


def test_the_root_alone_commits_one_token() -> None:
    choice = verify_greedy(DraftTree.chain(torch.tensor([3])), torch.tensor([[0.0, 2.0, 1.0]]))
    assert (choice.path, choice.next_token, choice.tokens) == ([0], 1, [1])


def test_a_right_token_behind_a_wrong_one_or_behind_scratch_is_rejected() -> None:
    wants_one = torch.tensor([[0.0, 1.0]]).repeat(3, 1)
    wrong_first = DraftTree(torch.tensor([0, 0, 1]), torch.tensor([-1, 0, 1]))
    assert verify_greedy(wrong_first, wants_one).path == [0]
    below_scratch = DraftTree(torch.tensor([0, 1, 1]), torch.tensor([-1, 0, 1]), scratch=torch.tensor([False, True, False]))
    assert verify_greedy(below_scratch, wants_one).path == [0]
