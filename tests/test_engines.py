"""The peer beside specbench's own engine: the same tokens, no invented steps, methods refused by name."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from specbench import ROOT
from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.loop import CapacityError
from specbench.decoding.sampling import Sampling
from specbench.engine.hf import TransformersGenerate
from specbench.engine.native import Native
from specbench.errors import InputError
from specbench.records.trial import PER_STEP
from specbench.running import execute as runs
from specbench.running.schedule import build_arms
from specbench.setup.compose import compose_run
from tests.fake_engine import Quiet
from tests.methods_under_test import drafter_of, target_of
from tests.tiny import SHAPE, prompts, tiny_language_model

LABELS = ["autoregressive", "pld", "sps"]
METHODS: dict[str, dict[str, Any]] = {
    "autoregressive": {},
    "pld": {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 3},
    "sps": {"assistant": {"num_assistant_tokens": 5, "num_assistant_tokens_schedule": "heuristic"}},
}
DRAFT = {"path": None, "dtype": "float64", "config": {"model_type": "llama", **SHAPE, "num_hidden_layers": 2}}
SAMPLING = Sampling(max_new_tokens=16, stop_token_ids=(1, 7))


def peer(methods: Mapping[str, Mapping[str, Any]] = METHODS) -> TransformersGenerate:
    return TransformersGenerate(methods, DRAFT, device="cpu", weights="random")


def opened(engine: Native | TransformersGenerate, architecture: str = "llama", labels: list[str] = LABELS) -> Any:
    engine.open(target_of(architecture), {label: drafter_of(label, architecture) for label in labels})
    return engine


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma"])
def test_both_engines_write_the_same_tokens_in_any_order(architecture: str) -> None:
    labels = LABELS if architecture == "llama" else LABELS[:2]
    native, hf = opened(Native(profile=False), architecture, labels), opened(peer(), architecture, labels)
    for prompt in prompts(6):
        for label in labels:
            ours, theirs, again = (engine.generate(label, prompt.tolist(), SAMPLING) for engine in (native, hf, native))
            assert ours.output_ids == theirs.output_ids == again.output_ids
            assert ours.finish_reason == theirs.finish_reason


def test_the_peer_sees_no_steps() -> None:
    out = opened(peer()).generate("pld", prompts(1)[0].tolist(), SAMPLING)
    assert not out.sees_steps and out.decode_s > 0 and out.prefill_s == 0
    assert all(getattr(out, name) == [] for name in PER_STEP) and out.draft_s is out.verify_s is None
    assert opened(Native(profile=False)).generate("pld", prompts(1)[0].tolist(), SAMPLING).sees_steps


@pytest.mark.parametrize("make", [lambda: Native(profile=False), peer], ids=["native", "hf"])
@pytest.mark.parametrize("room", [0, 1, 6])
def test_the_context_ends_for_both_alike(make: Callable[[], Any], room: int) -> None:
    engine = opened(make(), labels=LABELS[:2])
    prompt = ([5, 6, 8, 9] * 64)[: 256 - room]
    if not room:
        with pytest.raises(CapacityError, match="256 tokens does not fit a context of 256"):
            engine.generate("pld", prompt, SAMPLING)
        return
    out = engine.generate("pld", prompt, Sampling(max_new_tokens=16))
    assert (len(out.output_ids), out.finish_reason) == (room, "capacity")


@pytest.mark.parametrize("label", LABELS)
def test_both_engines_keep_a_least_length(label: str) -> None:
    sampling, lengths = Sampling(max_new_tokens=16, stop_token_ids=tuple(range(0, 128, 5)), min_new_tokens=6), set()
    native, hf = opened(Native(profile=False)), opened(peer())
    for prompt in prompts(6):
        ours, theirs = (engine.generate(label, prompt.tolist(), sampling) for engine in (native, hf))
        assert (ours.output_ids, ours.finish_reason) == (theirs.output_ids, theirs.finish_reason)
        lengths.add(len(ours.output_ids))
    assert 7 in lengths, "some text ends as soon as it may"


@pytest.mark.parametrize(
    "engine, setting, value",
    [
        ("hf", "sampling.stop", "[END]"),
        ("reference", "sampling.min_new_tokens", "2"),
        ("reference", "sampling.ignore_eos", "true"),
        ("reference", "sampling.stop", "[END]"),
    ],
)
def test_an_engine_refuses_what_it_does_not_know(engine: str, setting: str, value: str, tmp_path: Path) -> None:
    """Also the second engine, before anything is loaded; an engine of one's own knows what it says."""
    root = [f"engine.reference.root={ROOT}"] if engine == "reference" else []
    settings = compose_run([f"engine=[native,{engine}]", f"{setting}={value}", f"out={tmp_path}", *root])
    with pytest.raises(InputError, match=rf"{setting}=.*: engine {engine} does not know it; expected null"):
        runs.execute(settings, Quiet())
    assert not list(tmp_path.iterdir())


def test_the_peer_without_stop_tokens_runs_to_the_length() -> None:
    ours, theirs = (
        opened(engine, labels=["autoregressive"]).generate("autoregressive", [5, 6, 7], Sampling(max_new_tokens=12))
        for engine in (Native(profile=False), peer())
    )
    assert ours.output_ids == theirs.output_ids and theirs.finish_reason == "length" and len(theirs.output_ids) == 12


