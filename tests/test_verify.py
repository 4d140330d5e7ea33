"""Every rule against a slow one: greedy ways node by node, sampled outcomes by exact probabilities, typical paths one by one."""

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest
import torch
from scipy import stats

from specbench.decoding.sampling import Dice, Sampling, probabilities
from specbench.decoding.tree import DraftTree, TreeShape
from specbench.decoding.verify import GreedyVerifier, SamplingVerifier, TypicalVerifier, make_verifier
from specbench.drafters.tree_heads import parse_thresholds
from specbench.errors import InputError
from tests.random_trees import random_tree, way


def slow(tree: DraftTree, logits: torch.Tensor) -> tuple[list[int], int]:
    """Path and next token: of all ways down the tree that the target would go, the deepest, of equals the one that ends first."""
    scratch = tree.scratch if tree.scratch is not None else torch.zeros(len(tree), dtype=torch.bool)
    ways = [[0]]
    for walked in ways:  # grows while it is walked
        wanted = int(logits[walked[-1]].argmax())
        for node in range(1, len(tree)):
            if int(tree.parents[node]) == walked[-1] and int(tree.tokens[node]) == wanted and not scratch[node]:
                ways.append([*walked, node])
    path = min(ways, key=lambda walked: (-len(walked), walked[-1]))
    return path, int(logits[path[-1]].argmax())


@pytest.mark.parametrize("scratch", [0.0, 0.3])
def test_random_trees(scratch: float) -> None:
    rng, longest = random.Random(1), 0
    torch.manual_seed(1)
    for _ in range(300):
        tree = random_tree(rng, rng.randint(1, 15), vocabulary=3, scratch=scratch)
        logits = torch.randn(len(tree), 3)
        found, (path, next_token) = GreedyVerifier().verify(tree, logits), slow(tree, logits)
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
        assert GreedyVerifier().verify(chain, logits) == GreedyVerifier().verify(spelt, logits)
        assert (GreedyVerifier().verify(chain, logits).path, GreedyVerifier().verify(chain, logits).next_token) == slow(
            chain, logits
        )


def test_the_root_alone_commits_one_token() -> None:
    choice = GreedyVerifier().verify(DraftTree.chain(torch.tensor([3])), torch.tensor([[0.0, 2.0, 1.0]]))
    assert (choice.path, choice.next_token, choice.tokens) == ([0], 1, [1])


def test_a_right_token_behind_a_wrong_one_or_behind_scratch_is_rejected() -> None:
    wants_one = torch.tensor([[0.0, 1.0]]).repeat(3, 1)
    wrong_first = DraftTree(torch.tensor([0, 0, 1]), torch.tensor([-1, 0, 1]))
    assert GreedyVerifier().verify(wrong_first, wants_one).path == [0]
    below_scratch = DraftTree(torch.tensor([0, 1, 1]), torch.tensor([-1, 0, 1]), scratch=torch.tensor([False, True, False]))
    assert GreedyVerifier().verify(below_scratch, wants_one).path == [0]


Outcomes = dict[tuple[int, ...], float]  # what is committed, and how probable that is
VOCABULARY, WIDTH = 4, 2
SHAPE = TreeShape([[0], [1], [0, 0], [0, 1], [1, 0]])
PLAIN = Sampling(temperature=1.0)
TRUNCATED = Sampling(temperature=0.7, top_p=0.9, top_k=3)


def exactly(tree: DraftTree, p: torch.Tensor, node: int = 0) -> Outcomes:
    """The modified rejection scheme as the papers write it, followed through every outcome. p (N, V) of the target."""
    found: Outcomes = defaultdict(float)
    left, wanted = 1.0, p[node]
    below = [child for child in range(1, len(tree)) if int(tree.parents[child]) == node]
    inner = sorted({int(parent) for parent in tree.parents[1:]})
    drawn = tree.probs[inner.index(node)] if tree.probs is not None and below else None
    for child in below:
        token = int(tree.tokens[child])
        q = torch.eye(len(wanted), dtype=torch.float64)[token] if drawn is None else drawn
        if q[token] == 0:
            continue
        kept = min(1.0, float(wanted[token] / q[token]))
        for tail, chance in exactly(tree, p, child).items():
            found[(token, *tail)] += left * kept * chance
        left *= 1 - kept
        if left < 1e-15:
            return found
        residual = (wanted - q).clamp(min=0)
        wanted = residual / residual.sum()
        if drawn is not None:
            drawn = drawn.index_fill(0, torch.tensor([token]), 0.0)
            drawn = drawn / drawn.sum() if drawn.sum() > 0 else drawn
    for token in range(len(wanted)):
        found[(token,)] += left * float(wanted[token])
    return found


