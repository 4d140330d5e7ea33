"""`make gpu` keeps results, goes on after a piece that fails, and measures what it says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.table import Table
from torch.nn.attention.flex_attention import flex_attention

from benchmarks import attention, contexts, embedded, gpu, shapes
from specbench.errors import InputError
from specbench.models.load import load_tokenizer
from tests.fake_run import failed, trial, write_run

pytestmark = pytest.mark.full


def make_plan(folder: Path, limit: int = 1) -> gpu.GpuPlan:
    return gpu.GpuPlan(torch.device("cpu"), limit, "100m", ["100m"], [500], folder / "runs", folder / "reports")


def make_table() -> Table:
    table = Table("what", "measured")
    table.add_row("bandwidth", "1234 GB/s")
    return table


def test_a_result_is_kept_and_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def too_large() -> Table:
        calls.append("large")
        raise InputError("70.0 billion weights need 140.0 GB")

    def fine() -> Table:
        calls.append("fine")
        return make_table()

    monkeypatch.setattr(gpu, "pieces", lambda _: {"large": too_large, "fine": fine})
    for _ in range(2):
        (why,) = gpu.run_pieces(make_plan(tmp_path)).values()
        assert "140.0 GB" in why
    assert calls == ["large", "fine", "large"]
    assert "1234 GB/s" in make_plan(tmp_path).get_file("fine").read_text(encoding="utf-8")


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    for _ in range(2):
        gpu.check(make_plan(tmp_path))
    with pytest.raises(InputError, match="holds results of .*--limit 1 .*, not of .*--limit 2 "):
        gpu.check(make_plan(tmp_path, limit=2))


def test_a_shape_that_does_not_exist_is_refused_before_anything_is_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such shape: 7bb; expected one of 100m, 1b, 7b"):
        gpu.check(replace(make_plan(tmp_path), cards=["100m", "7bb"]))
    assert not list(tmp_path.iterdir())


def test_the_script_prints_every_result_and_every_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Table:
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "pieces", lambda _: {"broken": broken, "fine": make_table})
    monkeypatch.setattr("sys.argv", "gpu --device cpu --shape 100m --cards 100m --lengths 500,900 --out results/try".split())
    assert gpu.main() == 2
    printed = capsys.readouterr().out
    assert "1234 GB/s" in printed and "CUBLAS_STATUS_ALLOC_FAILED" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("--lengths 1k", "1k: expected positive"), ("--limit x", "invalid int value"), ("", "no GPU found")],
)
def test_what_the_script_cannot_do_it_says_in_a_line(arguments: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "pick_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr("sys.argv", ["gpu", *arguments.split()])
    with pytest.raises(InputError, match=message):
        gpu.main()


def test_turns_that_failed_are_no_answer(tmp_path: Path) -> None:
    run = write_run(tmp_path, [trial("pld", [2, 1], 1.0)])
    assert embedded.check_complete(tmp_path) == tmp_path
    run.append_trials(failed("eagle"))
    with pytest.raises(InputError, match="1 of 2 turns failed, the first of eagle: out of memory"):
        embedded.check_complete(tmp_path)


def test_long_prompts_have_the_chosen_length(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("specbench/zoo/target", None, False)
    contexts.write_questions(tmp_path / "q.jsonl", 700, 2)
    turns = [json.loads(line)["turns"][0] for line in (tmp_path / "q.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(turns) == 2 and turns[0][:300] != turns[1][:300]
    for turn in turns:
        assert 500 < len(tokenizer(turn).input_ids) <= 750


def test_a_shape_and_the_mini_target_side_by_side() -> None:
    (baseline, pld) = shapes.compare_shapes("100m", "pld", tokens=12).to_dict("records")
    assert (baseline["method"], baseline["mean_accepted_tokens"]) == ("autoregressive", 1)
    assert pld["texts"] == pld["texts_equal"] == pld["steps_equal"] == 6
    assert pld["steps"] == pld["steps_mini"] < baseline["steps"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "masked"])
def test_ways_of_attention_agree(masked: bool) -> None:
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, 2, 40, 16)
    query, mask = torch.randn(1, 6, 3, 16), torch.zeros(3, 40).index_fill_(1, torch.tensor([38, 39]), float("-inf"))
    given = query, keys, values, mask if masked else None
    engine, *others = (way(*given) for way in attention.list_attentions(flex_attention).values())
    for other in others:
        torch.testing.assert_close(other, engine)


def test_attention_is_timed_at_the_sizes_of_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    found = attention.measure("100m", torch.device("cpu"), [32], [1, 3])
    assert len(found) == 2 * 5 and (found["ms"] > 0).all()
    config = attention.expand_shape("8b")
    assert (config.num_hidden_layers, config.num_key_value_heads, config.head_dim) == (32, 8, 128)
