"""`specbench run target.path=FOLDER` over the folders that users have: random and tiny, in the layout of real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.errors import InputError
from specbench.models.load import load_model, load_tokenizer
from specbench.models.packed import is_plain
from specbench.models.place import check_hub_id, locate
from specbench.records.run_directory import RunDirectory
from specbench.report.alarms import find_alarms
from specbench.setup.objects import silence_libraries
from tests.conftest import Cli, Refuse, Tiny

SHAPE: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.4,
}
GEMMA = {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
DEEPSEEK = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
DEEPSEEK |= {"num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
DEEPSEEK |= {"moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
MADE: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "gemma3_text": GEMMA,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
}
VISION: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
RUN = ("limit=1", "repeats=1", "sampling.max_new_tokens=8", "task=[qa]", "method=[pld]", "check_baseline=false", "threads=1")

Save = Callable[..., Path]


@pytest.fixture
def save(tiny: Tiny, tmp_path: Path) -> Save:
    """Return a function that saves a random model of a kind, with the embedded tokenizer."""

    def call(kind: str = "llama", name: str = "model", shard: str = "1GB", **changes: Any) -> Path:
        silence_libraries()
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{**SHAPE, **MADE[kind], **changes})
        return keep(AutoModelForCausalLM.from_config(config), name, shard)  # type: ignore[no-untyped-call]

    def keep(model: PreTrainedModel, name: str, shard: str) -> Path:
        model.save_pretrained(tmp_path / name, max_shard_size=shard)
        tiny.tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return call


def change_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


# Folders that run


@pytest.mark.parametrize("kind", MADE)
def test_every_kind_passes_the_self_test(kind: str, save: Save) -> None:
    loaded = load_model(str(save(kind)), dtype="float32", device="cpu")
    assert loaded.self_test["tokens"] and (loaded.quantised, loaded.dequantised) == (None, None)


def test_one_line_runs_a_sharded_folder(save: Save, cli: Cli, tmp_path: Path) -> None:
    folder = save("qwen3", shard="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    status, _, err = cli("run", "-q", f"target.path={folder}", *RUN, "out=run")
    assert (status, err) == (0, "")
    assert {trial.method for trial in read_run(tmp_path / "run").trials} == {"autoregressive", "pld"}


def test_without_a_chat_template_prompts_are_plain(save: Save, cli: Cli, tmp_path: Path) -> None:
    folder = save()
    for file in folder.glob("chat_template*"):
        file.unlink()
    assert cli("run", f"target.path={folder}", *RUN, "out=run").status == 0
    tokenizer = load_tokenizer(str(folder), None, False)
    assert tokenizer.chat_template is None
    (prompt,) = RunDirectory(tmp_path / "run").read_prompts()
    assert str(tokenizer.decode(prompt.prompt_ids or [])).endswith("\n")


def test_the_text_part_of_a_model_for_pictures(tiny: Tiny, tmp_path: Path) -> None:
    text = SHAPE | GEMMA | {"model_type": "gemma3_text"}
    tokens = {"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7, "mm_tokens_per_image": 4}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=VISION, **tokens)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "model")  # type: ignore[no-untyped-call]
    loaded = load_model(str(tmp_path / "model"), dtype="float32", device="cpu")
    assert loaded.self_test["tokens"] and len(loaded.layers) == 2


# Folders that are refused


def test_a_model_for_pictures_whose_text_part_is_not_alone(save: Save) -> None:
    config = AutoConfig.for_model("llava", text_config=SHAPE | {"model_type": "llama"}, vision_config=VISION)
    folder = save()
    config.save_pretrained(folder)
    with pytest.raises(InputError) as refused:
        load_model(str(folder), device="cpu")
    why = "llava reads more than text (vision_config), and transformers does not load only its text part"
    assert str(refused.value) == f"no model at {folder}: {why}"


def test_tensors_for_pictures_explain_themselves(save: Save) -> None:
    """As of Mllama, whose language model transformers loads, and leaves layers out."""
    folder = change_config(save(), vision_config={"depth": 1})
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"vision_model.x": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="not in the model: vision_model.x; llama reads more than text"):
        load_model(str(folder), device="cpu")


def test_another_models_tokenizer_is_refused(save: Save, refuse: Refuse) -> None:
    said = refuse("run", f"target.path={save(vocab_size=256)}", *RUN, "out=run")
    assert said.startswith("the tokenizer gives id ") and said.endswith("but model has a vocabulary of 256")


def test_a_folder_without_a_tokenizer(save: Save, refuse: Refuse) -> None:
    folder = save()
    for file in [*folder.glob("tokenizer*"), *folder.glob("chat_template*")]:
        file.unlink()
    assert "no tokenizer at" in refuse("run", f"target.path={folder}", *RUN, "out=run")


def test_adapters_are_no_models(save: Save) -> None:
    folder = save()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match=r"a model and a LoRA adapter; merge them, or remove adapter_config.json"):
        locate(str(folder))
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")  # transformers would miss a file
    with pytest.raises(InputError, match="a LoRA adapter without its model"):
        locate(str(folder))


@pytest.mark.parametrize("name", ["q33", "models/mine", "mini.ggu"])
def test_a_mistyped_name_is_no_folder_no_file_and_no_hub_id(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(*about: Any, **more: Any) -> None:
        asked.append(about)
        raise OSError("We couldn't connect to the hub.\nCheck your internet connection.")

    monkeypatch.setattr("specbench.models.place.cached_file", ask)
    said = f"no model at {name}: no such folder or file here, and it cannot be read from the hub: We couldn't connect to the hub."
    for load in (lambda: load_tokenizer(name, None, False), lambda: load_model(name)):
        with pytest.raises(InputError) as refused:
            load()
        assert str(refused.value) == said
    assert len(asked) == 2, "each of them asks once: a try takes half a minute without a network"


def test_a_folder_is_not_looked_up_on_the_hub(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.models.place.cached_file", None)
    check_hub_id(locate(str(save())), None)


# Quantised folders


LIBRARIES: dict[str, tuple[dict[str, Any], str]] = {
    "gptq": ({"bits": 4, "group_size": 32}, "optimum|gptqmodel"),
    "awq": ({"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, "gptqmodel|autoawq"),
    "bitsandbytes": ({"load_in_4bit": True}, "bitsandbytes"),
    "compressed-tensors": ({"config_groups": {}, "format": "pack-quantized"}, "compressed-tensors"),
    "torchao": ({"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 1, "_data": {}}}}, "torchao"),
}


@pytest.mark.parametrize("method", LIBRARIES)
def test_the_library_that_is_missing_is_named(method: str, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, library = LIBRARIES[method]
    for module in ("compressed_tensors", "bitsandbytes", "gptqmodel", "optimum", "torchao"):
        try:
            __import__(module)
        except ImportError:
            continue
        pytest.skip(f"{module} is installed")
    folder = change_config(save(), quantization_config={"quant_method": method, **settings})
    with pytest.raises(InputError, match=f"^no model at {folder}: [^\n]*({library})"):
        load_model(str(folder), device="cpu")


def quantise_fp8(folder: Path, block: int = 16) -> Path:
    """As DeepSeek's FP8 checkpoints: a scale for every block of a projection's weight, the others in bfloat16."""
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "_proj" not in name:
            stored[name] = tensor.bfloat16()
            continue
        blocks = tensor.view(tensor.shape[0] // block, block, tensor.shape[1] // block, block)
        scale = blocks.abs().amax((1, 3)) / 448  # FP8's largest number
        stored[name] = (blocks / scale[:, None, :, None]).view_as(tensor).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    return change_config(folder, quantization_config=settings, dtype="bfloat16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU multiplies in FP8")
def test_fp8_is_undone_without_a_gpu_and_the_report_says_so(save: Save, cli: Cli, tmp_path: Path) -> None:
    plain = load_model(str(save(name="plain")), dtype="float32", device="cpu")
    folder = quantise_fp8(save())
    assert cli("run", f"target.path={folder}", "target.dtype=bfloat16", *RUN, "out=run").status == 0
    run = read_run(tmp_path / "run")
    assert (run.provenance["dequantised"], run.provenance["quantised"]) == ("fp8", None)
    said = "stored quantised (fp8) and run as bfloat16, not quantised"
    assert any(said in alarm.message for alarm in find_alarms(run, summarise(run)))
    again = load_model(str(folder), dtype="bfloat16", device="cpu", packed=False)
    first, second = (dict(one.model.named_parameters())["model.layers.0.mlp.up_proj.weight"] for one in (plain, again))
    gap = (first - second.float()).abs().max() / first.abs().max()
    assert 0 < gap < 0.05, "rounded to 4 bits of mantissa and sign"


def test_layers_that_a_library_keeps_quantised_are_not_plain() -> None:
    layer = nn.Linear(2, 2)
    assert is_plain(layer)
    layer.quantization_scheme = object()  # type: ignore[assignment]
    assert not is_plain(layer)
    del layer.quantization_scheme, layer.weight
    assert not is_plain(layer)
