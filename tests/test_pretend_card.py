"""Every method on the pretend card: the same output as on the CPU, and no more copies and synchronisations than it needs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
import torch

from specbench.certify.miniature import add_noise
from specbench.decoding import loop
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import Generation, generate
from specbench.decoding.runner import Kind, Runner
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.tree_batch import bring_trees
from specbench.drafters.network_drafter import LayerDrafter
from specbench.engine.native import Native
from specbench.running.baseline import open_engines
from specbench.setup.provenance import list_attention_kernels
from tests.methods_under_test import LABELS, LAYERS, NOISE, NUMBERS_ALONE, build_method, each_preset
from tests.pretend_card import CARD, LEDGER, CardTensor, put_on_card, use_card, why_not
from tests.tiny import VOCABULARY, tiny_model

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not())]

GREEDY = Sampling(max_new_tokens=20)
SAMPLED = Sampling(max_new_tokens=20, temperature=0.9, top_p=0.95, seed=3)
MOTIF = torch.randint(2, VOCABULARY, (12,), generator=torch.Generator().manual_seed(1)).tolist()
PROMPT = MOTIF * 4

ALLOWED = 2  # copies and synchronisations of a greedy step: what was chosen comes to the host, and goes to the next draft
MORE = {  # and why
    "eagle2": (3, "the depth of a tree grown on the card is read"),
    "rest": (3, "the tree is copied, and the path where it branches"),
    "sam_decoding_static": (3, "as rest"),
    "lookahead": (4, "the window's guesses are read, and the path where it branches is copied"),
    "sps_tli": (3, "a token that the draft model lacks is rewritten on the host"),
    "sps_spec_bench": (3, "stops at an end-of-sequence token: the draft is read once"),
    "sps_confidence": (3, "as sps_spec_bench"),
}
ASKING = ("sps_confidence", "self_speculative", "self_speculative_paper")  # stop at an unsure token: each drafted one is asked
MORE |= dict.fromkeys(("eagle2_spec_bench", "eagle3", "eagle3_depth2", "eagle3_depth7", "eagle3_spec_bench"), MORE["eagle2"])
MORE |= dict.fromkeys(
    ("sam_eagle2", "sam_eagle2_spec_bench", "suffix_eagle2"), (4, "as eagle2, and the tree that the first method offers")
)
MORE |= {"rest_spec_bench": MORE["rest"], "lookahead_spec_bench": MORE["lookahead"]}
BATCH = 12  # sequences: one copy or synchronisation for each of them would be far more than is allowed
ROWS = 5  # more in a step of a batch: where its rows begin and end, which entries move
BESIDE = {"sps": 9, "sps_confidence": 5, "sps_spec_bench": 8}  # the rows of each draft forward, as some wait for the others
DRAFTED = {"sps_confidence": 5}
ROW_BY_ROW = dict.fromkeys(("self_speculative", "self_speculative_paper"), "drafts for one sequence after another")
KERNELS = 40  # launched per greedy step besides forwards
MORE_KERNELS = {  # by draft loops, which are not captured
    **dict.fromkeys(("sps", "sps_confidence", "sps_spec_bench"), 120),
    "sps_tli": 160,  # logits of the shared tokens are put at their ids
    **dict.fromkeys(("token_recycling", "token_recycling_spec_bench", "token_recycling_warm"), 60),
    **dict.fromkeys(("hydra_heads", "hydra_heads_spec_bench"), 180),
    **dict.fromkeys(("eagle", "eagle_spec_bench"), 130),
    **dict.fromkeys(("eagle2", "eagle2_spec_bench", "sam_eagle2", "sam_eagle2_spec_bench", "suffix_eagle2"), 240),
    **dict.fromkeys(("eagle3", "eagle3_depth2", "eagle3_spec_bench"), 305),
    "eagle3_depth7": 400,
    "mtp": 140,
    "p_eagle": 130,
    **dict.fromkeys(("dflash", "dspark"), 110),  # the text's keys and values are written outside of the graph
}


each_structure = pytest.mark.parametrize(
    "label", [pytest.param(label, marks=pytest.mark.slow if label in NUMBERS_ALONE else pytest.mark.full) for label in LABELS]
)


@dataclass(frozen=True)
class Step:
    """What one step took: the counts, and who asked for copies and synchronisations."""

    waits: int
    kernels: int
    places: tuple[str, ...]


def run(label: str, sampling: Sampling, on_card: bool, kind: Kind = "eager") -> tuple[Generation, list[Step]]:
    """Decode a prompt twice, as only the first turn lays out static trees; return the second turn and its steps."""
    with use_card() if on_card else nullcontext():
        drafter = build(label, on_card, kind)
        ids = torch.tensor(PROMPT, device=drafter.target.device)
        generate(drafter.target, drafter, [ids], sampling)
        drafter.reset()
        steps: list[Step] = []
        with watch_steps(steps):
            (out,) = generate(drafter.target, drafter, [ids], sampling)
    return out, steps


def build(label: str, on_card: bool, kind: Kind) -> Drafter:
    target, draft = tiny_model("llama", LAYERS), add_noise(tiny_model("llama", LAYERS), NOISE).model
    if on_card:
        put_on_card(target)
        put_on_card(draft)
    model = LanguageModel(target)
    drafter = build_method(label, LanguageModel(draft))
    drafter.bind(model)
    for part in drafter.iter_family():
        if isinstance(part, LayerDrafter):
            part.runner.kind = kind
    for each in (model, *drafter.list_models()):
        each.runner.kind = kind
    return drafter


@contextmanager
def watch_steps(steps: list[Step]) -> Iterator[None]:
    real = loop._run_step

    def run_step(*arguments: Any) -> None:
        with LEDGER.open():
            real(*arguments)
        places = tuple(LEDGER.list_places("upload", "sync"))
        steps.append(Step(LEDGER.count("upload", "sync"), LEDGER.count("kernel"), places))

    with patch.object(loop, "_run_step", run_step):
        yield


@pytest.mark.full
@pytest.mark.parametrize("sampling", [GREEDY, pytest.param(SAMPLED, marks=pytest.mark.slow)], ids=["greedy", "sampled"])
@each_preset
def test_card_decodes_as_the_cpu_and_greedy_steps_keep_their_budget(label: str, sampling: Sampling) -> None:
    expected, _ = run(label, sampling, on_card=False)
    found, steps = run(label, sampling, on_card=True)
    assert found.output_ids == expected.output_ids
    assert (found.drafted, found.accepted, found.draft_forwards) == (expected.drafted, expected.accepted, expected.draft_forwards)
    if sampling is GREEDY:
        for step, drafted in zip(steps, found.drafted, strict=True):
            allowed = count_allowed(label, drafted)
            report = "; ".join(step.places)
            assert step.waits <= allowed, f"{label}: {step.waits} copies and synchronisations in a step, not {allowed}: {report}"


def count_allowed(label: str, drafted: int) -> int:
    return MORE.get(label, (ALLOWED, ""))[0] + (drafted if label in ASKING else 0)


@each_structure
def test_fixed_shapes_decode_as_the_cpu_and_launch_few_kernels_outside(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards of fixed shape are one launch each as graphs."""
    monkeypatch.setattr(Runner, "run", leave_out(Runner.run))
    expected, _ = run(label, GREEDY, on_card=False)
    found, steps = run(label, GREEDY, on_card=True, kind="static")
    assert found.output_ids == expected.output_ids
    assert all(step.waits <= count_allowed(label, drafted) for step, drafted in zip(steps, found.drafted, strict=True))
    assert max(step.kernels for step in steps) <= MORE_KERNELS.get(label, KERNELS)


