"""Overrides become settings, every mistake becomes one line, and constructors' signatures are the schema of YAMLs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from specbench import ROOT
from specbench.errors import InputError
from specbench.setup.compose import GROUPS, compose_run, list_options
from specbench.setup.instantiate import check_node, instantiate
from specbench.setup.objects import check_nodes
from specbench.setup.overrides import LISTS


def refusal(*overrides: str, config_dir: Path | None = None) -> str:
    with pytest.raises(InputError) as error:
        check_nodes(compose_run(overrides, config_dir))
    return " ".join(str(error.value).split())


def test_the_default_is_the_embedded_target_on_all_tasks() -> None:
    config = compose_run([])
    assert config.target.name == "mini" and config.suite["_target_"].endswith("Mini")
    assert list(config.method) == ["autoregressive", "pld", "sps"] and len(config.tasks) == 6
    check_nodes(config)


@pytest.mark.parametrize(
    ("given", "labels"),
    [("pld", {"pld"}), ("[pld,sps_confidence]", {"pld", "sps_confidence"}), ("[]", set())],
)
def test_autoregressive_is_always_among_the_methods(given: str, labels: set[str]) -> None:
    assert set(compose_run([f"method={given}"]).method) == {"autoregressive", *labels}


def test_interpolations_are_filled_in() -> None:
    config = compose_run(["target.device=cpu", "profile=true", "method=[sps]"])
    assert config.method["sps"]["draft"]["device"] == "cpu" and config.engine["native"]["profile"] is True


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_composes(group: str) -> None:
    choices = [f"[{','.join(list_options(group))}]"] if group in LISTS else list_options(group)
    for choice in choices:
        check_nodes(compose_run([f"{group}={choice}"]))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("target=mimi", "target=mimi: no such target; expected mini, "),
        ("method=[pld,spss]", "method=spss: no such method; expected sps, "),
        ("method=pdl", "method=pdl: no such method; expected pld, "),
        ("task=[ragg]", "task=ragg: no such task; expected rag, "),
        ("task=[7]", "task=7: no such task; expected math_reasoning, "),
        ("task=null", "task=null: no such task; expected math_reasoning, "),
        ("task=['tokens/s']", "task=tokens/s: no such task; expected math_reasoning, "),
        ("suite=spec-bench", "suite=spec-bench: no such suite; expected spec_bench, "),
        ("engine=natvie", "engine=natvie: no such engine; expected native, hf, llama_cpp, openai, reference, sglang or vllm"),
        ("experiment=foo", "experiment=foo: no such experiment"),
        ("hydra/launcher=slrum", "hydra/launcher=slrum: no such hydra/launcher; expected "),
        ("target=[mini,vicuna_7b]", "no such target; expected "),
        ("target=null", "target=null: no such target; expected "),
        ("method=null", "method=null: no such method; expected "),
        ("task=[]", "task is empty or not a mapping; expected math_reasoning, "),
        ("engine=[]", "engine is empty or not a mapping; expected hf, llama_cpp, native, openai, reference, sglang or vllm"),
        ("sampling=3", "sampling is empty or not a mapping"),
        ("method.pld=3", "method.pld: expected a mapping with _target_"),
        ("limt=3", "limt: no such setting; the nearest is limit"),
        ("+limt=3", "limt: no such setting; the nearest is limit"),
        ("+sampling.temprature=1", "sampling.temprature: no such setting; the nearest is temperature"),
        ("target.dtpe=float32", "target.dtpe: no such setting; the nearest is target.dtype"),
        ("method.pld.lenght=4", "method.pld.lenght: no such setting; the nearest is method.pld.length"),
        ("suite.pertask=4", "suite.pertask: no such setting; the nearest is suite.per_task"),
        ("method=[pld", "method=[pld: not an override"),
        ("out=a=b", "out=a=b: not an override"),
        ("method=pld,sps", "method=pld,sps: expected method=[pld,sps] for one run with all of them, or -m for one run each"),
        ("limit=1,2", "limit=1,2: expected one value, or -m for one run each"),
        ("out=${nothing}", "out: Interpolation key 'nothing' not found"),
        ("~target.draft", "target: its YAML has no draft"),
        ("limit=0", "limit=0: expected a number of questions per task, at least 1, or null for all"),
        ("limit=few", "limit=few: expected a number"),
        ("repeats=1.5", "repeats=1.5: expected a whole number, at least 1"),
        ("repeats=null", "repeats=null: expected a whole number"),
        ("seed=a", "seed=a: expected a whole number"),
        ("threads=0", "threads=0: expected a whole number, at least 1, or null"),
        ("profile=perhaps", "profile=perhaps: expected true or false"),
        ("out=3", "out=3: expected a folder"),
        ("context=refrence", "context=refrence: expected reference or own"),
        ("sampling.temperature=-1", "sampling.temperature=-1: expected 0 (greedy), or a number from 0.001 to 1000"),
        ("sampling.top_p=0", "sampling.top_p=0: expected a number above 0, at most 1"),
        ("sampling.top_k=0.5", "sampling.top_k=0.5: expected a whole number, at least 0"),
        ("method.sps.draft_tokens=x", "method.sps.draft_tokens=x: expected a whole number"),
        ("sampling.max_new_tokens=0", "sampling.max_new_tokens=0: expected a whole number, at least 1"),
        ("sampling.min_new_tokens=0", "sampling.min_new_tokens=0: expected a number of tokens, at least 1, or null"),
        ("sampling.min_new_tokens=2000", "sampling.min_new_tokens=2000: expected at most max_new_tokens, 1024"),
        ("sampling.ignore_eos=1", "sampling.ignore_eos=1: expected true or false or null"),
        ("sampling.stop=END", "sampling.stop=END: expected a list of 1 to 64 texts of at most 256 bytes, or null"),
        ("sampling.stop=[]", ": expected a list of 1 to 64 texts"),
        ("sampling.stop=['']", ": expected a list of 1 to 64 texts"),
        ("+method.pld.size=4", "method.pld.size: methods.pld.PromptLookup takes no size; expected max_ngram, "),
        ("~method.pld.length", "method.pld: methods.pld.PromptLookup needs length; given: max_ngram, "),
        ("method.pld.length=ten", "method.pld.length=ten: expected a whole number"),
        ("method.pld.filler=x", "method.pld.filler=x: expected a whole number, at least 0 and at most 2,147,483,647 or null"),
        ("method.pld.match=lst", "method.pld.match=lst: expected last or first"),
        ("method.sps.draft.device=3", "method.sps.draft.device=3: expected text"),
        ("engine.native.profile=1", "engine.native.profile=1: expected true or false"),
        ("suite.per_task=many", "suite.per_task=many: expected a whole number"),
        ("method.pld._target_=methods.pld.PromptLokup", "methods.pld has no PromptLokup; the nearest is PromptLookup"),
        ("method.pld._target_=methods.dlp.PromptLookup", "_target_ methods.dlp.PromptLookup: no module methods.dlp"),
        ("method.pld._target_=PromptLookup", "method.pld: _target_ PromptLookup: "),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_choice(override: str, expected: str) -> None:
    assert expected in refusal(override)


def write(folder: Path, name: str, text: str | bytes) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


PLD = "_target_: methods.pld.PromptLookup\nmax_ngram: 3\nmin_ngram: 1\nmatch: last\nfull: false\nfiller: null\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# @package method.brought\n_target_: [x\ny: z\n", "brought.yaml:3: invalid YAML: "),
        ("# @package method.brought\n- a\n", "method.brought: expected a mapping with _target_"),
        ("# @package method.brought\nlength: 4\n", "method.brought: expected a mapping with _target_"),
        (f"{PLD}length: 4\n", "brought.yaml: expected the first line '# @package method.brought', found none"),
        (
            f"# @package method.pld\n{PLD}length: 4\n",
            "brought.yaml: expected the first line '# @package method.brought', found method.pld",
        ),
        (
            f"# @package method.brought\n{PLD}lenght: 4\n",
            "method.brought.lenght: methods.pld.PromptLookup takes no lenght; the nearest is length",
        ),
        (f"# @package method.brought\n{PLD}length: ???\n", "method.brought.length=???: expected a whole number"),
        (
            f"# @package method.brought\n{PLD}length: ${{target.heads}}\n",
            "method.brought.length: Interpolation key 'target.heads' not found",
        ),
        ("# @package method.brought\n_target_: brokenmodule.Mine\n", "_target_ brokenmodule.Mine: SyntaxError: "),
        (
            "# @package method.brought\n_target_: importingmodule.Mine\n",
            "_target_ importingmodule.Mine: no module no_such_package",
        ),
        (b"# @package method.brought\n\xff\xfe\n", "brought.yaml: not UTF-8 at byte 26"),
    ],
)
def test_a_mistake_in_a_user_s_yaml_is_named(tmp_path: Path, text: str | bytes, expected: str) -> None:
    write(tmp_path, "method/brought.yaml", text)
    write(tmp_path, "brokenmodule.py", "def f(:\n")
    write(tmp_path, "importingmodule.py", "import no_such_package\n")
    assert expected in refusal("method=brought", config_dir=tmp_path)


def test_a_broken_yaml_that_nobody_chose_does_no_harm(tmp_path: Path) -> None:
    write(tmp_path, "method/brought.yaml", "# @package method.brought\n[\n")
    compose_run(["method=pld"], tmp_path)


def test_a_user_s_target_must_be_complete(tmp_path: Path) -> None:
    write(tmp_path, "target/small.yaml", "name: small\npath: x\n")
    assert "target: its YAML has no revision; expected name, path, revision, " in refusal("target=small", config_dir=tmp_path)
    assert "target=smal: no such target; expected small, " in refusal("target=smal", config_dir=tmp_path)
    assert "--config-dir nowhere: no such folder" in refusal(config_dir=Path("nowhere"))


class Sample:
    def __init__(
        self, count: int, share: float, kind: Literal["a", "b"], names: list[str], more: Mapping[str, Any] | None = None
    ):
        if count > 5:
            raise InputError(f"count={count}: expected at most 5")
        self.sum = share / count


def node(**changes: Any) -> Any:
    values = {"_target_": f"{__name__}.Sample", "count": 1, "share": 1, "kind": "a", "names": ["x"], **changes}
    return {key: value for key, value in values.items() if value != "left out"}


def test_a_node_that_fits_its_class_is_built() -> None:
    for fine in (node(), node(share=0.5), node(more={"x": 1}), node(names=[]), node(kind="b")):
        check_node(fine, "here", Sample)
        assert isinstance(instantiate(fine, Sample, "here"), Sample)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"count": 1.5}, "here.count=1.5: expected a whole number"),
        ({"count": True}, "here.count=True: expected a whole number"),
        ({"share": "much"}, "here.share=much: expected a number"),
        ({"kind": "c"}, "here.kind=c: expected a or b"),
        ({"names": "x"}, "here.names=x: expected a list"),
        ({"more": 3}, "here.more=3: expected a mapping or null"),
        ({"count": "left out"}, "here: tests.test_compose.Sample needs count; given: share, kind, names"),
    ],
)
def test_a_node_that_does_not_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as error:
        check_node(node(**changes), "here", Sample)
    assert expected in str(error.value)


def test_a_constructor_s_error_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^count=6: expected at most 5$"):
        instantiate(node(count=6), Sample, "here")
    with pytest.raises(InputError, match=r"^tests.test_compose.Sample: ZeroDivisionError: .* \(test_compose.py:\d+\)$"):
        instantiate(node(count=0), Sample, "here")


def test_a_user_s_yaml_may_not_have_a_name_of_conf(tmp_path: Path) -> None:
    """Hydra would silently use the one in conf/."""
    write(tmp_path, "method/pld.yaml", f"# @package method.pld\n{PLD}length: 2\n")
    assert "method=pld already exists in conf/; choose another name" in refusal("method=pld", config_dir=tmp_path)


def test_an_experiment_has_the_last_word_but_for_the_command_line() -> None:
    assert compose_run(["experiment=temperature_sweep"]).repeats == 5
    assert compose_run(["experiment=temperature_sweep", "repeats=2"]).repeats == 2
    methods = {"autoregressive", "pld", "sps", "medusa", "eagle", "eagle2"}
    assert set(compose_run(["experiment=temperature_sweep"]).method) == methods


PUBLISHED = {  # by experiment, the run in results/reference whose tables README and docs show
    "mini_100m": "cpu-mini-100m",
    "mini_1b": "cpu-mini-1b",
    "mini_1b_phases": "cpu-mini-1b-phases",
    "step_time": "step-time",
}


def agrees(recorded: Any, settings: Any) -> bool:
    """Whether every recorded setting still has its value; classes may have moved."""
    if not isinstance(recorded, dict):
        return bool(recorded == settings)
    return all(key == "_target_" or (key in settings and agrees(value, settings[key])) for key, value in recorded.items())


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_a_published_table_is_the_run_that_its_experiment_describes(experiment: str) -> None:
    recorded = yaml.safe_load((ROOT / "results" / "reference" / PUBLISHED[experiment] / "config.yaml").read_text())
    settings = compose_run([f"experiment={experiment}"])
    assert list(settings.method) == list(recorded["method"])
    assert agrees(recorded, settings.plain)
