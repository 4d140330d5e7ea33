"""A target from one line: `target.path=FOLDER`."""

import json
from pathlib import Path

import pytest
import yaml

from specbench import ROOT
from specbench.errors import InputError
from specbench.models.chat import Chat, choose_chat, render_prompt
from specbench.models.load import load_tokenizer
from specbench.models.place import find_local_folder, locate
from specbench.running.checks import check_draft_tokenizer
from specbench.setup.compose import compose_run
from specbench.setup.local import build_yaml
from tests.conftest import Cli, Tiny


def test_a_path_alone_is_a_local_target(tmp_path: Path) -> None:
    settings = compose_run([f"target.path={tmp_path}/my-model"])
    assert settings.target.name == "my-model"
    assert settings.plain["target"]["name"] == "my-model"
    assert (settings.target.shapes, settings.plain["target"]["datastore"]) == (None, None)
    assert list(settings.method) == ["autoregressive", "pld"]
    assert settings.left_out == {"sps": "a draft model: target.draft.path=FOLDER"}


def test_a_run_says_what_is_left_out(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    small = ["limit=1", "repeats=1", "task=[qa]", "sampling.max_new_tokens=4", "check_baseline=false"]
    out = cli("run", f"target.path={tiny.target}", "target.dtype=float32", *small, f"out={tmp_path / 'run'}")
    assert out.status == 0 and out.err.startswith("notice: sps is left out: it needs a draft model: target.draft.path=FOLDER\n")


def test_names_come_from_hub_ids_and_folders() -> None:
    assert compose_run(["target.path=owner/Some-Model.1B"]).target.name == "Some-Model.1B"
    assert compose_run(["target=local", "target.path=owner/x", "target.name=mine"]).target.name == "mine"
    assert compose_run(["target.path='my models/é'"]).target.name == "local"


def test_what_is_asked_for_stays_and_what_is_named_serves(tmp_path: Path) -> None:
    asked = compose_run(["target.path=owner/x", "method=[pld,eagle2]"])
    assert "eagle2" in asked.method
    named = compose_run(["target.path=owner/x", "target.draft.path=owner/y", "target.checkpoints.medusa=z"])
    assert "sps" in named.method


def test_every_lacking_method_of_an_experiment_is_left_out() -> None:
    settings = compose_run(["target=local", "target.path=owner/x", "experiment=survey"])
    assert settings.target.name == "x"
    assert {"sps_spec_bench", "medusa_spec_bench"} <= settings.left_out.keys()
    assert not settings.left_out.keys() & settings.method.keys()


def test_the_embedded_target_keeps_its_own() -> None:
    assert list(compose_run([]).method) == ["autoregressive", "pld", "sps"]
    assert not compose_run([]).left_out


def test_auto_is_the_template_where_there_is_one() -> None:
    tokenizer = load_tokenizer("specbench/zoo/target", None, False)
    assert choose_chat(Chat("auto"), tokenizer) == Chat("template")
    tokenizer.chat_template = None
    assert choose_chat(Chat("auto"), tokenizer) == Chat("plain")
    assert choose_chat(Chat("vicuna"), tokenizer) == Chat("vicuna")


MESSAGES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
THINKING = MESSAGES + "{% if think %}<t>{% endif %}{% if system %}{% endif %}"


def test_a_template_gets_its_arguments_and_a_system_message() -> None:
    tokenizer = load_tokenizer("specbench/zoo/target", None, False)
    tokenizer.chat_template = THINKING

    def render(chat: Chat) -> str:
        return str(tokenizer.decode(render_prompt(choose_chat(chat, tokenizer), [("a", None)], tokenizer)))

    assert render(Chat("auto")) == "user: a\n"
    assert render(Chat("auto", {"think": True})) == "user: a\n<t>"
    assert render(Chat("auto", {"think": False}, "Be short.")) == "system: Be short.\nuser: a\n"


def test_arguments_that_change_nothing_are_refused() -> None:
    tokenizer = load_tokenizer("specbench/zoo/target", None, False)
    tokenizer.chat_template = THINKING
    with pytest.raises(InputError, match=r"target.template.thinking: the chat template does not read it; it reads system, think"):
        choose_chat(Chat("auto", {"thinking": True}), tokenizer)
    with pytest.raises(InputError, match="only a chat template takes target.template and target.system"):
        choose_chat(Chat("plain", system="x"), tokenizer)


def test_the_template_is_part_of_the_recorded_settings() -> None:
    settings = compose_run(["target.path=owner/x", "target.template={enable_thinking: false}", "target.system=Hi"])
    assert settings.recorded["target"]["template"] == {"enable_thinking": False}
    assert settings.target.system == "Hi"


def test_a_yaml_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine.yaml").write_text(build_yaml("owner/My-Model"), encoding="utf-8")
    settings = compose_run(["target=mine"], tmp_path)
    assert (settings.target.name, settings.target.path) == ("My-Model", "owner/My-Model")
    assert yaml.safe_load(build_yaml("owner/x"))["format"] == "auto"


def test_local_without_a_path_is_refused() -> None:
    from specbench.setup.objects import load_target_tokenizer

    with pytest.raises(InputError, match="target.path=null: expected a hub id or a folder"):
        load_target_tokenizer(compose_run(["target=local"]).target)


def test_an_experiment_needs_the_target_named() -> None:
    with pytest.raises(InputError, match="an experiment has its own target; expected target=local, or another"):
        compose_run(["target.path=owner/x", "experiment=survey"])


def test_a_sweep_runs_the_local_target(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    small = ["limit=1", "repeats=1", "task=[qa]", "sampling.max_new_tokens=4", "check_baseline=false", "method=[pld]"]
    paths = [f"target.path={tiny.target}", "target.dtype=float32"]
    assert cli("run", "-m", *paths, *small, "seed=0,1", f"out={tmp_path / 'sweep'}").status == 0
    configs = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (tmp_path / "sweep").rglob("config.yaml")]
    assert [(config["target"]["name"], config["target"]["format"]) for config in configs] == [("target", "auto")] * 2


def test_what_was_asked_for_under_another_label_stays() -> None:
    assert "mine" in compose_run(["target.path=owner/x", "+method@method.mine=eagle2"]).method


def test_a_system_message_that_is_left_out_is_refused() -> None:
    tokenizer = load_tokenizer("specbench/zoo/target", None, False)
    tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="ignores the system message"):
        choose_chat(Chat("auto", system="Be short."), tokenizer)