def drawings(q: torch.Tensor, width: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """All that can be drawn without replacement, in order, with its probability; tokens of probability 0 come last."""
    for tokens in itertools.permutations(range(len(q)), width):
        chance, rest = 1.0, 1.0
        for token in tokens:
            chance, rest = chance * float(q[token]) / rest if rest > 1e-12 else chance, rest - float(q[token])
        if chance > 0:
            yield tokens, chance


def logits_of(*prefixes: tuple[int, ...], seed: int) -> torch.Tensor:
    """(len(prefixes), V): a made-up model, the same whenever it is asked."""
    rows = [torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(hash((seed, prefix)) % 2**31)) for prefix in prefixes]
    return torch.stack(rows).double() * 2


@pytest.mark.parametrize("sampling", [PLAIN, TRUNCATED])
def test_drafts_drawn_without_replacement_leave_the_targets_own_distribution(sampling: Sampling) -> None:
    """Exact: the rule's outcomes, summed over every tree that the drafter can draw."""

    def p_of(*contexts: tuple[int, ...]) -> torch.Tensor:
        return probabilities(logits_of(*contexts, seed=1), sampling).double()

    def q_of(*contexts: tuple[int, ...]) -> torch.Tensor:
        return probabilities(logits_of(*contexts, seed=2), sampling).double()

    total: dict[tuple[int, ...], float] = defaultdict(float)
    for (a, b), chance in drawings(q_of(())[0], 2):
        under = list(drawings(q_of((a,))[0], 2))
        for (c, d), further in under:
            for (e,), last in drawings(q_of((b,))[0], 1):
                nodes = [(), (a,), (b,), (a, c), (a, d), (b, e)]
                tree = SHAPE.build_tree(torch.tensor([0, a, b, c, d, e]), q_of((), (a,), (b,)))
                for tokens, probability in exactly(tree, p_of(*nodes)).items():
                    for token in range(VOCABULARY):  # the first two tokens: one that is missing comes with the next step
                        if len(tokens) == 1:
                            follow = float(p_of(tokens)[0][token])
                            total[tokens[0], token] += chance * further * last * probability * follow
                    if len(tokens) > 1:
                        total[tokens[:2]] += chance * further * last * probability
    first = p_of(())[0]
    for pair in itertools.product(range(VOCABULARY), repeat=2):
        assert total[pair] == pytest.approx(float(first[pair[0]] * p_of(pair[:1])[0][pair[1]]), abs=1e-6)


def sampled(tree: DraftTree, logits: torch.Tensor, sampling: Sampling, times: int) -> Counter[tuple[int, ...]]:
    rule = SamplingVerifier(sampling, Dice(7, torch.device("cpu")))
    return Counter(tuple(rule.verify(tree, logits).tokens) for _ in range(times))


def fits(found: Counter[tuple[int, ...]], wanted: Outcomes) -> float:
    """The p-value of a G-test; outcomes that cannot be must not be there."""
    times = sum(found.values())
    assert sum(wanted.values()) == pytest.approx(1)
    assert all(wanted.get(tokens, 0) > 0 for tokens in found)
    likely = [tokens for tokens, chance in wanted.items() if chance * times > 5]
    rest = times - sum(found[tokens] for tokens in likely)
    expected = [wanted[tokens] * times for tokens in likely]
    observed = [found[tokens] for tokens in likely]
    if times - sum(expected) > 5:
        observed, expected = [*observed, rest], [*expected, times - sum(expected)]
    scale = sum(observed) / sum(expected)
    return float(stats.power_divergence(observed, [one * scale for one in expected], lambda_="log-likelihood").pvalue)


@pytest.mark.parametrize("sampling", [PLAIN, TRUNCATED])
@pytest.mark.parametrize("kind", ["chain", "tree", "drawn chain", "drawn tree"])
def test_every_outcome_comes_as_often_as_it_should(kind: str, sampling: Sampling) -> None:
    torch.manual_seed(3)
    shape = TreeShape([[0], [0, 0], [0, 0, 0]]) if "chain" in kind else SHAPE
    tokens = torch.tensor([0, 1, 2, 0] if "chain" in kind else [0, 2, 1, 3, 0, 2])
    q = probabilities(torch.randn(3, VOCABULARY).double(), Sampling(temperature=1.0)) if "drawn" in kind else None
    tree, logits = shape.build_tree(tokens, q), 0.5 * torch.randn(len(shape), VOCABULARY).double()
    wanted = exactly(tree, probabilities(logits, sampling).double())
    assert fits(sampled(tree, logits, sampling, 4000), wanted) > 1e-3


