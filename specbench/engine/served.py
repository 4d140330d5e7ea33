"""What a server says of a sequence, and a method that only servers have."""

from __future__ import annotations

from dataclasses import dataclass

from specbench.decoding.drafter import Drafter
from specbench.decoding.loop import Generation


class Served(Drafter):
    """A method that runs on a server alone (`_target_` of its YAML); in place of any other method where nothing else runs."""


@dataclass
class ServedGeneration(Generation):
    """prefill_s, decode_s: the server's where it tells both, else those of the clock here.

    text, tokens: of a server that returns no ids. sums: `drafted` and `accepted` of one that tells no single step, and `steps` if
    it tells their number. client_first_s, client_last_s: by this process's clock, from the request to the first and to the last
    token. turned_away: how often the server was too busy before.
    """

    text: str | None = None
    tokens: int = 0
    sums: dict[str, int] | None = None
    client_first_s: float = 0.0
    client_last_s: float = 0.0
    turned_away: int = 0
