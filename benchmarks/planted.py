"""Plants bugs that published implementations had, one at a time: how often does the certificate find each, or cry wolf?

    python -m benchmarks.planted [--repetitions N] [--draws N] [--out FOLDER]

Each row runs the part of the certificate meant to find the bug, on the miniature target, with a new seed per repetition, at its
level among twenty methods. The last rows have no bug: a finding is a false alarm of a certificate of that one method, whose level
is 1 %. Rows already in FOLDER are not measured again.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
from specbench.cli.output import console
from specbench.decoding import language_model, loop, verify
from specbench.decoding.drafter import Drafter
from specbench.decoding.kv_store import KVStore
from specbench.decoding.loop import Generation, generate
from specbench.decoding.masks import ChainBias
from specbench.decoding.sampling import Sampling, probabilities
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import SamplingVerifier, Verification
from specbench.records.files import write_atomic
from specbench.records.markdown import format_markdown_table
from specbench.setup.compose import compose_run

LEVEL = 0.01 / 25  # of each G-test in a certificate of twenty methods, four of which draw
ALONE = 0.01 / 10  # in a certificate of one method that draws
NOISE_TEXTS = 8  # from which the rounding is measured, with the bug planted
COOL = Sampling(temperature=0.5)
PLAIN = Sampling(temperature=1.0)
STOPS = (3, 5)
PROMPTS, TEXT = 96, 24  # prompts per repetition and tokens per text, where texts are checked
Planting = Callable[[], AbstractContextManager[Any]]


class AcceptsByP(SamplingVerifier):
    """q is forced to 1 in the acceptance test but not in the residual (as in an issue of EAGLE)."""

    def _accept_sibling(
        self, siblings: Any, tokens: list[int], target_probs: Tensor, draft_probs: Tensor
    ) -> tuple[int | None, Tensor]:
        for node in siblings:
            if float(self.dice.draw_uniform()) < float(target_probs[tokens[node]]):
                return node, target_probs
            residual = (target_probs - draft_probs).clamp(min=0)
            target_probs = residual / residual.sum() if residual.sum() > 0 else target_probs
        return None, target_probs


class NoResidual(SamplingVerifier):
    """The recovered token is drawn from p instead of the residual (as in SPACE)."""

    def _accept_sibling(
        self, siblings: Any, tokens: list[int], target_probs: Tensor, draft_probs: Tensor
    ) -> tuple[int | None, Tensor]:
        return super()._accept_sibling(siblings, tokens, target_probs, draft_probs)[0], target_probs


class ColdBonus(SamplingVerifier):
    """The bonus token is drawn without the temperature (as in EAGLE-1)."""

    def _test_drawn(self, tree: DraftTree, drawn_from: Tensor, logits: Tensor) -> Verification:
        result = super()._test_drawn(tree, drawn_from, logits)
        if tree.children[result.path[-1]]:
            return result
        bonus = int(self.dice.draw(probabilities(logits[result.path[-1]], replace(self.sampling, temperature=1.0))))
        return Verification(result.path, bonus, [*result.tokens[:-1], bonus], result.device)


class IndependentSiblings(SamplingVerifier):
    """Each sibling of a deterministic tree is compared with its own draw (as in REST's and Medusa's nucleus sampling)."""

    def _follow(self, tree: DraftTree, logits: Tensor) -> Verification:
        tokens, path = tree.tokens.tolist(), [0]
        while True:
            p = probabilities(logits[path[-1]], self.sampling)
            kept = [node for node in tree.children[path[-1]] if int(self.dice.draw(p)) == tokens[node]]
            if not kept:
                last = int(self.dice.draw(p))
                return Verification(path, last, [*(tokens[node] for node in path[1:]), last], tree.tokens.device)
            path.append(kept[0])


def replace_verifier(kind: type[SamplingVerifier]) -> AbstractContextManager[Any]:
    return patch.object(verify, "SamplingVerifier", kind)


def skip_compaction() -> AbstractContextManager[Any]:
    """A committed branch that is not the first keeps the KV rows of its sibling."""
    return patch.object(KVStore, "_move", lambda *_: None)


def shift_positions() -> AbstractContextManager[Any]:
    """Drafted tokens are one position too far."""
    batch_trees = language_model._batch_trees

    def batch_shifted(trees: list[DraftTree], lengths: list[int], bias: ChainBias) -> tuple[Tensor, Tensor]:
        ids, positions = batch_trees(trees, lengths, bias)
        return ids, positions + (positions > positions[:, :1]) * (lengths[0] > 0)

    return patch.object(language_model, "_batch_trees", batch_shifted)


def ignore_stops() -> AbstractContextManager[Any]:
    """Tokens of the same step stay after the end of sequence."""

    def commit(self: Any, tokens: list[int]) -> int:
        taken = tokens[: self.limit - len(self.generation.output_ids)]
        self.generation.output_ids += taken
        if any(token in self.stops for token in taken):
            self.generation.finish_reason = "eos"
        elif len(self.generation.output_ids) >= self.limit:
            self.generation.finish_reason = self.why
        return len(taken)

    return patch.object(loop._Sequence, "commit", commit)


@dataclass(frozen=True)
class Plant:
    """method: where the bug is planted; part: of the certificate that should find it."""

    what: str
    method: str
    part: str
    planting: Planting
    sampling: Sampling = PLAIN

    @property
    def level(self) -> float:
        """The level of each statistical test; 0 without one."""
        if self.part != "enumerated":
            return 0.0
        return ALONE if self in SOUND else LEVEL


PLANTS = (
    Plant("q forced to 1", "self_speculative", "enumerated", lambda: replace_verifier(AcceptsByP)),
    Plant("no residual on rejection", "sps", "enumerated", lambda: replace_verifier(NoResidual)),
    Plant("temperature missing on the bonus token", "self_speculative", "enumerated", lambda: replace_verifier(ColdBonus), COOL),
    Plant("siblings re-sampled independently", "medusa", "enumerated", lambda: replace_verifier(IndependentSiblings)),
    Plant("KV row kept from a rejected branch", "medusa", "token by token", skip_compaction),
    Plant("position off by one", "pld", "token by token", shift_positions),
    Plant("tokens after end-of-sequence kept", "sps", "token by token", ignore_stops),
    Plant("state leaks between questions", "token_recycling_warm", "order", nullcontext),
)
SOUND = (
    Plant("no bug", "self_speculative", "enumerated", nullcontext),
    Plant("no bug", "medusa", "token by token", nullcontext),
    Plant("no bug", "token_recycling", "order", nullcontext),
)


class Miniature:
    """The miniature target and its draft model."""

    def __init__(self, draws: int) -> None:
        self.draws = draws
        self.p_values: list[float] = []  # of the last plant's statistical tests
        self.target, self.draft = build_miniature("llama")

    def find(self, plant: Plant, seed: int) -> bool:
        """Return whether the plant's part of the certificate finds it."""
        parts = {"enumerated": self._enumerate, "token by token": self._check_tokens, "order": self._check_order}
        return parts[plant.part](plant, seed)

    def _build_drafter(self, plant: Plant) -> Drafter:
        node = compose_run([f"method=[{plant.method}]"]).method[plant.method]
        drafter = build_drafter(node, self.draft)
        drafter.bind(self.target)
        return drafter

    def _enumerate(self, plant: Plant, seed: int) -> bool:
        drafter, sampling = self._build_drafter(plant), replace(plant.sampling, seed=2 * seed)
        with plant.planting():
            results = enumeration.run_tests(self.target, drafter, sampling, self.draws, plant.level)
        self.p_values += [test.p_value for test in results[0]]
        return min(test.p_value for test in results[-1]) < plant.level

    def _draw_prompts(self, seed: int) -> list[list[int]]:
        """Draw random prompts, each with a repeated motif."""
        generator = torch.Generator().manual_seed(seed)
        motifs = [torch.randint(TOKENS, (8,), generator=generator).tolist() for _ in range(PROMPTS)]
        return [motif + motif[: 3 + number % 5] for number, motif in enumerate(motifs)]

    def _check_tokens(self, plant: Plant, seed: int) -> bool:
        sampling = Sampling(max_new_tokens=TEXT, stop_token_ids=STOPS)
        drafter, texts = self._build_drafter(plant), []
        with plant.planting():
            for prompt in self._draw_prompts(seed):
                texts.append(GeneratedText(prompt, self._generate(drafter, prompt, sampling).output_ids, sampling))
            noise = measure_noise(self.target, texts[:NOISE_TEXTS], PLAIN)
            return check_tokens(self.target, texts, texts, noise.greedy).wrong > 0

    def _generate(self, drafter: Drafter, prompt: list[int], sampling: Sampling) -> Generation:
        return generate(self.target, drafter, [torch.tensor(prompt)], sampling)[0]

    def _check_order(self, plant: Plant, seed: int) -> bool:
        """Check a warm method as if it claimed to be cold."""
        drafter, sampling = self._build_drafter(plant), Sampling(max_new_tokens=TEXT)
        return count_leaks(lambda prompt: self._generate(drafter, prompt, sampling), self._draw_prompts(seed)) > 0


