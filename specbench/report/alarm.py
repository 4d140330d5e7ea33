"""A warning that a reader needs before trusting a row."""

from __future__ import annotations

from dataclasses import dataclass

from specbench.records.trial import OVERALL


@dataclass(frozen=True)
class Alarm:
    """One warning. level: "alarm" (do not publish the row as it is) or "notice"."""

    level: str
    method: str
    task: str
    message: str

    def __str__(self) -> str:
        place = "" if self.task == OVERALL else f" on {self.task}"
        return f"{self.level}: {self.method}{place}: {self.message}"
