"""The mini target and one of its large shapes, in float32: every method's texts, drafts and accepted tokens side by side.

    python -m benchmarks.shapes [--shape 1b] [--tokens N] [--methods pld,sps,...] [--out reports/shape-equality-1b.csv]

One question of each task. At 1b its methods need 16 GB of memory together; --methods asks for fewer.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from rich.table import Table

from benchmarks.embedded import decoded
from specbench.analysis.summary import format_csv
from specbench.cli.parser import Parser, console, widen_console
from specbench.decoding.loop import Generation
from specbench.errors import InputError, refuse
from specbench.records.files import write_atomic

METHODS = (
    "pld,sps,medusa,hydra_heads,eagle,eagle2,eagle3,token_recycling,rest,sam_decoding,sam_eagle2,lookahead"  # that take any shape
)
FLOAT32 = ("target.dtype=float32", "target.draft.dtype=float32")


def compared(shape: str, methods: str, *overrides: str, tokens: int = 256) -> pd.DataFrame:
    """A row per method. Of its texts: how many are equal, and of how many every step drafted and accepted as much."""
    chosen = [f"method=[{methods}]", *FLOAT32, *overrides]
    large = decoded(*chosen, f"target.shape={shape}", tokens=tokens)  # first: it refuses what cannot be
    small = decoded(*chosen, tokens=tokens)
    return pd.DataFrame([_row(label, small[label], outs) for label, outs in large.items()])


def shown(rows: pd.DataFrame, title: str) -> Table:
    table = Table(*(column.replace("_", " ") for column in rows.columns), title=title)
    for row in rows.itertuples(index=False):
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
    return table


def _row(label: str, small: list[Generation], large: list[Generation]) -> dict[str, object]:
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
    parser.add_argument("--tokens", type=int, default=256, help="of an answer, at most; 2 at least")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.tokens < 2:
        raise InputError(
            f"--tokens {options.tokens}: the first comes from the prompt, so that no step is left; expected 2 at least"
        )
    found = compared(options.shape, options.methods, tokens=options.tokens)
    out = options.out or Path(f"reports/shape-equality-{options.shape}.csv")
    write_atomic(out, format_csv(found))
    widen_console()
    console.print(shown(found, f"The mini target and its {options.shape} shape, float32"), f"in {out}", sep="\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(refuse(error))