COUNTS = ("found", "of", "below", "tests")
COLUMNS = ("bug", "planted in", "part of the certificate", "found", "95 % limit", "p < 0.05")


@dataclass(frozen=True)
class Row:
    """limit: one-sided 95 % limit, at least of the power or at most of the false alarms; below: tests with p < 0.05."""

    plant: Plant
    found: int
    of: int
    below: int
    tests: int

    @property
    def limit(self) -> float:
        if self.plant in SOUND:
            return bound_error_rate(self.found, self.of)
        return 1 - bound_error_rate(self.of - self.found, self.of)

    def format_cells(self) -> tuple[str, ...]:
        side = "at most" if self.plant in SOUND else "at least"
        below = f"{self.below} of {self.tests}" if self.tests else "-"
        named = (self.plant.what, f"`{self.plant.method}`", self.plant.part)
        return (*named, f"{self.found} of {self.of}", f"{side} {self.limit:.3f}", below)


def measure_plant(small: Miniature, plant: Plant, times: int) -> Row:
    small.p_values = []
    found = sum(small.find(plant, seed) for seed in range(times))
    return Row(plant, found, times, sum(p < 0.05 for p in small.p_values), len(small.p_values))


def write_rows(rows: list[Row], draws: int, out: Path) -> None:
    plain = [identify(row.plant, row.of) | {name: getattr(row, name) for name in ("limit", *COUNTS)} for row in rows]
    table = format_markdown_table(COLUMNS, [row.format_cells() for row in rows])
    lines = [f"# Planted bugs, at {draws} texts where distributions are enumerated", "", *table]
    write_atomic(out / "planted.json", json.dumps({"draws": draws, "rows": plain}, indent=1) + "\n")
    write_atomic(out / "planted.md", "\n".join(lines) + "\n")