@each_structure
def test_copies_and_synchronisations_of_a_greedy_step_do_not_grow_with_the_batch(label: str) -> None:
    if label in ROW_BY_ROW:
        pytest.skip(ROW_BY_ROW[label])
    with use_card():
        drafter = build(label, on_card=True, kind="eager")
        prompts = [torch.tensor(PROMPT[row:], device=CARD) for row in range(BATCH)]
        generate(drafter.target, drafter, prompts, GREEDY)
        drafter.reset()
        steps: list[Step] = []
        with watch_steps(steps):
            generate(drafter.target, drafter, prompts, GREEDY)
    worst = max(steps, key=lambda step: step.waits)
    assert worst.waits <= count_allowed(label, DRAFTED.get(label, 0)) + BESIDE.get(label, ROWS), "; ".join(worst.places)


def leave_out(run: Callable[..., Any]) -> Callable[..., Any]:
    def run_uncounted(*arguments: Any, **named: Any) -> Any:
        with LEDGER.pause():
            return run(*arguments, **named)

    return run_uncounted


def count_kernels(layers: int, key_value_heads: int, kind: Kind) -> int:
    """Return the kernels of a forward over a branched tree of few nodes."""
    with use_card(), patch.dict("tests.tiny.SHAPE", num_key_value_heads=key_value_heads), torch.inference_mode():
        target = tiny_model("llama", layers)
        put_on_card(target)
        model = LanguageModel(target)
        model.runner.kind = kind
        store = model.create_store(64)
        model.prefill(store, [torch.tensor(PROMPT, device=CARD)])
        tree = build_branched_tree()
        with LEDGER.open():
            model.forward(store, [tree])
        return LEDGER.count("kernel")


