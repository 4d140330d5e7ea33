"""Closed-loop clients: each sends its next request as soon as its last one is answered, until no question is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

Work = TypeVar("Work")
Do = Callable[[Work, int, Callable[[], bool]], None]  # the work, the client, and whether all are to stop


def run_clients(work: Sequence[Work], clients: int, do: Do[Work]) -> None:
    """Do all work by so many threads at a time; each takes the next that is left. An error, or Ctrl-C, stops them all."""
    left, stop = iter(list(work)), Event()

    def run(client: int) -> None:
        try:
            while not stop.is_set() and (one := next(left, None)) is not None:  # one step of an iterator over a list is atomic
                do(one, client, stop.is_set)
        except BaseException:
            stop.set()
            raise

    pool = ThreadPoolExecutor(clients)
    try:
        for future in [pool.submit(run, client) for client in range(clients)]:
            future.result()
    finally:
        stop.set()
        pool.shutdown(wait=False)  # after Ctrl-C, what is being answered ends with its connection