def identify(plant: Plant, times: int) -> dict[str, Any]:
    return {"bug": plant.what, "method": plant.method, "part": plant.part, "level": plant.level, "of": times}


def read_rows(out: Path, draws: int, times: dict[Plant, int]) -> dict[Plant, Row]:
    """Read the rows that an earlier call with as many draws and repetitions left."""
    file = out / "planted.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows = earlier["rows"] if earlier.get("draws") == draws else []
    pairs = [(plant, row) for plant in times for row in rows if identify(plant, times[plant]).items() <= row.items()]
    return {plant: Row(plant, *(row[name] for name in COUNTS)) for plant, row in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--sound", type=int, default=200, help="repetitions of the rows without a bug")
    parser.add_argument("--draws", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("reports/planted"), metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    small = Miniature(options.draws)
    times = {plant: options.sound if plant in SOUND else options.repetitions for plant in (*PLANTS, *SOUND)}
    rows = read_rows(options.out, options.draws, times)
    for plant in times:
        rows[plant] = rows.get(plant) or measure_plant(small, plant, times[plant])
        console.print(" · ".join(rows[plant].format_cells()), markup=False, highlight=False)
        write_rows([rows[plant] for plant in times if plant in rows], options.draws, options.out)


if __name__ == "__main__":
    main()
