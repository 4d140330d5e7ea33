"""How often one of k siblings is accepted at temperature 1: k drawn tokens against the drafter's k most probable ones.

    python -m benchmarks.siblings [--limit N]

At each node that EAGLE-1 verifies on the embedded target, p is the target's distribution and q the drafter's. The k most probable
tokens of q are accepted with the sum of their p; k tokens drawn without replacement as speculative sampling decides, a single one
with probability 1 - TV(p, q). A run records neither p nor q.
"""

import argparse
from collections.abc import Iterator
from unittest.mock import patch

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.embedded import load_bench
from specbench.cli.output import console
from specbench.decoding import verify
from specbench.decoding.sampling import Dice, Sampling, probabilities
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import SamplingVerifier, Verification

WIDEST, DRAWS, TOKENS = 4, 16, 128


def iter_nodes(limit: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield p and q, (V,) each, of every verified node with children, in one answer per question."""
    pairs: list[tuple[Tensor, Tensor]] = []

    class RecordingVerifier(SamplingVerifier):
        def _test_drawn(self, tree: DraftTree, drawn_from: Tensor, logits: Tensor) -> Verification:
            verified = super()._test_drawn(tree, drawn_from, logits)
            rows = [node for node, under in enumerate(tree.children) if under]
            for node in verified.path:
                if node in rows:
                    pairs.append((probabilities(logits[node], self.sampling), drawn_from[rows.index(node)]))
            return verified

    bench = load_bench("method=[eagle]", "target.dtype=float32", limit=limit)
    with patch.object(verify, "SamplingVerifier", RecordingVerifier):
        for seed, prompt in enumerate(bench.prompts):
            sampling = Sampling(1.0, max_new_tokens=TOKENS, stop_token_ids=bench.target.model.eos_ids, seed=seed)
            bench.engine.generate("eagle", prompt, sampling)
            yield from pairs
            pairs.clear()


def measure_acceptance(p: Tensor, q: Tensor, dice: Dice) -> tuple[Tensor, Tensor]:
    """Return (WIDEST,) each: acceptance with 1, 2, … siblings, of the most probable tokens and of drawn ones (DRAWS trees)."""
    verifier, drawn = SamplingVerifier(Sampling(1.0), dice), torch.zeros(WIDEST)
    for _ in range(DRAWS):
        tokens = dice.draw_distinct(q[None], WIDEST)[0].tolist()
        kept, _ = verifier._accept_sibling(range(WIDEST), tokens, p, q)
        if kept is not None:
            drawn[kept:] += 1 / DRAWS
    return p[q.topk(WIDEST).indices].cumsum(dim=0), drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=4, help="questions per task")
    nodes = list(iter_nodes(parser.parse_args().limit))
    dice = Dice(0, nodes[0][0].device)
    best, drawn = (
        torch.stack(side).double().mean(dim=0) for side in zip(*(measure_acceptance(p, q, dice) for p, q in nodes), strict=True)
    )
    table = Table("siblings", "most probable", "drawn", title=f"Accepted, {len(nodes)} nodes")
    for k in range(WIDEST):
        table.add_row(str(k + 1), f"{best[k]:.3f}", f"{drawn[k]:.3f}")
    sure = torch.stack([torch.stack([p.max(), q.max()]) for p, q in nodes]).mean(dim=0)
    table.caption = f"The most probable token has {sure[0]:.3f} of p and {sure[1]:.3f} of q, on average."
    console.print(table)


if __name__ == "__main__":
    main()
