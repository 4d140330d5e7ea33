"""A `_target_` builds what its place asks for, and nothing else runs: not in a YAML, not nested, not in Hydra's own config."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from methods.pld import PromptLookup
from specbench.decoding.drafter import Drafter
from specbench.errors import InputError
from specbench.records.trial import BASELINE
from specbench.setup.compose import compose_certify, compose_run
from specbench.setup.instantiate import check_node, instantiate
from specbench.setup.objects import check_label, check_nodes
from tests.conftest import Cli
from tests.fake_run import made_up_trials, write_run
from tests.test_compose import refusal, write

EXAMPLES = 60
PLD = {"max_ngram": 3, "min_ngram": 1, "length": 4, "match": "last", "full": False, "filler": None}
STRANGERS = [
    "pandas.read_pickle",
    "os.system",
    "subprocess.run",
    "builtins.exec",
    "builtins.eval",
    "antigravity.fly",
    "pickle.loads",
    "torch.load",
    "torch.hub.load",
    "runpy.run_path",
    "importlib.import_module",
    "specbench.setup.instantiate.instantiate",
    "methods.sps.torch.load",
    "numpy.load",
    "methods.pld",
    "__main__.main",
    "os",
    "",
    "..x",
    "methods.pld:PromptLookup",
]


@pytest.mark.parametrize("place", ["suite", "method.pld", "engine.native"])
@pytest.mark.parametrize("target", STRANGERS)
def test_a_stranger_is_refused_at_every_place(place: str, target: str) -> None:
    line = refusal(f"{place}._target_='{target}'")
    assert line.startswith(f"{place}: _target_ {target}: "), line


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("suite._target_=methods.pld.PromptLookup", "PromptLookup: expected a subclass of tasks.suite.Suite"),
        ("method.pld._target_=tasks.mini.suite.Mini", "expected a subclass of specbench.decoding.drafter.Drafter"),
        ("engine.native._target_=tasks.mini.suite.Mini", "expected a subclass of specbench.engine.base.Engine"),
        ("method.pld._target_=specbench.decoding.drafter.Drafter", "specbench.decoding.drafter.Drafter"),
        ("suite._target_=tasks.suite.Suite", "expected a subclass of tasks.suite.Suite"),
        ("method.pld._target_=specbench.models.load.load_draft", "expected a subclass of specbench.decoding.drafter.Drafter"),
        ("method.sps.draft._target_=methods.pld.PromptLookup", "method.sps.draft: _target_ methods.pld.PromptLookup: "),
        ("method.autoregressive._target_=methods.oracle.Oracle", "expected a subclass of specbench.decoding.autoregressive.Auto"),
        ("+method.pld._partial_=true", "method.pld._partial_: methods.pld.PromptLookup takes no _partial_"),
        ("+method.pld._args_=[1]", "method.pld._args_: methods.pld.PromptLookup takes no _args_"),
        ("+suite._recursive_=false", "suite._recursive_: tasks.mini.suite.Mini takes no _recursive_"),
        ("suite.split={_target_: os.system, command: x}", "suite.split: _target_ is not allowed here; expected train or "),
        ("method.pld.length={_target_: builtins.int}", "method.pld.length: _target_ is not allowed here; expected"),
        ("target.config={a: [nan]}", "target.config.a=[nan]: a number out of range"),
        ("+target.checkpoints={1: a}", "the settings contain a key that is not text"),
        ("target.config={a: {_target_: os.system}}", "target.config.a: _target_ is not allowed here"),
        ("method.sps.draft.draft={a: [{_target_: os.system}]}", "method.sps.draft.draft.a.0: _target_ is not allowed here"),
        ("method.sps.draft=3", "method.sps.draft=3: expected a _target_ of LanguageModel"),
        ("engine=hf", ""),
    ],
)
def test_kinds_and_nested_nodes(override: str, expected: str) -> None:
    if expected:
        assert expected in refusal(override)
    else:
        check_nodes(compose_run([override]))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "engine.hf.methods.pld={custom_generate: a/b, trust_remote_code: true}",
            "engine.hf.methods.pld.custom_generate: ",
        ),
        ("engine.hf.methods.sps.assistant={zzz: 1}", "engine.hf.methods.sps.assistant.zzz: no such setting"),
    ],
)
def test_generate_takes_no_code(override: str, expected: str) -> None:
    from specbench.engine.base import Engine

    with pytest.raises(InputError, match=expected):
        instantiate(compose_run(["engine=hf", f"++{override}"]).engine["hf"], Engine, "engine.hf")


def test_an_escaped_interpolation_stays_text() -> None:
    """Hydra's own instantiate would resolve it once more, and call the node that comes out."""
    config = compose_run([r"++suite.name='\${oc.create:{_target_:os.getcwd}}'", "suite=jsonl", "suite.path=x"])
    assert config.suite["name"] == "${oc.create:{_target_:os.getcwd}}"


