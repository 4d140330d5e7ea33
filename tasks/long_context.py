"""Long prompts for real models, built here: documents of one source, joined up to a length, and a request about them.

Lengths are in tokens at an assumed rate, because a suite knows no tokenizer; a run records the real ones as prompt_tokens.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Annotated

from specbench.bounds import Seed, Within
from specbench.errors import InputError
from tasks.question import Question, read_file
from tasks.suite import Suite

JOINT = "\n\n"
BLANK_LINES = re.compile(r"\n\s*\n")


class LongContext(Suite):
    """`per_length` questions of each length in tokens; each length is a task (`context_4096`).

    path: a text file whose documents end at blank lines. Each question begins at a different document. A source that is shorter
    than the prompt is repeated, and the stratum `repeated` says so: methods that copy from the prompt gain from that.
    """

    def __init__(
        self,
        path: str | None,
        lengths: list[Annotated[int, Within(16, 10_000_000)]],
        per_length: Annotated[int, Within(1, 10_000)],
        characters_per_token: Annotated[float, Within(0.5, 20)],
        request: str,
        seed: Seed = 0,
    ) -> None:
        self.name, self._rate, self._request = "long_context", characters_per_token, request
        if path is None:
            raise InputError(f"suite {self.name} needs a source: give a text file as suite.path=FILE")
        if not lengths or len(set(lengths)) < len(lengths):
            raise InputError(f"suite.lengths={lengths}: expected different numbers of tokens, at least one")
        documents = _read_documents(Path(path).expanduser(), per_length)
        starts = random.Random(seed).sample(range(len(documents)), per_length)
        self._questions = [
            self._build_question(f"{length}-{number}", length, documents[start:] + documents[:start])
            for length in lengths
            for number, start in enumerate(starts, start=1)
        ]
        rows = [asdict(question) for question in self._questions]
        self.fingerprint = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()

    def questions(self) -> list[Question]:
        return self._questions

    def _build_question(self, name: str, length: int, documents: Sequence[str]) -> Question:
        text, repeated = _join_documents(documents, round(length * self._rate))
        task, strata = f"context_{length}", {"length bucket": str(length), "repeated": "yes" if repeated else "no"}
        return Question(name, task, task, (f"{text}{JOINT}{self._request}",), strata=strata)


def _read_documents(path: Path, least: int) -> list[str]:
    """Return the texts between blank lines. Raises InputError for fewer than needed."""
    try:
        text = read_file(path).decode()
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8") from None
    documents = [document.strip() for document in BLANK_LINES.split(text) if document.strip()]
    if len(documents) < least:
        raise InputError(f"suite.per_length={least}: expected at most {len(documents)}, the documents of {path}")
    return documents


def _join_documents(documents: Sequence[str], characters: int) -> tuple[str, bool]:
    """Return the first characters of the joined documents, and whether the first one had to come again."""
    parts: list[str] = []
    size = 0
    for document in cycle(documents):
        if size >= characters:
            break
        parts.append(document)
        size += len(document) + len(JOINT)
    return JOINT.join(parts)[:characters].rstrip(), len(parts) > len(documents)
