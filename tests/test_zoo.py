"""The embedded models: their size on disk, their shape, and that they know their world."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from specbench import ROOT
from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.drafter import Drafter
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.models.chat import Chat, decode_answer, render_prompt
from specbench.models.load import load_model, load_tokenizer
from specbench.setup.compose import compose_run
from specbench.setup.instantiate import instantiate
from specbench.setup.objects import load_target
from specbench.zoo.recipes import best_tree
from specbench.zoo.recipes.fit import build_mini_config
from specbench.zoo.recipes.train_target import double_layers
from tasks.mini.suite import Mini

pytestmark = pytest.mark.full

ZOO = ROOT / "specbench" / "zoo"


def weights(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118


def test_shipped_files_are_small_and_safe() -> None:
    files = [path for path in ZOO.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert max(path.stat().st_size for path in files) <= 16e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".pth")]


def test_the_draft_model_is_ten_times_smaller() -> None:
    target, draft = weights(ZOO / "target"), weights(ZOO / "draft")
    assert 6e6 <= target <= 12e6
    assert target >= 10 * draft, f"{target} against {draft}"


def test_the_target_knows_its_world() -> None:
    suite = Mini(per_task=2)
    model = load_model("specbench/zoo/target", dtype="float32", device="cpu")
    tokenizer = load_tokenizer("specbench/zoo/target", None, False)
    drafter = Autoregressive()
    drafter.bind(model)
    scores = []
    for question in suite.questions():
        ids = torch.tensor(render_prompt(Chat("template"), [(question.turns[0], None)], tokenizer))
        (out,) = generate(model, drafter, [ids], Sampling(max_new_tokens=256, stop_token_ids=model.eos_ids))
        scores.append(suite.score(question, 0, decode_answer(Chat("template"), tokenizer, out.output_ids)) or 0.0)
    assert sum(scores) >= 10, f"{sum(scores)} of 12 held-out answers right; at 97 %, 9 or fewer come 5 times in 1,000"


LEAST = {
    "rest": 2.2,
    "medusa": 2.0,
    "hydra_heads": 2.7,
    "eagle": 4.2,
    "eagle2": 4.2,
    "eagle3": 4.2,
    "self_speculative": 5.0,
}  # mean accepted tokens


@pytest.mark.parametrize("label", list(LEAST))
def test_the_embedded_drafters_know_their_target(label: str) -> None:
    """On held-out questions."""
    config = compose_run([f"method=[{label}]", "target.dtype=float32", "target.device=cpu"])
    target, drafter = load_target(config.target), instantiate(config.method[label], Drafter, label)
    drafter.bind(target.model)
    outs = []
    for question in Mini(per_task=1).questions():
        ids = torch.tensor(target.render_first_prompt(question))
        sampling = Sampling(max_new_tokens=64, stop_token_ids=target.model.eos_ids)
        outs += generate(target.model, drafter, [ids], sampling)
    steps, committed = sum(out.steps for out in outs), sum(sum(out.committed) for out in outs)
    assert committed >= LEAST[label] * steps, f"{committed / steps:.2f} mean accepted tokens"


def test_doubling_the_layers_changes_no_output() -> None:
    torch.manual_seed(0)
    small = build_mini_config(layers=2, hidden=128, intermediate=64, heads=2)
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(small).double().eval()  # type: ignore[no-untyped-call]
    large = build_mini_config(layers=4, hidden=128, intermediate=64, heads=2)
    deep = double_layers(model.float(), large).double().eval()  # type: ignore[no-untyped-call]
    ids = torch.randint(4, 1024, (1, 20))
    with torch.inference_mode():
        assert torch.allclose(model.double()(ids).logits, deep(ids).logits, atol=1e-9)


@pytest.mark.parametrize("name", ["target", "draft", "medusa", "hydra_heads", "eagle", "eagle3"])
def test_a_log_tells_how_it_was_trained(name: str) -> None:
    assert (ZOO / name / "training_log.jsonl").read_text().count("held_out") >= 3


def test_the_best_tree_holds_every_node_s_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_tree, "NEW_TOKENS", 24)
    found = best_tree.measure_frequencies("token_recycling", "recycling_2_2_2", limit=1)
    shares = dict(found)
    assert found[0][0] == (0,) and [share for _, share in found] == sorted(shares.values(), reverse=True)
    assert len(found) > 5 and all(shares[path[:-1]] >= share for path, share in found if len(path) > 1)


METHODS = (
    "pld",
    "sps",
    "medusa",
    "hydra_heads",
    "eagle",
    "eagle2",
    "eagle3",
    "dflash",
    "dspark",
    "mtp",
    "token_recycling",
    "rest",
    "sam_decoding",
    "suffix_cold",
    "lookahead",
)
SHAPE = "{hidden_size: 512, intermediate_size: 896, num_hidden_layers: 11, num_attention_heads: 16, num_key_value_heads: 8, "
SHAPE += "head_dim: 128, vocab_size: 3000}"  # every axis grows, and heads come in groups
DRAFT = "{hidden_size: 256, num_attention_heads: 4, vocab_size: 3000}"


def written(*overrides: str) -> dict[str, list[tuple[list[int], list[int], list[int]]]]:
    """By method, of first turns: output ids, draft nodes and accepted tokens of every step."""
    config = compose_run([f"method=[{','.join(METHODS)}]", "target.dtype=float32", "target.device=cpu", *overrides])
    target = load_target(config.target)
    prompts = [torch.tensor(target.render_first_prompt(question)) for question in Mini(per_task=1).questions()]
    sampling = Sampling(max_new_tokens=24, stop_token_ids=target.model.eos_ids)
    found = {}
    for label in METHODS:
        drafter = instantiate(config.method[label], Drafter, label)
        drafter.bind(target.model)
        outs = [generate(target.model, drafter, [prompt], sampling)[0] for prompt in prompts]
        found[label] = [(out.output_ids, out.drafted, out.accepted) for out in outs]
    return found


@pytest.mark.slow  # test_trained_drafters.py expands each drafter
def test_expanded_every_method_writes_drafts_and_accepts_the_same() -> None:
    small = written()
    large = written("target.shape=x", f"+target.shapes.x={SHAPE}", f"+target.draft_shapes.x={DRAFT}")
    for label in METHODS:
        assert large[label] == small[label], label