def test_the_environment_stays_out_of_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    line = refusal("target.name=${oc.env:HF_TOKEN}")
    assert line.startswith("target.name: ${oc.env:HF_TOKEN}: ") and "secret" not in line


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("hydra.launcher._target_=os.system", "hydra.launcher: _target_ os.system: "),
        ("hydra.launcher._target_=methods.pld.PromptLookup", "expected a subclass of hydra.plugins.launcher.Launcher"),
        ("hydra.sweeper._target_=os.system", "hydra.sweeper: _target_ os.system: "),
        ("+hydra.launcher.x={_target_: os.system}", "hydra.launcher.x: _target_ is not allowed here"),
        ("+hydra.launcher.x=[{a: {_target_: os.system}}]", "hydra.launcher.x: _target_ is not allowed here"),
        ("+hydra.launcher.x='${oc.create:{_target_:os.system}}'", "hydra.launcher.x: _target_ is not allowed here"),
        ("+hydra.callbacks.x={_target_: os.system}", "hydra.callbacks: cannot be changed"),
        ("hydra/job_logging=default", "hydra.job_logging: cannot be changed"),
        ("+hydra.job.env_set.PATH=x", "hydra.job.env_set: cannot be changed"),
        ("hydra.searchpath=[pkg://this]", "hydra.searchpath: cannot be changed; use --config-dir"),
        ("+hydra.zzz=1", "hydra.zzz: no such setting"),
    ],
)
def test_hydra_s_own_config_runs_nothing_else(override: str, expected: str) -> None:
    assert expected in refusal(override)


def test_only_a_run_has_a_launcher() -> None:
    with pytest.raises(InputError, match=r"^hydra/launcher: no such setting of specbench certify$"):
        compose_certify(["hydra/launcher=joblib"])


def test_an_experiment_of_a_folder_cannot_change_hydra(tmp_path: Path) -> None:
    text = "# @package _global_\nhydra: {callbacks: {mine: {_target_: os.system, command: x}}}\n"
    write(tmp_path, "experiment/mine.yaml", text)
    assert "hydra.callbacks: cannot be changed" in refusal("experiment=mine", config_dir=tmp_path)
    write(tmp_path, "experiment/mine.yaml", "# @package _global_\ndefaults:\n  - override /hydra/launcher: joblib\n")
    assert "hydra.launcher: cannot be changed" in refusal("experiment=mine", config_dir=tmp_path)
    for other in ("hydra.verbose=true", "hydra.sweep.dir=x"):
        assert "hydra.launcher: cannot be changed" in refusal("experiment=mine", other, config_dir=tmp_path)
    compose_run(["experiment=mine", "hydra/launcher=joblib"], tmp_path)
    text = "# @package _global_\ndefaults:\n  - override /hydra/launcher: joblib\nhydra: {launcher: {temp_folder: /mine}}\n"
    write(tmp_path, "experiment/mine.yaml", text)
    assert "hydra.launcher: cannot be changed" in refusal("experiment=mine", "hydra/launcher=joblib", config_dir=tmp_path)


def test_a_module_runs_only_if_it_may_hold_a_class_of_the_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for number, text in enumerate(["x = 1", "def Mine(): ...", "class Mine: ...", "import no_such_package"]):
        write(tmp_path, f"stranger{number}.py", f"from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n{text}\n")
        with pytest.raises(InputError):
            check_node({"_target_": f"stranger{number}.Mine"}, "suite", Drafter)
    assert not list(tmp_path.glob("*.ran")) and not [name for name in sys.modules if name.startswith("stranger")]


