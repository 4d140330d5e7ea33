"""What a broken file gets, of questions, weights or texts: exit status 2, one line with its place, and nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, PretrainedConfig

from specbench.cli.output import Result
from specbench.datastore.build import build_datastore
from specbench.errors import InputError
from specbench.models.load import create_config, load_model
from specbench.models.refusals import check_decoder
from tests.conftest import Cli, Refuse, Tiny, tensors
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    ("lines", "task", "expected"),
    [
        (None, "qa", "questions.jsonl: cannot be read"),
        (['{"question_id": 1, "category": "qa", "turns": ["?"]}', "{"], "qa", "questions.jsonl:2: not valid JSON"),
        (['{"question_id": 1, "category": "qa"}'], "qa", "questions.jsonl:1: field 'turns' is missing"),
        (
            ['{"question_id": 1, "category": "qa", "turns": ["?"]}'] * 2,
            "qa",
            "questions.jsonl:2: question_id '1' is already used",
        ),
        (['{"question_id": 1, "category": "qa", "turns": [" "]}'], "qa", "questions.jsonl:1: turn 1 is empty"),
        (
            ['{"question_id": 1, "category": "qa", "task": "overall", "turns": ["?"]}'],
            "overall",
            "questions.jsonl:1: task is overall, which means all tasks",
        ),
        (['{"question_id": 1, "category": "qa", "turns": ["?"]}'], "rag", "suite jsonl has no questions of task rag; it has qa"),
    ],
)
def test_questions(refuse: Refuse, tmp_path: Path, lines: list[str] | None, task: str, expected: str) -> None:
    if lines is not None:
        (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    assert expected in refuse("run", "suite=jsonl", "suite.path=questions.jsonl", f"task={task}", "method=[]", "out=results/x")


def renamed(folder: Path) -> None:
    tensors(folder, lambda weights: weights.update({"model.norm.wait": weights.pop("model.norm.weight")}))


def misshapen(folder: Path) -> None:
    tensors(folder, lambda weights: weights.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(40, 32)}))


def too_many(folder: Path) -> None:
    more = {f"model.layers.{layer}.mlp.up_proj.weight": torch.zeros(48, 32) for layer in range(2, 7)}
    tensors(folder, lambda weights: weights.update(more))


def torn(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Malicious(folder / "executed")}, folder / "pytorch_model.bin")


def changed(folder: Path, file: str, **changes: object) -> None:
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **changes}))


def own_code(folder: Path) -> None:
    changed(folder, "config.json", model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (folder / "own.py").write_text(f"open({str(folder / 'executed')!r}, 'w')\n")


def only_bin(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def empty(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


BROKEN: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "renamed": (
        renamed,
        "does not match its config: missing: model.norm.weight, expected (32,); not in the model: model.norm.wait",
    ),
    "misshapen": (misshapen, "misshapen: model.layers.1.mlp.up_proj.weight is (40, 32), expected (48, 32)"),
    "too-many": (too_many, "not in the model: model.layers.2.mlp.up_proj.weight, model.layers.3"),
    "torn": (torn, "is damaged or incomplete"),
    "pointer": (pointer, "is a Git LFS pointer; fetch the file itself: git lfs pull"),
    "pickled": (pickled, "its .bin file holds more than plain tensors; code is never executed"),
    "own-code": (own_code, "custom code"),
    "empty": (empty, "no file named model.safetensors"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "Unrecognized model"),
    "unknown-kind": (lambda folder: changed(folder, "config.json", model_type="lama"), "model type `lama`"),
    "tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "no tokenizer at "),
    "config-list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json: expected a mapping of settings"),
    "generation": (
        lambda folder: (folder / "generation_config.json").write_text("[]"),
        "generation_config.json: expected a mapping of settings",
    ),
    "config-fifo": (
        lambda folder: replace_by_fifo(folder / "config.json"),
        "config.json: expected a file, found a pipe",
    ),
    "nested": (
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        "config.json: cannot be read: maximum recursion depth",
    ),
    "index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("[1]"),
        "model.safetensors.index.json: expected a mapping of settings",
    ),
    "empty-bin": (lambda folder: only_bin(folder, b""), "pytorch_model.bin: is empty"),
    "garbage-bin": (lambda folder: only_bin(folder, b"garbage"), "no model at "),
    "activation": (
        lambda folder: changed(folder, "config.json", hidden_act="evil"),
        "transformers knows no hidden_act=evil",
    ),
    "rope-type": (
        lambda folder: changed(folder, "config.json", rope_parameters={"rope_type": "evil", "rope_theta": 1e4}),
        "transformers knows no rope_parameters.rope_type=evil",
    ),
    "quantised": (
        lambda folder: changed(folder, "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "optimum",
    ),
    "quantised-otherwise": (
        lambda folder: changed(folder, "config.json", quantization_config={"quant_method": "zzz"}),
        "config.json: quantization_config.quant_method=zzz: expected ",
    ),
    "heads": (
        lambda folder: changed(folder, "config.json", num_attention_heads=5),
        "The hidden size (32) is not a multiple of the number of attention heads (5)",
    ),
    "encoder": (lambda folder: changed(folder, "config.json", model_type="t5"), "not the config of a decoder-only language"),
    "template": (lambda folder: (folder / "chat_template.jinja").write_text("{% if %}"), "the chat template of "),
    "template-empty": (lambda folder: (folder / "chat_template.jinja").write_text(""), "the tokenizer has no chat template"),
    "template-yields-nothing": (
        lambda folder: (folder / "chat_template.jinja").write_text("{% if false %}x{% endif %}"),
        "the prompt of 1 turns has no token",
    ),
    "template-divides": (lambda folder: (folder / "chat_template.jinja").write_text("{{ 1/0 }}"), "ZeroDivisionError"),
    "template-raises": (
        lambda folder: (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}"),
        "TemplateError: no",
    ),
    "no-template": (lambda folder: (folder / "chat_template.jinja").unlink(), "try target.format=plain"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_checkpoints(refuse: Refuse, tiny: Tiny, tmp_path: Path, name: str) -> None:
    spoil, expected = BROKEN[name]
    folder = Path(shutil.copytree(tiny.target, tmp_path / name))
    spoil(folder)
    said = refuse("run", *tiny.overrides("task=qa", "method=[]", "out=results/x", f"target.path={folder}"))
    assert expected in said and len(said) < 600
    assert not (folder / "executed").exists(), "nothing in a checkpoint is ever executed"


SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("bert", "bert is an encoder .is_decoder: false.; expected a decoder-only language model"),
        ("roberta", "roberta is an encoder"),
        ("t5", "T5Config is not the config of a decoder-only language model"),
        ("falcon", "falcon: cannot be run: it cannot attend through transformers' interface: TypeError"),
        ("bart", "bart is an encoder and a decoder"),
        ("stablelm", "stablelm: cannot be run: it does not pass its keyword arguments on to its attention"),
        ("nemotron", "nemotron: cannot be run: it does not pass its keyword arguments on to its attention"),
        ("bloom", "bloom: its config has no max_position_embeddings"),
        ("lama", "Unrecognized model identifier: lama"),
    ],
)
def test_architectures_that_do_not_run(kind: str, said: str) -> None:
    config = choose_known(kind, {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64})
    with pytest.raises(InputError, match=said) as error:
        load_model(None, weights="random", config=config, dtype="float32", device="cpu")
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def choose_known(kind: str, sizes: dict[str, int]) -> dict[str, Any]:
    """The sizes that an architecture has, if transformers knows it."""
    known = CONFIG_MAPPING[kind]() if kind in CONFIG_MAPPING else None
    return {"model_type": kind, **{name: size for name, size in sizes.items() if known is None or hasattr(known, name)}}


MISSPELT = [
    ({"num_hidden_layer": 2}, "config.num_hidden_layer: llama has no such setting; the nearest is num_hidden_layers"),
    ({"model_type": "gpt2", "n_layers": 2}, "config.n_layers: gpt2 has no such setting; the nearest is n_layer"),
    ({"model_type": "llama4", "text_config": {"num_hiden_layers": 2}}, "config.text_config.num_hiden_layers: llama4_text has no"),
]


@pytest.mark.parametrize(("config", "said"), MISSPELT)
def test_a_misspelt_key_of_an_architecture_is_no_default(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        create_config({"model_type": "llama", **config})


def test_keys_that_transformers_reads_in_another_way_are_known() -> None:
    legacy = {"torch_dtype": "float32", "rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert create_config({"model_type": "llama", **legacy}).rope_parameters["factor"] == 2.0
    settings = {"dtype": "float32", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "architectures": ["x"]}
    assert create_config({"model_type": "llama", **settings}).rope_parameters["rope_theta"] == 1e4
    assert create_config({"model_type": "gpt2", "num_hidden_layers": 3}).n_layer == 3, "by gpt2's attribute_map"


def test_a_quantisation_that_transformers_ignores_is_refused_of_a_hub_id_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"model_type": "llama", "quantization_config": {"quant_method": "zzz"}}
    monkeypatch.setattr(PretrainedConfig, "get_config_dict", lambda place, revision: (found, {}))
    monkeypatch.setattr("specbench.models.place.cached_file", lambda *_, **__: "config.json")
    with pytest.raises(InputError, match="owner/name/config.json: quantization_config.quant_method=zzz: expected "):
        load_model("owner/name", revision="main", dtype="float32", device="cpu")


def test_a_key_that_a_decoder_ignores() -> None:
    model = tiny_model("llama", layers=1)
    model.config.is_decoder = False
    check_decoder(model)


def test_a_template_that_fails_at_the_second_turn(refuse: Refuse, tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.target, tmp_path / "one-turn"))
    (folder / "chat_template.jinja").write_text("hello{{ 1 / 0 if messages|length > 1 }}")
    overrides = tiny.overrides("task=mt_bench", "method=[]", "out=results/x", f"target.path={folder}")
    assert refuse("run", *overrides).startswith(f"the chat template of {folder}: ZeroDivisionError")


def test_a_bin_of_plain_tensors_is_read(cli: Cli, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.cli.finished_runs.report_runs", lambda *_, **__: Result({}, []))
    folder = Path(shutil.copytree(tiny.target, tmp_path / "plain"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    done = cli("run", *tiny.overrides("task=qa", "method=[]", "limit=1", "repeats=1", f"target.path={folder}"))
    assert done.status == 0, done.err


def test_a_draft_model_of_another_vocabulary(refuse: Refuse, tiny: Tiny, tmp_path: Path) -> None:
    other = tiny.model(tmp_path / "other", vocab_size=1100)
    said = refuse("run", *tiny.overrides("task=qa", "method=[sps]", f"target.draft.path={other}", "out=results/x"))
    assert "1100" in said and "1024" in said and "draft model" in said


def test_a_tokenizer_of_another_model(refuse: Refuse, tiny: Tiny, tmp_path: Path) -> None:
    small = tiny.model(tmp_path / "small", vocab_size=300)
    said = refuse("run", *tiny.overrides("task=qa", "method=[]", f"target.path={small}", "out=results/x"))
    assert said.startswith("the tokenizer gives id ") and "mini has a vocabulary of 300" in said


def test_a_datastore_of_another_tokenizer(refuse: Refuse, tiny: Tiny, tmp_path: Path) -> None:
    build_datastore([[1, 2, 3]], tmp_path / "store", 1024, "0" * 64, "a test")
    said = refuse("run", *tiny.overrides("task=qa", "method=[rest]", "target.datastore=store", "out=results/x"))
    assert said.startswith(
        "method.rest: the datastore store was built for another tokenizer than the target's (000000000000, not "
    )


def test_a_torn_datastore(refuse: Refuse, tiny: Tiny, tmp_path: Path) -> None:
    build_datastore([[1, 2, 3]], tmp_path / "store", 1024, None, "a test")
    (tmp_path / "store" / "0.ids").write_bytes(b"123")
    said = refuse("run", *tiny.overrides("task=qa", "method=[rest]", "target.datastore=store", "out=results/x"))
    assert said.endswith("0.ids: 3 bytes, expected 6: the datastore is incomplete; build it again")


@pytest.mark.parametrize(
    ("file", "lines", "expected"),
    [
        ("texts.jsonl", None, "texts.jsonl: no such file"),
        ("texts.jsonl", ['{"text": "one"}', "{"], "texts.jsonl:2: not valid JSON"),
        ("texts.jsonl", ['{"text": "one"}', "5"], "texts.jsonl:2: expected a text or a chat"),
        (
            "texts.jsonl",
            ['{"txet": "one"}'],
            "texts.jsonl:1: expected messages, conversations, text or prompt_ids, found txet; select",
        ),
        ("texts.jsonl", ['{"messages": [{"role": "user"}]}'], "texts.jsonl:1: expected a text or a chat: KeyError('value')"),
        ("texts.jsonl", ['{"prompt_ids": [1], "answer_ids": [5000]}'], "texts.jsonl:1: expected a text or a chat: ValueError"),
        ("texts.jsonl", ['{"prompt_ids": [1], "answer_ids": [5000]}'], "5000 is not a token id below 1024"),
        ("texts.jsonl", ['{"text": " "}'], "texts.jsonl: contains no document"),
        ("texts.json", ['{"text": "one"}'], "texts.json: expected a list of chats or texts"),
        ("texts.txt", ["", " "], "texts.txt: contains no document"),
    ],
)
def test_what_a_datastore_is_made_of(refuse: Refuse, tmp_path: Path, file: str, lines: list[str] | None, expected: str) -> None:
    if lines is not None:
        (tmp_path / file).write_text("\n".join(lines))
    assert expected in refuse("datastore", "build", f"data={file}", "out=store")


def test_a_field_that_is_not_there(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"body": "one"}')
    said = refuse("datastore", "build", "data=texts.jsonl", "field=bdoy", "out=store")
    assert said == "texts.jsonl:1: field=bdoy: no such field; there is body"


def test_a_disk_that_is_full_while_a_datastore_is_built(refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "texts.jsonl").write_text('{"text": "one"}')
    monkeypatch.setattr("specbench.datastore.build.encode_ids", full)
    assert "No space left on device" in refuse("datastore", "build", "data=texts.jsonl", "out=store")
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]