def test_the_native_engine_keeps_its_memory_and_taps_for_each_method() -> None:
    engine = opened(Native(profile=False))
    engine.drafters["pld"].taps = (1,)
    engine.reserve(40, SAMPLING)
    store = engine._store
    for label in LABELS:
        engine.generate(label, prompts(1)[0].tolist(), SAMPLING)
        assert engine._store is store, "taken before the clock runs"
        assert engine.target._taps == engine.drafters[label].taps
    assert store is not None and store.capacity == 40 + 16, "prompt and answer; chains need no more"


def test_what_outlives_a_turn_is_the_drafters_to_say() -> None:
    engine = opened(Native(profile=False))
    engine.drafters["pld"].warm = True
    assert (engine.is_warm("sps"), engine.is_warm("pld"), peer().is_warm("pld")) == (False, True, False)


# --- who runs what


def test_a_method_that_the_first_engine_lacks_is_refused_by_name() -> None:
    native, hf = opened(Native(profile=False)), opened(peer({"autoregressive": {}}))
    with pytest.raises(InputError, match="engine hf has no method pld, sps"):
        build_arms({"hf": hf, "native": native}, LABELS)
    arms = build_arms({"native": native, "hf": hf}, LABELS)
    assert [arm.label for arm in arms] == [*LABELS, "autoregressive@hf"], "beside the first, an engine runs what it has"
    assert [(arm.method, arm.engine) for arm in arms[-2:]] == [("sps", native), ("autoregressive", hf)]


def test_a_draft_model_is_loaded_only_for_a_method_that_asks_for_it() -> None:
    hf = opened(peer(), labels=["autoregressive", "pld"])
    assert hf._assistant is None and opened(peer())._assistant is not None
    with pytest.raises(InputError, match="names no draft model"):
        opened(TransformersGenerate(METHODS, None, device="cpu", weights="random"))


class Silent:
    """Watches a run without a word."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given, **named: None


def test_records_of_the_peer_leave_the_steps_null(tmp_path: Path) -> None:
    llama = {"model_type": "llama", **SHAPE, "vocab_size": 1024, "num_hidden_layers": 2, "max_position_embeddings": 2048}
    written = "{" + ",".join(f"{key}:{value}" for key, value in llama.items()) + "}"
    config = compose_run(
        [
            *("target.weights=random", f"target.config={written}", f"target.draft.config={written}"),
            *("target.dtype=float64", "target.draft.dtype=float64", "target.device=cpu"),
            *("engine=[native,hf]", "method=[pld,sps]", "task=[qa]", "limit=1", "repeats=1"),
            *("suite.per_task=1", "sampling.max_new_tokens=8", f"out={tmp_path / 'run'}"),
        ]
    )
    run = runs.execute(config, Silent())
    rows = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    assert sorted(row["method"] for row in rows) == sorted([*LABELS, *(f"{label}@hf" for label in LABELS)])
    assert len({tuple(row["output_ids"]) for row in rows}) == 1 and not any(row["error"] for row in rows)
    for row in rows:
        unseen = [row[name] for name in [*PER_STEP, "steps", "target_forwards", "draft_forwards", "prefill_s"]]
        seen = not row["method"].endswith("@hf")
        assert all((value is not None) == seen for value in unseen) and row["decode_s"] > 0


def test_a_drafter_that_taps_a_layer_beyond_the_target_is_refused() -> None:
    class Tapping(Autoregressive):
        taps = (2, 50)

    with pytest.raises(InputError, match="before layer 50; the target has 0 to 3"):
        Native(profile=False).open(tiny_language_model("llama", 3), {"tapping": Tapping()})


def test_block_drafts_of_transformers_write_the_same_tokens() -> None:
    """With the same weights, where its version has them."""
    labels, methods = ["autoregressive", "dflash"], {"autoregressive": {}, "dflash": {"speculation_type": "dflash"}}
    native, hf = opened(Native(profile=False), labels=labels), opened(peer(methods), labels=labels)
    for prompt in prompts(6):
        ours, theirs, plain = (
            engine.generate(label, prompt.tolist(), SAMPLING)
            for engine, label in ((native, "dflash"), (hf, "dflash"), (hf, "autoregressive"))
        )
        assert ours.output_ids == theirs.output_ids == plain.output_ids


def test_drafts_of_transformers_own_first_layers_change_no_token() -> None:
    """A setting of generate that has no preset."""
    hf = opened(peer({"autoregressive": {}, "pld": {"assistant_early_exit": 1}}), labels=["autoregressive", "pld"])
    for prompt in prompts(6):
        plain, exited = (hf.generate(label, prompt.tolist(), SAMPLING) for label in ("autoregressive", "pld"))
        assert plain.output_ids == exited.output_ids


def test_a_setting_of_a_later_transformers_is_refused_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.engine.hf._list_settings", lambda: {"do_sample"})
    engine = peer({"dflash": {"speculation_type": "dflash"}, "pld": {}})
    opened(engine, labels=["pld"])
    with pytest.raises(InputError, match=r"engine.hf.methods.dflash.speculation_type: transformers .* does not support it yet"):
        opened(engine, labels=["dflash"])


def test_a_checkpoint_that_transformers_cannot_draft_with_is_refused_by_name() -> None:
    engine = peer({"dspark": {"speculation_type": "dflash"}})
    with pytest.raises(InputError, match="method dspark: transformers' DFlash cannot run this checkpoint: its blocks draft from"):
        opened(engine, labels=["dspark"])