def build_pld(size: int) -> Drafter:
    return PromptLookup(size, 1, 4, "last", False, None)


def build_anything(size: int) -> Any:
    return size


class Pair(Drafter):
    def __init__(self, parts: Sequence[Drafter], more: dict[str, Drafter] | None = None) -> None:
        self.parts = tuple(parts)


def test_functions_and_lists_of_parts_are_built_by_their_annotations() -> None:
    function = {"_target_": f"{__name__}.build_pld", "size": 2}
    pld = {"_target_": "methods.pld.PromptLookup", **PLD}
    pair = instantiate({"_target_": f"{__name__}.Pair", "parts": [function, pld], "more": {"a": pld}}, Drafter, "method.mine")
    assert [type(part) for part in pair.parts] == [PromptLookup, PromptLookup]
    for wrong in (f"{__name__}.build_anything", f"{__name__}.PLD", f"{__name__}.test_nothing"):
        with pytest.raises(InputError, match="method.mine"):
            instantiate({"_target_": wrong, "size": 2}, Drafter, "method.mine")
    with pytest.raises(InputError, match=r"method\.mine\.parts\.0: _target_ os\.system"):
        instantiate({"_target_": f"{__name__}.Pair", "parts": [{"_target_": "os.system"}]}, Drafter, "method.mine")


def test_a_stranger_s_stored_run_builds_nothing(cli: Cli, tmp_path: Path) -> None:
    """Its config is data: report and replay read it, and call nothing that it names."""
    config = write_run(tmp_path / "run", made_up_trials({BASELINE: 0.0, "pld": 0.5}, ["qa"])).path / "config.yaml"
    mark = tmp_path / "mark"
    node = f"{{_target_: pathlib.Path.touch, self: {{_target_: pathlib.Path, path: {mark}}}}}"
    config.write_text(f"{config.read_text()}\nevil: {node}\nsuite: {node}\n")
    for command in (("report", "run"), ("replay", "--of", "run", "method=[pld]", "out=replayed")):
        cli(*command)
    assert not mark.exists()


atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([*STRANGERS, "methods.pld.PromptLookup", "specbench.models.load.load_draft", "tasks.jsonl.Jsonl"]),
)
keys = st.sampled_from(["_target_", "_args_", "_partial_", "length", "draft", "parts", "first", "tree", "paths", "x"]) | st.text(
    max_size=4
)
values = st.recursive(atoms, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12)
CLASSES = [
    "methods.pld.PromptLookup",
    "methods.fallback.Fallback",
    "methods.medusa.Medusa",
    f"{__name__}.Pair",
    f"{__name__}.build_pld",
]
nodes = st.dictionaries(keys, values, max_size=6).flatmap(
    lambda node: st.sampled_from(CLASSES).map(lambda name: {**node, "_target_": name}) | st.just(node)
)


def build_or_refuse(node: Any) -> None:
    try:
        built = instantiate(node, Drafter, "method.mine")
    except InputError as error:
        assert str(error)
        return
    assert isinstance(built, Drafter)


def check_examples(number: int) -> Callable[[], None]:
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=number, deadline=None, suppress_health_check=quiet)(given(nodes)(build_or_refuse))


def test_any_node_builds_a_drafter_or_is_refused() -> None:
    check_examples(EXAMPLES)()


@pytest.mark.slow
def test_thousands_of_nodes() -> None:
    check_examples(3000)()


@pytest.mark.parametrize(
    ("group", "name", "said"),
    [
        ("method", "pld@hf", "at most 99 characters without @"),
        ("method", "x" * 100, "at most 99 characters without @"),
        ("method", " ", "expected text, not blank"),
        ("method", "pld\u202e", "without control characters"),
        ("engine", "a@b", "at most 99 characters without @"),
    ],
)
def test_a_label_cannot_pose_as_another_nor_fill_a_page(group: str, name: str, said: str) -> None:
    with pytest.raises(InputError, match=f"a name in {group} is .*{said}"):
        check_label(group, name)
