"""specbench export gguf: what the file holds, read by transformers and by the package gguf; what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from specbench.decoding.language_model import LanguageModel
from specbench.errors import InputError
from specbench.exchange import gguf_file
from specbench.exchange.gguf_file import GgufExport, export_gguf, find_differences
from specbench.exchange.gguf_layout import compute_rope_factors, list_tensors, pair_halves, pair_neighbours
from specbench.models.load import load_model, load_tokenizer
from specbench.setup.objects import EMBEDDED
from tests.conftest import Cli, Refuse, Tiny
from tests.tiny import tiny_model

gguf: Any = pytest.importorskip("gguf", reason="needs the extra gguf: pip install -e '.[gguf]'")

SIZES: dict[str, Any] = {
    "vocab_size": 1100,  # the embedded tokenizer has 1,024
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,  # 64 dimensions of heads, 32 hidden ones
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.4,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = {
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 64},
}


def build(dtype: torch.dtype = torch.float32, **changes: Any) -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, **changes}), dtype=dtype)  # type: ignore[no-untyped-call]
        for name, tensor in model.state_dict().items():
            if name.endswith("bias") or "norm" in name:
                tensor.normal_(1, 0.3)  # initialised to 0 and 1
    return LanguageModel(model)


def write(folder: Path, model: LanguageModel, dtype: torch.dtype | None = None) -> GgufExport:
    return export_gguf(model, load_tokenizer(EMBEDDED, None, False), "tiny", folder / "tiny.gguf", dtype=dtype)


def read(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def say(path: Path, key: str) -> Any:
    return gguf.GGUFReader(path).fields[key].contents()


def compute_logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(2, 42)[None] * 7 % 1024
    with torch.inference_mode():
        logits: torch.Tensor = model(ids, use_cache=False).logits
    return logits


# What the file holds


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_transformers_reads_the_same_model(tmp_path: Path, dtype: str, tied: bool) -> None:
    loaded = build(getattr(torch, dtype), tie_word_embeddings=tied)
    written = write(tmp_path, loaded)
    back: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    with loaded.use_original_attention() as model:
        expected = compute_logits(model.to(torch.float32))  # type: ignore[arg-type]
    assert torch.equal(compute_logits(back), expected)
    assert written.dtype == dtype and back.config.tie_word_embeddings == tied
    assert ("output.weight" in read(tmp_path / "tiny.gguf")) != tied


def test_vectors_are_float32_and_matrices_keep_their_type(tmp_path: Path) -> None:
    write(tmp_path, build(torch.bfloat16))
    kinds = {name: tensor.tensor_type.name for name, tensor in read(tmp_path / "tiny.gguf").items()}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {"BF16"}
    assert say(tmp_path / "tiny.gguf", "general.file_type") == 32


def test_matrices_may_get_another_type(tmp_path: Path) -> None:
    model = build(torch.bfloat16)
    assert write(tmp_path, model, torch.float16).dtype == "float16"
    stored = read(tmp_path / "tiny.gguf")["output.weight"]
    assert torch.equal(torch.from_numpy(stored.data.copy()), model.model.state_dict()["lm_head.weight"].half())
    assert say(tmp_path / "tiny.gguf", "general.file_type") == 1


def test_sizes_and_end_of_sequence_are_the_models(tmp_path: Path) -> None:
    write(tmp_path, build())
    expected = {
        "llama.embedding_length": 32,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.context_length": 256,
        "llama.vocab_size": 1100,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,  # prompts hold it
    }
    assert {key: say(tmp_path / "tiny.gguf", key) for key in expected} == expected


def test_biases_of_attention_and_mlp_are_kept_and_those_of_q_and_k_turned(tmp_path: Path) -> None:
    model = build(attention_bias=True, mlp_bias=True)
    write(tmp_path, model)
    tensors, weights = read(tmp_path / "tiny.gguf"), model.model.state_dict()
    for name, heads in (("q", 4), ("k", 2)):
        stored = torch.from_numpy(tensors[f"blk.1.attn_{name}.bias"].data.copy())
        assert torch.equal(stored, pair_neighbours(weights[f"model.layers.1.self_attn.{name}_proj.bias"], heads))
    for ours, theirs in (("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"), ("mlp.down_proj", "ffn_down")):
        assert (tensors[f"blk.0.{theirs}.bias"].data == weights[f"model.layers.0.{ours}.bias"].numpy()).all()


def rotate(vector: torch.Tensor, pairs: list[tuple[int, int]], position: int) -> torch.Tensor:
    """Rotate the i-th pair of dimensions by position / 10^i: a slow reference."""
    out = vector.clone()
    for i, (a, b) in enumerate(pairs):
        angle = torch.tensor(position / 10**i, dtype=vector.dtype)
        out[a] = vector[a] * angle.cos() - vector[b] * angle.sin()
        out[b] = vector[a] * angle.sin() + vector[b] * angle.cos()
    return out


def test_turned_rows_give_the_same_scores_under_the_other_rotation() -> None:
    queries, keys = torch.randn(2, 3 * 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    halves, neighbours = [(i, i + 4) for i in range(4)], [(2 * i, 2 * i + 1) for i in range(4)]
    for q, k, q2, k2 in zip(
        *(part.view(3, 8) for part in (queries, keys, pair_neighbours(queries, 3), pair_neighbours(keys, 3))), strict=True
    ):
        score = rotate(q, halves, 5) @ rotate(k, halves, 3)
        assert torch.allclose(rotate(q2, neighbours, 5) @ rotate(k2, neighbours, 3), score)
    assert torch.equal(pair_halves(pair_neighbours(queries, 3), 3), queries)


def test_llama3_frequencies_are_factors_of_the_plain_ones(tmp_path: Path) -> None:
    model = build(rope_parameters=ROPES["llama3"])
    write(tmp_path, model)
    factors = torch.from_numpy(read(tmp_path / "tiny.gguf")["rope_freqs.weight"].data.copy())
    assert torch.equal(factors, compute_rope_factors(model.model))
    assert (compute_rope_factors(build().model) == 1).all()
    assert factors[0] == 1 and factors[-1] == pytest.approx(8), "fast pairs keep their frequency, slow ones have an eighth"


def test_linear_scaling_is_a_setting(tmp_path: Path) -> None:
    write(tmp_path, build(rope_parameters=ROPES["linear"]))
    assert say(tmp_path / "tiny.gguf", "llama.rope.scaling.type") == "linear"
    assert say(tmp_path / "tiny.gguf", "llama.rope.scaling.factor") == 4


# Refused, with nothing written


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act=gelu: llama.cpp computes silu"),
        ({"eos_token_id": None}, "no end-of-sequence token; expected 1 to 3"),
        ({"eos_token_id": [1, 2, 3, 4]}, "4 end-of-sequence tokens"),
        ({"vocab_size": 1000}, "its tokenizer has 1,024 tokens, the model embeddings for 1,000"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type=yarn: expected rope_type default",
        ),
    ],
)
def test_what_gguf_cannot_hold_is_refused_by_name(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(folder, build(**changes))


def test_other_models_types_and_tensors_are_refused_by_name(folder: Path) -> None:
    for model, message in (
        (LanguageModel(tiny_model("qwen3")), "only a Llama can be exported, not Qwen3ForCausalLM"),
        (build(torch.float64), "its weights are float64; expected one of"),
    ):
        with pytest.raises(InputError, match=message):
            write(folder, model)
    extended = build()
    extended.model.register_parameter("gate", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(InputError, match="GGUF's llama has no place for gate"):
        write(folder, extended)


def damage(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    original = gguf_file._write

    def write_damaged(package: Any, path: Path, settings: Any, tensors: Any) -> None:
        original(package, path, *change(list(settings), list(tensors)))

    monkeypatch.setattr(gguf_file, "_write", write_damaged)


def flip_bit(item: Any) -> Any:
    changed = item.tensor.clone()
    changed.view(torch.int32)[0, 0] ^= 1
    return item._replace(tensor=changed)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda settings, tensors: (settings, [*tensors[:-1], flip_bit(tensors[-1])]), "output.weight"),
        (lambda settings, tensors: (settings, [item._replace(heads=0) for item in tensors]), "blk.0.attn_q.weight"),
        (lambda settings, tensors: (settings, tensors[1:]), "token_embd.weight"),
        (lambda settings, tensors: (settings, [*tensors, tensors[0]._replace(name="more.weight")]), "more.weight"),
        (lambda settings, tensors: ([*settings[:2], ("uint32", settings[2][1], 7), *settings[3:]], tensors), "llama.vocab_size"),
        (lambda settings, tensors: (settings[:-1], tensors), "tokenizer.chat_template"),
    ],
    ids=["a bit", "unturned", "missing", "more", "size", "unsaid"],
)
def test_a_file_that_reads_back_differently_is_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Any, name: str
) -> None:
    damage(monkeypatch, change)
    with pytest.raises(InputError, match=rf"tiny.gguf: not written: read back, it differs in {name}"):
        write(folder, build())


def test_reading_back_finds_a_damaged_file(tmp_path: Path) -> None:
    model = build()
    path, tensors = write(tmp_path, model).path, list(list_tensors(model.model, torch.float32))
    assert find_differences(path, [], tensors) == []
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    assert find_differences(path, [], tensors) == [tensors[-1].name]


# The command line


def overrides(tiny: Tiny) -> list[str]:
    return [f"target.path={tiny.target}", f"target.draft.path={tiny.draft}", "target.dtype=float32"]


def test_target_and_draft_model_are_exported(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    status, out, err = cli("export", "gguf", *overrides(tiny), "out=some/target.gguf")
    assert (status, err) == (0, "") and out.startswith("gguf: some/target.gguf: 0."), out
    assert "float32" in out and "read back, equal bit for bit" in out and "send it token ids" in out
    assert cli("export", "gguf", *overrides(tiny), "out=draft.gguf", "--draft").status == 0
    assert [say(tmp_path / name, "llama.block_count") for name in ("some/target.gguf", "draft.gguf")] == [2, 1]
    assert sorted(path.name for path in tmp_path.rglob("*.gguf")) == ["draft.gguf", "target.gguf"]


def test_a_shape_is_exported_as_it_is_loaded(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    wide = "+target.shapes.wide={hidden_size: 64, num_attention_heads: 8}"
    assert cli("export", "gguf", *overrides(tiny), wide, "target.shape=wide", "out=wide.gguf").status == 0
    back: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="wide.gguf", dtype=torch.float32)
    small = load_model(str(tiny.target), dtype="float32", device="cpu", packed=False)
    with small.use_original_attention() as model:
        expected = compute_logits(model)
    assert torch.allclose(compute_logits(back), expected, atol=1e-3 * float(expected.std()))


def test_a_bias_on_the_output_is_left_out_only_on_request(cli: Cli, refuse: Refuse, tiny: Tiny, tmp_path: Path) -> None:
    words = ["export", "gguf", *overrides(tiny), "+target.shapes.long={vocab_size: 1100}", "target.shape=long", "out=long.gguf"]
    message = "no place for the bias on its output; --without-output-bias leaves it out: speed only, texts may differ"
    assert message in refuse(*words)
    status, out, _ = cli(*words, "--without-output-bias")
    assert status == 0 and "without the bias on its output: speed only, texts may differ" in out


def test_mistakes_are_one_line(refuse: Refuse, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refuse("export", "gguf") == "out=null: expected a file, such as out=exports/mini.gguf"
    assert refuse("export", "gguf", "out=model.bin").startswith("out=model.bin: expected a name that ends in .gguf")
    (tmp_path / "old.gguf").touch()
    assert refuse("export", "gguf", "out=old.gguf") == "out=old.gguf: already exists; choose another file"
    assert "names no draft model" in refuse("export", "gguf", "out=a.gguf", "target.draft=null", "--draft")
    monkeypatch.setitem(sys.modules, "gguf", None)
    message = "the package gguf is not installed; pip install -e '.[gguf]' adds it"
    assert refuse("export", "gguf", *overrides(tiny), "out=a.gguf") == message
