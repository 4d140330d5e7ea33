"""`specbench train method=self_speculative`: trials depend on seed and results only, also after a kill; the set found runs."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from specbench.drafters.skip_sets import load_skip_set
from specbench.drafters.skipping import SkipSet
from specbench.running.progress import TrainingDisplay
from specbench.setup.compose import compose_train
from specbench.training.calibration import SkipSetTiming
from specbench.training.search import AT_RANDOM, Search
from specbench.training.train import train
from tests.conftest import Cli, Tiny

pytestmark = pytest.mark.full

LAYERS = 6
TRIALS = AT_RANDOM + 8
NEEDED = (0, 3)  # attention; the drafts are worthless without them


def fake_timing(skipped: SkipSet) -> SkipSetTiming:
    """Pretend that kept sublayers cost a second each and the two needed ones yield four tokens each."""
    tokens = 4 + 4 * len(set(NEEDED) - set(skipped.attention))
    seconds = 1.0 + 2 * LAYERS - len(skipped.attention) - len(skipped.mlp)
    return SkipSetTiming(skipped, 0.5, tokens, seconds, 4, 2.0, 10, 8, 9, 3)


def read_trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as lines:
        return list(csv.DictReader(lines))


def run_search(folder: Path, watch: Callable[..., None] = lambda *_: None) -> Search:
    folder.mkdir(exist_ok=True)
    search = Search(folder, LAYERS, seed=0)
    search.run_trials(TRIALS, fake_timing, watch)
    return search


def test_the_search_beats_chance_and_its_starting_points(tmp_path: Path) -> None:
    search = run_search(tmp_path / "whole")
    rates = [timing.tokens_per_second for timing in search.timings]
    assert len(rates) == len(read_trials(tmp_path / "whole")) == TRIALS
    assert search.timings[0].skipped == SkipSet((1, 3, 5), ()) and search.timings[1].skipped == SkipSet((1, 3, 5), (1, 3, 5))
    assert max(rates[AT_RANDOM:]) > max(rates[:AT_RANDOM]), rates
    assert not set(NEEDED) & set(search.timings[search.best].skipped.attention)


@pytest.mark.parametrize("killed_at", [1, 3, AT_RANDOM + 2])
def test_a_killed_search_resumes_with_the_same_trials(tmp_path: Path, killed_at: int) -> None:
    run_search(tmp_path / "whole")
    calls = 0

    def measure_until_killed(skipped: SkipSet) -> SkipSetTiming:
        nonlocal calls
        calls += 1
        if calls > killed_at:
            raise KeyboardInterrupt
        return fake_timing(skipped)

    (tmp_path / "killed").mkdir()
    with pytest.raises(KeyboardInterrupt):
        Search(tmp_path / "killed", LAYERS, seed=0).run_trials(TRIALS, measure_until_killed, lambda *_: None)
    seen: list[int] = []
    run_search(tmp_path / "killed", lambda what, done, of, row: seen.append(done))
    assert seen == list(range(killed_at + 1, TRIALS + 1))
    whole, killed = ([row | {"trial": ""} for row in read_trials(tmp_path / name)] for name in ("whole", "killed"))
    assert whole == killed


def test_the_drift_of_the_machine_is_divided_out(tmp_path: Path) -> None:
    """A machine half as fast from the second trial on gives the same objective."""
    search = Search(tmp_path, LAYERS, seed=0)
    slow = iter([1, 2, 2])

    def drifting(skipped: SkipSet) -> SkipSetTiming:
        factor = next(slow)
        return SkipSetTiming(skipped, 0.5, 8, 2.0 * factor, 4, 2.0 * factor, 10, 8, 9, 3)

    search.run_trials(3, drifting, lambda *_: None)
    assert [timing.rate for timing in search.timings] == [4.0, 2.0, 2.0]
    assert [timing.tokens_per_second for timing in search.timings] == [4.0, 4.0, 4.0]


def test_a_set_that_skips_all_is_never_timed(tmp_path: Path) -> None:
    """One layer: a fourth of the random sets."""
    timed: list[SkipSet] = []

    def measure(skipped: SkipSet) -> SkipSetTiming:
        timed.append(skipped)
        return fake_timing(skipped)

    search = Search(tmp_path, 1, seed=0)
    search.run_trials(AT_RANDOM, measure, lambda *_: None)
    assert SkipSet((0,), (0,)) not in timed and len(timed) < AT_RANDOM


def overrides(tiny: Tiny, out: Path, *more: str) -> list[str]:
    return [
        *(f"target.path={tiny.target}", f"target.draft.path={tiny.draft}", "target.dtype=float32", "method=self_speculative"),
        *("suite.per_task=2", "search.trials=3", "search.prompts=1", "search.max_new_tokens=8", f"out={out}", *more),
    ]


def test_a_stopped_search_says_what_is_kept(tiny: Tiny, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(_: TrainingDisplay, what: str, done: int, *more: object) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingDisplay, "update", update)
    _, _, err = cli("train", *overrides(tiny, tmp_path / "out"))
    told = f"kept: 2 trials of the search; run the same command with out={tmp_path / 'out'} to resume"
    assert err == f"specbench: stopped; {told}\n"


def test_what_was_found_can_be_run(tiny: Tiny, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "found"
    assert cli("train", *overrides(tiny, out)).status == 0
    skipped, rows = load_skip_set(str(out), 2), read_trials(out)
    best = max(rows, key=lambda row: float(row["tokens_per_second"]))
    assert [" ".join(map(str, layers)) for layers in (skipped.attention, skipped.mlp)] == [best["attention"], best["mlp"]]
    assert (out / "curves.png").stat().st_size > 1000 and "3 skip sets timed" in (out / "README.md").read_text()
    given = tiny.overrides("method=[self_speculative]", f"method.self_speculative.checkpoint={out}", "limit=1", "repeats=1")
    ran = cli("run", *given)
    assert ran.status == 0 and "self_speculative" in ran.out, ran.err


def test_a_finished_search_is_left_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    config = compose_train(overrides(tiny, tmp_path / "found"))
    before = read_trials(train(config, lambda *_: None))
    assert read_trials(train(config, lambda *_: pytest.fail("nothing is left to do"))) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["epochs=3"],
            "epochs=3: has no effect, since self_speculative is searched for; "
            "expected only search.trials, search.prompts, search.max_new_tokens",
        ),
        (["limit=3"], "limit=3: has no effect, since self_speculative is searched for; expected only "),
        (["data=chats.jsonl"], "data=chats.jsonl: has no effect, since self_speculative is searched for; expected only "),
        (["search.prompts=x"], "search.prompts=x: expected a whole number, at least 1"),
    ],
)
def test_mistakes_get_one_line(tiny: Tiny, cli: Cli, tmp_path: Path, more: list[str], message: str) -> None:
    outcome = cli("train", *overrides(tiny, tmp_path / "out", *more))
    assert outcome.status == 2 and outcome.err.count("\n") == 1 and message in outcome.err, outcome.err


def test_another_search_is_not_overwritten(tiny: Tiny, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("train", *overrides(tiny, out)).status == 0
    before = read_trials(out)
    assert "holds a training of another config" in cli("train", *overrides(tiny, out, "seed=1")).err
    assert read_trials(out) == before