def test_what_specbench_sets_and_tags_of_transformers() -> None:
    tokenizer = load_tokenizer("specbench/zoo/target", None, False)
    tokenizer.chat_template = "{% generation %}{{ messages[0].content }}{% endgeneration %}{% if think %}<t>{% endif %}"
    assert choose_chat(Chat("auto", {"think": True}), tokenizer).arguments
    for name, message in (("thinking", "it reads think"), ("add_generation_prompt", "specbench sets this argument itself")):
        with pytest.raises(InputError, match=message):
            choose_chat(Chat("auto", {name: True}), tokenizer)


def test_folders_that_hold_no_model_are_named(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="a LoRA adapter without its model"):
        load_tokenizer(str(tmp_path), None, False)
    with pytest.raises(InputError, match="expected a folder, or a file that ends in .gguf"):
        load_tokenizer(str(tiny.target / "model.safetensors"), None, False)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((tiny.target / "config.json").read_bytes())
    with pytest.raises(InputError, match="no tokenizer at .*bare: expected a folder with one of tokenizer.json"):
        load_tokenizer(str(bare), None, False)


def test_a_folder_here_comes_before_one_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_local_folder("specbench/zoo/target") == ROOT / "specbench/zoo/target"
    (tmp_path / "tests").mkdir()
    assert find_local_folder("tests") == Path("tests") and find_local_folder(".") == Path()


@pytest.mark.parametrize("name", ["nope.sub", "a..b", "", "nope", "json"])
def test_a_package_without_a_model_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="no such package is installed, or it does not hold one .gguf file"):
        locate(f"package:{name}")


def test_a_yaml_needs_a_model(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "empty").mkdir()
    refused = cli("target", "new", str(tmp_path / "empty"))
    assert refused.status == 2 and "expected a folder with config.json and model.safetensors" in refused.err


def test_a_draft_model_shares_the_targets_tokenizer(tiny: Tiny, tmp_path: Path) -> None:
    settings = compose_run(tiny.overrides("method=[sps]"))
    check_draft_tokenizer(settings.target, tiny.tokenizer)
    other = json.loads((tiny.target / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = other["model"]["vocab"]
    first, second = list(dict.fromkeys(tiny.tokenizer.encode("The cat")))[-2:]
    vocabulary[first][0], vocabulary[second][0] = vocabulary[second][0], vocabulary[first][0]
    (tmp_path / "draft").mkdir()
    for file in tiny.draft.iterdir():
        (tmp_path / "draft" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "draft" / "tokenizer.json").write_text(json.dumps(other), encoding="utf-8")
    swapped = compose_run(tiny.overrides("method=[sps]", f"target.draft.path={tmp_path / 'draft'}"))
    with pytest.raises(InputError, match="its tokenizer gives other tokens than the target's"):
        check_draft_tokenizer(swapped.target, tiny.tokenizer)
