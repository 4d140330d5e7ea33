"""What a server reports about a sequence, and a method that only servers have."""

from __future__ import annotations

from dataclasses import dataclass

from specbench.decoding.drafter import Drafter
from specbench.decoding.loop import Generation


class Served(Drafter):
    """A method that runs only on a server (`_target_` of its YAML); it replaces the other methods where only servers run."""


@dataclass
class ServedGeneration(Generation):
    """prefill_s, decode_s: the server's own where it reports both, else those of the clock here.

    text, tokens: of a server that returns no ids. sums: `drafted` and `accepted` of one that reports no single steps, and `steps`
    if it reports their number. client_first_s, client_last_s: by this process's clock, from the request to the first and to the
    last token. turned_away: how often the server was too busy before.
    """

    text: str | None = None
    tokens: int = 0
    sums: dict[str, int] | None = None
    client_first_s: float = 0.0
    client_last_s: float = 0.0
    turned_away: int = 0
