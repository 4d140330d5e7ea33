"""`import specbench` for a notebook: it is light, loads, generates, runs and reports, and refuses mistakes in one line."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import specbench
from specbench import InputError, LoadedMethod, LoadedTarget, generate, load_method, load_target, open_run, render_report, run
from specbench.api.generating import SamplingOptions
from specbench.api.results import TRIALS
from specbench.setup.compose import compose_run
from specbench.setup.settings import SamplingSettings
from specbench.setup.words import check_words, format_words
from tests.conftest import Tiny
from tests.whole_run import write_whole_run

PROMPT = "What is here?"
HEAVY = ("torch", "pandas", "transformers", "hydra", "yaml")
QUICK: dict[str, Any] = {"limit": 1, "repeats": 1, "check_baseline": False, "threads": 1, "method": ["pld"], "task": ["qa"]}


@pytest.fixture(scope="module")
def target(tiny: Tiny) -> LoadedTarget:
    return load_target(tiny.target, dtype="float32", draft={"path": tiny.draft})


@pytest.fixture(scope="module")
def pld(target: LoadedTarget) -> LoadedMethod:
    return load_method("pld", target, length=4, min_ngram=1)


# Importing


def test_the_import_is_light_and_lists_its_names() -> None:
    code = f"import sys, specbench; dir(specbench); print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=specbench.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_that_is_offered_is_there() -> None:
    assert sorted(specbench.__all__) == sorted(["ROOT", *specbench._MODULES])
    assert set(specbench.__all__) <= set(dir(specbench))
    for name in specbench.__all__:
        assert getattr(specbench, name).__name__ == name if name != "ROOT" else specbench.ROOT.is_dir()
    with pytest.raises(AttributeError, match="no attribute 'load_targets'"):
        specbench.load_targets  # noqa: B018


def test_the_typed_options_of_sampling_are_its_settings() -> None:
    assert set(SamplingOptions.__annotations__) == set(SamplingSettings.__dataclass_fields__)


# Settings of Python as words

WORDS = [
    ({"limit": 3, "threads": None, "profile": True}, ["limit=3", "threads=null", "profile=true"]),
    ({"method": ["pld", "sps"]}, ["method=[pld,sps]"]),
    ({"method": ("pld",), "target": "mini"}, ["method=[pld]", "target=mini"]),
    ({"sampling": {"temperature": 1e-2, "stop": ["\n\n", "it's", "a\\"]}}, ["sampling.temperature=0.01"]),
    ({"target": {"shape": "100m", "draft": {"path": Path("/a b/c")}}}, ["target.shape=100m"]),
    ({"out": "null", "goodput": {"first_token_s": 1, "token_s": 0.5}}, ["goodput={first_token_s: 1, token_s: 0.5}"]),
]


@pytest.mark.parametrize(("settings", "words"), WORDS)
def test_settings_of_python_are_those_of_the_command_line(settings: dict[str, Any], words: list[str]) -> None:
    composed, expected = compose_run(format_words(settings)), compose_run(words)
    for name, value in settings.items():
        if name == "sampling":
            assert composed.sampling.temperature == expected.sampling.temperature == 0.01
            assert composed.sampling.stop == value["stop"]
        elif name == "target" and isinstance(value, dict):
            assert composed.target.shape == expected.target.shape
            assert composed.target.draft and composed.target.draft["path"] == "/a b/c"
        elif name == "out":
            assert composed.out == "null"
        else:
            assert composed.plain[name] == expected.plain[name]


def test_a_bare_word_and_an_odd_value_are_refused() -> None:
    with pytest.raises(InputError, match=r"^pld: expected KEY=VALUE, such as method=\[pld\]$"):
        check_words(["pld"], None)
    with pytest.raises(InputError, match=r"^limit: expected text, a number, .* found object$"):
        format_words({"limit": object()})


# Generating


def test_a_method_writes_the_targets_own_text_and_counts_add_up(target: LoadedTarget) -> None:
    sps = load_method("sps", target, draft_tokens=3)
    plain, answer = (generate(source, PROMPT, max_new_tokens=24, ignore_eos=True) for source in (target, sps))
    assert answer.output_ids == plain.output_ids and answer.text == plain.text != ""
    assert answer.new_tokens == 1 + sum(answer.committed) == 24
    assert plain.steps == 23 and plain.mean_accepted_tokens == 1.0 and math.isnan(plain.acceptance_rate)
    assert answer.mean_accepted_tokens == pytest.approx(23 / answer.steps)
    assert answer.acceptance_rate == pytest.approx(sum(answer.accepted) / sum(answer.depth))
    assert answer.seconds == answer.prefill_s + answer.decode_s > 0
    assert answer.finish_reason == "length" and "output_ids" not in repr(answer)


def test_one_token_has_no_step(target: LoadedTarget) -> None:
    answer = generate(target, PROMPT, max_new_tokens=1)
    assert (answer.new_tokens, answer.steps) == (1, 0) and math.isnan(answer.mean_accepted_tokens)


def test_a_prompt_is_a_text_or_messages_or_ids(target: LoadedTarget, pld: LoadedMethod) -> None:
    text = generate(pld, PROMPT, max_new_tokens=4)
    chat = [{"role": "user", "content": PROMPT}]
    assert generate(pld, chat, max_new_tokens=4).prompt_ids == text.prompt_ids
    assert generate(pld, text.prompt_ids, max_new_tokens=4).output_ids == text.output_ids
    longer = [*chat, {"role": "assistant", "content": "This."}, {"role": "user", "content": "And there?"}]
    assert len(generate(target, longer, max_new_tokens=1).prompt_ids) > len(text.prompt_ids)


def test_a_draft_model_of_ones_own_and_a_seed(target: LoadedTarget) -> None:
    sps = load_method("sps", target, draft_tokens=2)
    first, again, other = (
        generate(sps, PROMPT, max_new_tokens=12, temperature=1.0, ignore_eos=True, seed=seed) for seed in (1, 1, 2)
    )
    assert first.output_ids == again.output_ids != other.output_ids
    assert first.draft_forwards > 0 and max(first.drafted) == 2


def test_a_warm_method_forgets_when_it_is_reset(target: LoadedTarget) -> None:
    warm = load_method("suffix", target)
    steps = [generate(warm, PROMPT, max_new_tokens=16, ignore_eos=True).steps for _ in range(2)]
    assert warm.warm and steps[1] < steps[0]
    warm.reset()
    assert generate(warm, PROMPT, max_new_tokens=16, ignore_eos=True).steps == steps[0]
    assert repr(warm).startswith("LoadedMethod(suffix, LoadedTarget(target.path=")


PROMPTS: list[tuple[Any, str]] = [
    (3, "prompt: expected a text, a list of messages or a list of token ids, found int"),
    (b"x", "prompt: expected a text, a list of messages or a list of token ids, found bytes"),
    ([], "prompt: expected a text, a list of messages or a list of token ids, found an empty list"),
    (["a", "b"], "found a list with str; give one prompt at a time"),
    ([[1], [2]], "found a list with list; give one prompt at a time"),
    (torch.tensor([1, 2]), "found Tensor"),
    ([True], "found a list with bool"),
    ([1, 1024], "prompt: 1024 is no token id; expected 0 to 1023"),
    ([-1], "prompt: -1 is no token id"),
    ([7] * 3000, "prompt: a prompt of 3000 tokens does not fit a context of 2048"),
    ([{"role": "user"}], "prompt[0]: expected a message {'role': …, 'content': text}, found {'role': 'user'}"),
    ([{"role": "system", "content": "x"}], "prompt[0]: the system's message belongs to the target: load_target(…, system='…')"),
    ([{"role": "assistant", "content": "x"}], "prompt[0]: role assistant; expected user"),
    ([{"role": "user", "content": "x"}] * 2, "prompt[1]: role user; expected assistant"),
    (
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        "prompt: its last message is the assistant's; expected the user's",
    ),
]


@pytest.mark.parametrize(("prompt", "line"), PROMPTS, ids=range(len(PROMPTS)))
def test_what_is_no_prompt_is_refused(pld: LoadedMethod, prompt: Any, line: str) -> None:
    assert line in refuse(generate, pld, prompt, max_new_tokens=4)


SAMPLINGS = [
    ({"max_new_tokens": 0}, "sampling.max_new_tokens=0: expected a whole number, at least 1"),
    ({"max_new_tokens": "8"}, "sampling.max_new_tokens=8: expected a whole number"),
    ({"max_tokens": 8}, "max_tokens: no such setting of sampling; the nearest is max_new_tokens"),
    ({"temperature": -1}, "sampling.temperature=-1: expected 0 (greedy)"),
    ({"min_new_tokens": 9, "max_new_tokens": 4}, "sampling.min_new_tokens=9: expected at most max_new_tokens, 4"),
    ({"stop": "end"}, "sampling.stop=end: expected a list"),
    ({"ignore_eos": 1}, "sampling.ignore_eos=1: expected true or false"),
    ({"seed": -1}, "seed=-1: expected a whole number"),
]


@pytest.mark.parametrize(("sampling", "line"), SAMPLINGS, ids=range(len(SAMPLINGS)))
def test_what_is_no_setting_of_sampling_is_refused(pld: LoadedMethod, sampling: dict[str, Any], line: str) -> None:
    assert refuse(generate, pld, PROMPT, **sampling).startswith(line)


def refuse(call: Callable[..., object], *arguments: Any, **settings: Any) -> str:
    """Return the one line that refuses a call."""
    with pytest.raises(InputError) as refused:
        call(*arguments, **settings)
    line = str(refused.value)
    assert line and "\n" not in line
    return line


# Loading


def test_what_cannot_be_loaded_is_refused(target: LoadedTarget, tmp_path: Path) -> None:
    assert refuse(load_target, "mimi").startswith("target=mimi: expected mini, ")
    assert refuse(load_target, "./nowhere").startswith("target: no model at ./nowhere: no such folder")
    assert refuse(load_target, tmp_path).startswith(f"no tokenizer at {tmp_path}")
    assert refuse(load_target, 3) == "load_target: expected a name or a path, found int"
    assert refuse(load_target, "mini", shap="100m") == "target.shap: no such setting; the nearest is target.shape"
    assert refuse(load_target, "mini", shape="2b").startswith("target.shape=2b: mini has 100m")
    assert refuse(load_target, "mini", forward="fast").startswith("engine.native.forward=fast: expected auto, ")
    assert refuse(load_target, "mini", config_dir="nowhere") == "--config-dir nowhere: no such folder"


def test_what_is_no_method_of_the_target_is_refused(target: LoadedTarget) -> None:
    assert refuse(load_method, "plt", target).startswith("method=plt: no such method; expected pld, ")
    assert refuse(load_method, "pld", target, lenght=3) == "method.pld.lenght: no such setting; the nearest is method.pld.length"
    assert refuse(load_method, "pld", target, length=0).startswith("method.pld.length=0: expected a whole number, at least 1")
    assert refuse(load_method, "pld", "mini") == "load_method: expected a label and what load_target returned, found str, str"
    assert refuse(load_method, "eagle", target).startswith("method.eagle: this target names no checkpoint: ")
    other = refuse(load_method, "eagle", target, checkpoint="specbench/zoo/eagle")
    assert other.startswith("method.eagle: "), "the weights of another target's method"
    assert refuse(generate, "mini", PROMPT) == "generate: expected what load_target or load_method returned, found str"


# Runs and results


def test_a_wrong_run_is_refused_before_anything_is_written(
    target: LoadedTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refuse(run, limits=3) == "limits: no such setting; the nearest is limit"
    assert refuse(run, max_new_tokens=3) == "max_new_tokens: no such setting; the nearest is sampling.max_new_tokens"
    assert refuse(run, sampling={"max_tokens": 3}).startswith("sampling.max_tokens: no such setting; the nearest is")
    assert refuse(run, target=target).startswith("target: expected text, ") and refuse(run, limit=0).startswith("limit=0: ")
    assert refuse(run, method=["plt"]).startswith("method=plt: no such method; expected pld, ")
    assert refuse(run, task=["qa", "no"]).startswith("task=no: no such task; expected ")
    assert refuse(run, experiment="temperature_sweep").startswith(
        "sampling.temperature=0.0,0.5,1.0: specbench.run is about one run"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert refuse(run, out=tmp_path / "full").startswith(
        f"out={tmp_path}/full: expected a run's folder, an empty one or a new one"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.full
def test_a_run_from_any_folder_gives_frames_and_a_page(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    own = {"path": str(tiny.target), "dtype": "float32"}
    results = run("suite.per_task=2", **QUICK, target=own, sampling={"max_new_tokens": 8}, out="results/mine")
    assert torch.get_num_threads() == before
    printed = capfd.readouterr()
    assert printed.out == printed.err == "", "quiet"

    assert results.path == Path("results/mine") and results.missing == {} and results.config["limit"] == 1
    assert results.provenance["versions"]["torch"] == torch.__version__
    assert list(results.trials["method"].unique()) == ["autoregressive", "pld"] and len(results.trials) == 2
    assert results.trials["new_tokens"].le(8).all() and all(isinstance(text, str) for text in results.trials["text"])
    assert list(results.summary[results.summary["task"] == "overall"]["method"]) == ["autoregressive", "pld"]
    assert any("only one question" in alarm for alarm in results.alarms)

    report = render_report(results)
    assert report.page == Path("reports/mine/index.html") and report.page.is_file() and len(report.summary) == 4

    more = run("suite.per_task=2", **(QUICK | {"repeats": 2}), target=own, sampling={"max_new_tokens": 8}, out="results/mine")
    assert len(more.trials) == 4, "the run is extended"
    assert more.trials["text"].isna().sum() == 2, "texts are those of the first repeat"
    run("suite.per_task=2", **QUICK, target=own, sampling={"max_new_tokens": 8}, out=tmp_path / "shown", progress=True)
    assert "shown: 2 turns" in capfd.readouterr().err, "progress is said where the command line says it"


def test_a_finished_run_opens_and_what_is_none_is_refused(tmp_path: Path) -> None:
    results = open_run(write_whole_run(tmp_path / "run"))
    assert list(results.trials) == TRIALS and set(results.trials["run"]) == {"run"}
    first = results.trials["repeat"] == 0
    assert set(results.trials["text"][first]) == {"a text"} and results.trials["score"][first].eq(0.5).all()
    assert refuse(open_run, tmp_path) == f"{tmp_path} is not a run directory: it has no config.yaml"
    assert refuse(open_run, "") == "expected a folder, found ''"
    assert refuse(render_report) == "render_report: expected one run or more"
    assert refuse(render_report, results, out=tmp_path / "run").startswith(f"--out {tmp_path}/run: holds a run")


# docs/python.md


def list_columns(heading: str) -> list[str]:
    """Return the columns that the page explains below a heading, in their order."""
    page = (specbench.ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    table = page.partition(f"## The columns of `results.{heading}`\n")[2].partition("\n## ")[0]
    return [name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]


@pytest.mark.parametrize("name", ["trials", "summary"])
def test_the_page_explains_every_column(tmp_path: Path, name: str) -> None:
    frame = getattr(open_run(write_whole_run(tmp_path / "run")), name)
    assert sorted(list_columns(name)) == sorted(frame)
    if name == "trials":
        assert list_columns(name) == list(frame), "in their order"


def test_the_page_explains_what_an_answer_has() -> None:
    page = (specbench.ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    table = page.partition("An `Answer` has\n")[2].partition("\n\nOne call")[0]
    explained = {name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert explained == {name for name in (*specbench.Answer.__dataclass_fields__, *vars(specbench.Answer)) if name[0] != "_"}
