"""Bugs that published implementations had, planted in ours one at a time: how often the certificate finds each, and cries wolf.

    python -m benchmarks.planted [--repetitions N] [--draws N] [--out FOLDER]

Each row is the part of the certificate that is meant to find the bug, on the miniature target, with another seed each time, at
the level that it has among twenty methods. The last rows have no bug: what is found there is a false alarm of a certificate of
that one method, whose level is 1 %. Rows that lie in FOLDER from an earlier call are not measured again.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from specbench.certify import enumeration
from specbench.certify.miniature import TOKENS, build_drafter, build_miniature
from specbench.certify.texts import count_leaks
from specbench.certify.token_check import GeneratedText, bound_error_rate, check_tokens, measure_noise
from specbench.cli.parser import console
from specbench.decoding import language_model, loop, verify
from specbench.decoding.drafter import Drafter
from specbench.decoding.kv_store import KVStore
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Sampling, probabilities
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import SamplingVerifier, Verification
from specbench.records.files import write_atomic
from specbench.setup.compose import compose_run

LEVEL = 0.01 / 25  # of each G-test in a certificate of twenty methods, four of which draw
ALONE = 0.01 / 10  # in a certificate of one method that draws
NOISE_TEXTS = 8  # from which the rounding is measured, with the bug in
COOL = Sampling(temperature=0.5)
PLAIN = Sampling(temperature=1.0)
STOPS = (3, 5)
PROMPTS, TEXT = 96, 24  # prompts of a repetition and tokens of each text, where texts are followed
Planting = Callable[[], Any]


class AcceptsByP(SamplingVerifier):
    """q forced to 1 where a draft is accepted, but not in the residual (as in an issue of EAGLE's)."""

    def _accept_sibling(self, siblings: Any, tokens: list[int], wanted: Tensor, drawn: Tensor) -> tuple[int | None, Tensor]:
        for node in siblings:
            if float(self.dice.draw_uniform()) < float(wanted[tokens[node]]):
                return node, wanted
            residual = (wanted - drawn).clamp(min=0)
            wanted = residual / residual.sum() if residual.sum() > 0 else wanted
        return None, wanted


class NoResidual(SamplingVerifier):
    """What replaces a rejected token is drawn from p itself (as in SPACE)."""

    def _accept_sibling(self, siblings: Any, tokens: list[int], wanted: Tensor, drawn: Tensor) -> tuple[int | None, Tensor]:
        return super()._accept_sibling(siblings, tokens, wanted, drawn)[0], wanted


class ColdBonus(SamplingVerifier):
    """The token behind a draft that is accepted to its end is drawn without the temperature (as in EAGLE-1)."""

    def _test_drawn(self, tree: DraftTree, drawn_from: Tensor, logits: Tensor) -> Verification:
        found = super()._test_drawn(tree, drawn_from, logits)
        if tree.children[found.path[-1]]:
            return found
        bonus = int(self.dice.draw(probabilities(logits[found.path[-1]], replace(self.sampling, temperature=1.0))))
        return Verification(found.path, bonus, [*found.tokens[:-1], bonus])


class IndependentSiblings(SamplingVerifier):
    """Each sibling of a deterministic tree is held against a draw of its own (as in REST's and Medusa's nucleus sampling)."""

    def _follow(self, tree: DraftTree, logits: Tensor) -> Verification:
        tokens, path = tree.tokens.tolist(), [0]
        while True:
            p = probabilities(logits[path[-1]], self.sampling)
            kept = [node for node in tree.children[path[-1]] if int(self.dice.draw(p)) == tokens[node]]
            if not kept:
                last = int(self.dice.draw(p))
                return Verification(path, last, [tokens[node] for node in path[1:]] + [last])
            path.append(kept[0])


@contextmanager
def rule(kind: type[SamplingVerifier]) -> Iterator[None]:
    with patch.object(verify, "SamplingVerifier", kind):
        yield


@contextmanager
def uncompacted() -> Iterator[None]:
    """A committed branch that is not the first keeps the KV rows of the one beside it."""
    with patch.object(KVStore, "_move", lambda *_: None):
        yield


@contextmanager
def shifted() -> Iterator[None]:
    """Drafted tokens stand one position too far."""
    right = language_model._batch_trees

    def wrong(trees: list[DraftTree], lengths: list[int]) -> tuple[Tensor, Tensor]:
        ids, positions = right(trees, lengths)
        return ids, positions + (positions > positions[:, :1]) * (lengths[0] > 0)

    with patch.object(language_model, "_batch_trees", wrong):
        yield


@contextmanager
def endless() -> Iterator[None]:
    """Tokens of the same step stay behind the end of sequence."""

    def commit(self: Any, tokens: list[int]) -> int:
        taken = tokens[: self.limit - len(self.generation.output_ids)]
        self.generation.output_ids += taken
        if any(token in self.stops for token in taken):
            self.generation.finish_reason = "eos"
        elif len(self.generation.output_ids) >= self.limit:
            self.generation.finish_reason = self.why
        return len(taken)

    with patch.object(loop._Sequence, "commit", commit):
        yield


@contextmanager
def none() -> Iterator[None]:
    yield


@dataclass(frozen=True)
class Plant:
    """method: where it is planted; part: of the certificate that is to find it."""

    what: str
    method: str
    part: str
    planting: Planting
    sampling: Sampling = PLAIN

    @property
    def level(self) -> float:
        """Of each statistical test; 0 where there is none."""
        if self.part != "counted out":
            return 0.0
        return ALONE if self in SOUND else LEVEL


PLANTS = (
    Plant("q forced to 1", "self_speculative", "counted out", lambda: rule(AcceptsByP)),
    Plant("no residual on rejection", "sps", "counted out", lambda: rule(NoResidual)),
    Plant("temperature missing on the bonus token", "self_speculative", "counted out", lambda: rule(ColdBonus), COOL),
    Plant("siblings re-sampled independently", "medusa", "counted out", lambda: rule(IndependentSiblings)),
    Plant("KV row kept from a rejected branch", "medusa", "followed", uncompacted),
    Plant("position off by one", "pld", "followed", shifted),
    Plant("tokens after end-of-sequence kept", "sps", "followed", endless),
    Plant("state leaks between questions", "token_recycling_warm", "order", none),
)
SOUND = (
    Plant("no bug", "self_speculative", "counted out", none),
    Plant("no bug", "medusa", "followed", none),
    Plant("no bug", "token_recycling", "order", none),
)


class Miniature:
    """The target and its draft model, made once."""

    def __init__(self, draws: int) -> None:
        self.draws, self.p_values = draws, []  # of the last plant's statistical tests
        self.target, self.draft = build_miniature("llama")

    def found(self, plant: Plant, seed: int) -> bool:
        parts = {"counted out": self._counted, "followed": self._followed, "order": self._order}
        return parts[plant.part](plant, seed)

    def _drafter(self, plant: Plant) -> Drafter:
        node = compose_run([f"method=[{plant.method}]"]).method[plant.method]
        drafter = build_drafter(node, self.draft)
        drafter.bind(self.target)
        return drafter

    def _counted(self, plant: Plant, seed: int) -> bool:
        with plant.planting():
            found = enumeration.run_tests(
                self.target, self._drafter(plant), replace(plant.sampling, seed=2 * seed), self.draws, plant.level
            )
        self.p_values += [test.p_value for test in found[0]]
        return min(test.p_value for test in found[-1]) < plant.level

    def _prompts(self, seed: int) -> list[list[int]]:
        """Random, with a motif in each that comes again."""
        generator = torch.Generator().manual_seed(seed)
        motifs = [torch.randint(TOKENS, (8,), generator=generator).tolist() for _ in range(PROMPTS)]
        return [motif + motif[: 3 + at % 5] for at, motif in enumerate(motifs)]

    def _followed(self, plant: Plant, seed: int) -> bool:
        sampling = Sampling(max_new_tokens=TEXT, stop_token_ids=STOPS)
        drafter, texts = self._drafter(plant), []
        with plant.planting():
            for prompt in self._prompts(seed):
                texts.append(GeneratedText(prompt, self._generated(drafter, prompt, sampling).output_ids, sampling))
            noise = measure_noise(self.target, texts[:NOISE_TEXTS], PLAIN)
            return check_tokens(self.target, texts, texts, noise.greedy).wrong > 0

    def _generated(self, drafter: Drafter, prompt: list[int], sampling: Sampling) -> Generation:
        return generate(self.target, drafter, [torch.tensor(prompt)], sampling)[0]

    def _order(self, plant: Plant, seed: int) -> bool:
        """Of a method whose state outlives the turn, as if it said otherwise."""
        drafter, sampling = self._drafter(plant), Sampling(max_new_tokens=TEXT)
        return count_leaks(lambda prompt: self._generated(drafter, prompt, sampling), self._prompts(seed)) > 0


COLUMNS = ("bug", "planted in", "part of the certificate", "found", "95 % limit", "p < 0.05")


@dataclass(frozen=True)
class Row:
    """limit: one-sided, 95 %: the power is at least that, or the rate of false alarms at most; below: tests with p < 0.05."""

    plant: Plant
    found: int
    of: int
    below: int
    tests: int

    @property
    def limit(self) -> float:
        return (
            bound_error_rate(self.found, self.of) if self.plant in SOUND else 1 - bound_error_rate(self.of - self.found, self.of)
        )

    def cells(self) -> tuple[str, ...]:
        side = "at most" if self.plant in SOUND else "at least"
        below = f"{self.below} of {self.tests}" if self.tests else "-"
        named = (self.plant.what, f"`{self.plant.method}`", self.plant.part)
        return (*named, f"{self.found} of {self.of}", f"{side} {self.limit:.3f}", below)


def measured(small: Miniature, plant: Plant, times: int) -> Row:
    small.p_values = []
    found = sum(small.found(plant, seed) for seed in range(times))
    return Row(plant, found, times, sum(p < 0.05 for p in small.p_values), len(small.p_values))


def written(rows: list[Row], draws: int, out: Path) -> None:
    plain = [
        {"bug": row.plant.what, "method": row.plant.method, "part": row.plant.part, "level": row.plant.level, "limit": row.limit}
        | {name: getattr(row, name) for name in ("found", "of", "below", "tests")}
        for row in rows
    ]
    lines = [f"# Planted bugs, at {draws} texts where distributions are counted out", "", "| " + " | ".join(COLUMNS) + " |"]
    lines += ["|" + " --- |" * len(COLUMNS), *("| " + " | ".join(row.cells()) + " |" for row in rows)]
    write_atomic(out / "planted.json", json.dumps({"draws": draws, "rows": plain}, indent=1) + "\n")
    write_atomic(out / "planted.md", "\n".join(lines) + "\n")


def rows_of(out: Path, draws: int) -> list[dict[str, Any]]:
    """What an earlier call with as many draws has left."""
    file = out / "planted.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows: list[dict[str, Any]] = earlier["rows"] if earlier.get("draws") == draws else []
    return rows


def found_before(plant: Plant, times: int, rows: list[dict[str, Any]]) -> Row | None:
    for row in rows:
        if (row["bug"], row["method"], row["part"], row["of"], row["level"]) == (
            plant.what,
            plant.method,
            plant.part,
            times,
            plant.level,
        ):
            return Row(plant, *(row[name] for name in ("found", "of", "below", "tests")))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--sound", type=int, default=200, help="repetitions where there is no bug")
    parser.add_argument("--draws", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("reports/planted"), metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    small, earlier = Miniature(options.draws), rows_of(options.out, options.draws)
    times = {plant: options.sound if plant in SOUND else options.repetitions for plant in (*PLANTS, *SOUND)}
    rows = {plant: found_before(plant, times[plant], earlier) for plant in times}
    for plant in times:
        row = rows[plant] = rows[plant] or measured(small, plant, times[plant])
        console.print(" · ".join(row.cells()), markup=False, highlight=False)
        written([row for row in rows.values() if row], options.draws, options.out)


if __name__ == "__main__":
    main()