def test_a_deterministic_draft_changes_no_token() -> None:
    """Whatever is drafted, the same random numbers give the same text."""
    torch.manual_seed(4)
    rng = random.Random(4)
    logits: dict[tuple[int, ...], torch.Tensor] = {}

    def after(tokens: tuple[int, ...]) -> torch.Tensor:
        return logits.setdefault(tokens, torch.randn(3))

    def written(draft: bool, seed: int) -> list[int]:
        verifier = SamplingVerifier(PLAIN, Dice(seed, torch.device("cpu")))
        text: list[int] = []
        while len(text) < 12:
            tree = random_tree(rng, 9, vocabulary=3) if draft else DraftTree.chain(torch.tensor([0]))
            ways = [tuple(int(tree.tokens[node]) for node in way(tree, at)[1:]) for at in range(len(tree))]
            text += verifier.verify(tree, torch.stack([after((*text, *tokens)) for tokens in ways])).tokens
        return text[:12]

    for seed in range(30):
        assert written(True, seed) == written(False, seed)


def test_typical_acceptance_takes_the_longest_likely_path_and_of_equals_the_likeliest() -> None:
    rng, longest = random.Random(5), 0
    torch.manual_seed(5)
    for _ in range(200):
        tree, rule = random_tree(rng, rng.randint(1, 12), vocabulary=3), TypicalVerifier(0.8, 0.3, 0.6)
        logits = torch.randn(len(tree), 3)
        p = (logits / 0.8).softmax(dim=-1)
        least = (0.6 * ((p * (p + 1e-5).log()).sum(-1)).exp()).clamp(max=0.3)
        best: tuple[int, float] = (0, 0.0)
        for node in range(1, len(tree)):
            nodes = way(tree, node)
            chances = [(float(p[above, tree.tokens[below]]), float(least[above])) for above, below in itertools.pairwise(nodes)]
            if all(chance > bound for chance, bound in chances):
                best = max(best, (len(chances), float(torch.tensor([chance for chance, _ in chances]).log().sum())))
        found = rule.verify(tree, logits)
        scores = [p[above, tree.tokens[below]].log() for above, below in itertools.pairwise(found.path)]
        assert len(found.path) - 1 == best[0] and float(sum(scores)) == pytest.approx(best[1], abs=1e-5)
        assert found.next_token == int(logits[found.path[-1]].argmax())
        longest = max(longest, len(found.path))
    assert longest > 3


def test_thresholds_are_two_numbers() -> None:
    assert parse_thresholds({"threshold": 0.09, "alpha": 0.3}) == (0.09, 0.3)
    with pytest.raises(InputError, match="typical="):
        parse_thresholds({"threshold": 0.09})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.9, top_k=3)])
@pytest.mark.parametrize("branched", [False, True])
def test_logits_that_are_not_numbers_are_an_error(bad: float, sampling: Sampling, branched: bool) -> None:
    tokens, parents = torch.tensor([0, 1, 2]), torch.tensor([-1, 0, 0 if branched else 1])
    tree = DraftTree(tokens, parents, linear=not branched)
    logits = torch.zeros(3, 5)
    logits[:, 4] = -math.inf  # a forbidden token
    verifier = make_verifier(sampling, torch.device("cpu"))
    verifier.verify(tree, logits)
    verifier.choose_first(logits[0])
    logits[:, 3] = bad
    with pytest.raises(ArithmeticError, match="not finite"):
        verifier.verify(tree, logits)
    with pytest.raises(ArithmeticError, match="not finite"):
        verifier.choose_first(logits[0])
    with pytest.raises(ArithmeticError, match="not finite"):
        TypicalVerifier(1.0, 0.1, 0.3).verify(tree, logits)


def test_drafts_drawn_from_what_is_no_distribution_are_an_error() -> None:
    tree = DraftTree.chain(torch.tensor([0, 1]), probs=torch.full((1, 5), math.nan))
    with pytest.raises(ArithmeticError, match="not finite"):
        make_verifier(Sampling(temperature=1.0), torch.device("cpu")).verify(tree, torch.zeros(2, 5))
