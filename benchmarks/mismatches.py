"""Where a method's greedy output leaves autoregressive's: the position, the target's top-2 logit gap there, and the noise.

The noise is how far the very same logits move when the very same tokens go through the target in one forward instead of one by
one. A gap within the noise is a near-tie, which no implementation can settle; a gap beyond it is a bug.

    python -m benchmarks.mismatches [--dtype bfloat16] [--limit N]
"""

import argparse
from dataclasses import dataclass

import torch
from rich.table import Table

from benchmarks.embedded import Opened, opened
from specbench.cli import console
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import Generation
from specbench.decoding.tree import DraftTree

METHODS = "method=[pld,pld_spec_bench,sps,sps_spec_bench,sps_confidence,medusa,hydra_heads,eagle,eagle2,eagle3]"


@dataclass(frozen=True)
class Mismatch:
    """position: index of the first differing new token; gap and noise in logits."""

    position: int
    gap: float
    noise: float

    @property
    def near_tie(self) -> bool:
        return self.gap <= self.noise


@torch.inference_mode()
def explained(target: LanguageModel, prompt: list[int], ours: list[int], theirs: list[int]) -> Mismatch | None:
    """None when the outputs are equal."""
    if ours == theirs:
        return None
    position = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    past = theirs[:position]
    ids = torch.tensor(prompt + past, device=target.device)
    together = target.prefill(target.store(len(ids)), [ids])[0].logits[-1]
    store = target.store(len(ids))
    single = target.prefill(store, [ids[: len(prompt)]])[0].logits[-1]
    for token in past:
        single = target.forward(store, [DraftTree.chain(torch.tensor([token], device=target.device))])[0].logits[-1]
        store.keep(0, [0])
    best = single.float().topk(2).values
    return Mismatch(position, float(best[0] - best[1]), float((single.float() - together.float()).abs().max()))


@dataclass(frozen=True)
class Comparison:
    """A method's outputs beside autoregressive's on the same prompts."""

    label: str
    questions: int
    mismatches: list[Mismatch]

    def row(self) -> tuple[str, ...]:
        bugs = [m for m in self.mismatches if not m.near_tie]
        listed = ", ".join(f"token {m.position}: {m.gap:.3f} ≤ {m.noise:.3f}" for m in self.mismatches if m.near_tie)
        wrong = ", ".join(f"token {m.position}: {m.gap:.3f} > {m.noise:.3f}" for m in bugs)
        return self.label, f"{self.questions - len(self.mismatches)} of {self.questions}", listed or "-", wrong or "-"


def compared(there: Opened, outputs: dict[str, list[Generation]]) -> list[Comparison]:
    """A row per method, of its outputs on the same prompts."""
    baseline = outputs["autoregressive"]
    found = []
    for label, outs in outputs.items():
        pairs = zip(there.prompts, outs, baseline, strict=True)
        every = [explained(there.target.model, prompt, out.output_ids, base.output_ids) for prompt, out, base in pairs]
        found.append(Comparison(label, len(outs), [mismatch for mismatch in every if mismatch]))
    return found


def decoded(limit: int, *overrides: str) -> tuple[Opened, dict[str, list[Generation]]]:
    """Every method's output on first turns of the mini suite, `limit` questions a task."""
    there = opened(METHODS, *overrides, limit=limit)
    return there, {label: [there.generate(label, prompt) for prompt in there.prompts] for label in there.drafters}


def table(title: str, comparisons: list[Comparison]) -> Table:
    made = Table("method", "equal", "near-ties (gap ≤ noise)", "bugs (gap > noise)", title=title)
    for comparison in comparisons:
        made.add_row(*comparison.row())
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--limit", type=int, default=4)
    options = parser.parse_args()
    there, outputs = decoded(options.limit, "target.shape=100m", f"target.dtype={options.dtype}")
    console.print(table(f"mini at 100m, {options.dtype}, against autoregressive", compared(there, outputs)))


if __name__ == "__main__":
    main()