@pytest.mark.parametrize(("kind", "copies"), [("eager", 2), ("static", 1)])
def test_heads_in_groups_copy_queries_and_output_but_no_mask_in_each_layer(kind: Kind, copies: int) -> None:
    few, many = (count_kernels(layers, 2, kind) - count_kernels(layers, 4, kind) for layers in (2, 6))
    assert many - few <= copies * (6 - 2)


def build_branched_tree() -> DraftTree:
    return bring_trees([DraftTree.from_lists([5, 6, 7, 8], [-1, 0, 0, 1])], CARD)[0]


def test_a_commit_copies_its_path_once_however_many_layers() -> None:
    def count(layers: int) -> int:
        with use_card(), torch.inference_mode():
            target = tiny_model("llama", layers)
            put_on_card(target)
            model = LanguageModel(target)
            store = model.create_store(64)
            model.prefill(store, [torch.tensor(PROMPT, device=CARD)])
            model.forward(store, [build_branched_tree()])
            with LEDGER.open():
                store.keep(0, [0, 2], torch.tensor([0, 2]).pin_memory().to(CARD, non_blocking=True))
            return LEDGER.count("upload", "sync")

    assert count(1) == count(5) == 1


def test_the_card_refuses_mixed_devices_and_names_who_waits() -> None:
    with use_card():
        here, there = torch.ones(3), torch.ones(3, device=CARD)
        with pytest.raises(RuntimeError, match="same device"):
            here + there
        with pytest.raises(RuntimeError, match="host"):
            here[torch.tensor([0], device=CARD)]
        assert isinstance(there + 1, CardTensor)
        assert (there * 2).tolist() == [2, 2, 2]
        with LEDGER.open():
            there[[0, 1]]
            there[there > 0]
            bool(there.sum() > 2)
            there.cpu()
            there.view(3, 1).unsqueeze(0)
            there.copy_(here)
        assert LEDGER.count("upload") == 2
        assert LEDGER.count("sync") == 3
        assert LEDGER.count("view") == 2


def test_cudnn_attention_is_off() -> None:
    Native(profile=False, forward="eager").open(LanguageModel(tiny_model("llama", LAYERS)), {})
    assert "cuDNN" not in list_attention_kernels()


def test_on_a_card_the_baseline_meets_a_compiled_generate() -> None:
    with use_card():
        target = tiny_model("llama", LAYERS)
        put_on_card(target)
        ways = open_engines({"float64": LanguageModel(target)})
    assert sorted(engine for engine, _ in ways) == ["hf", "hf static", "native"]
