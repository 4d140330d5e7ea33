"""The mini target and one of its large shapes in float32: whether every method's texts, drafts and acceptance are equal.

    python -m benchmarks.shapes [--shape 1b] [--tokens N] [--methods pld,sps,...] [--out reports/shape-equality-1b.csv]

One question per task. All methods together need 16 GB of memory at 1b; choose fewer with --methods.
"""

import argparse
from pathlib import Path

import pandas as pd

from benchmarks.embedded import build_table, decode_questions, exit_with
from specbench.analysis.summary import format_csv
from specbench.cli.output import console, widen_console
from specbench.cli.parser import Parser
from specbench.decoding.loop import Generation
from specbench.errors import InputError
from specbench.records.files import write_atomic

# Methods that take any shape.
METHODS = (
    "pld,sps,medusa,hydra_heads,eagle,eagle2,eagle3,dflash,dspark,mtp,"
    "token_recycling,rest,sam_decoding,sam_eagle2,suffix_cold,lookahead"
)
FLOAT32 = ("target.dtype=float32", "target.draft.dtype=float32")


def compare_shapes(shape: str, methods: str, *overrides: str, tokens: int = 256) -> pd.DataFrame:
    """Return a row per method: how many texts are equal, and in how many every step drafted and accepted as much."""
    chosen = [f"method=[{methods}]", *FLOAT32, *overrides]
    large = decode_questions(*chosen, f"target.shape={shape}", tokens=tokens)  # first: it refuses unsupported methods
    small = decode_questions(*chosen, tokens=tokens)
    return pd.DataFrame([_build_row(label, small[label], outs) for label, outs in large.items()])


def _build_row(label: str, small: list[Generation], large: list[Generation]) -> dict[str, object]:
    pairs = list(zip(small, large, strict=True))
    return {
        "method": label,
        "texts": len(pairs),
        "texts_equal": sum(a.output_ids == b.output_ids for a, b in pairs),
        "steps_equal": sum((a.drafted, a.accepted) == (b.drafted, b.accepted) for a, b in pairs),
        "steps_mini": sum(a.steps for a in small),
        "steps": sum(b.steps for b in large),
        "mean_accepted_tokens_mini": _mean_accepted(small),
        "mean_accepted_tokens": _mean_accepted(large),
    }


def _mean_accepted(outs: list[Generation]) -> float:
    return sum(sum(out.committed) for out in outs) / sum(out.steps for out in outs)


def main() -> int:
    parser = Parser("shapes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1b")
    parser.add_argument("--tokens", type=int, default=256, help="per answer, at most; at least 2")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.tokens < 2:
        raise InputError(f"--tokens {options.tokens}: expected at least 2, as prefill gives the first")
    frame = compare_shapes(options.shape, options.methods, tokens=options.tokens)
    out = options.out or Path(f"reports/shape-equality-{options.shape}.csv")
    write_atomic(out, format_csv(frame))
    widen_console()
    console.print(build_table(frame, f"The mini target and its {options.shape} shape, float32"), f"in {out}", sep="\n")
    return 0


if __name__ == "__main__":
    exit_with(main)
