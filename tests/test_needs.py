"""What a run needs is said before it loads anything, and what cannot fit is refused with a setting that would."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoConfig, AutoModelForCausalLM

from specbench.decoding.kv_store import round_up
from specbench.decoding.sampling import Sampling
from specbench.errors import InputError
from specbench.machine.rehearsal import Rehearsal
from specbench.models import products
from specbench.models.outline import outline_model
from specbench.running.baseline import choose_dtypes
from specbench.running.execute import say_needs
from specbench.running.minutes import estimate_minutes
from specbench.running.needs import Need, RunNeed, check_need, format_need
from specbench.running.rehearse import count_active, rehearse_methods
from specbench.setup.compose import CONF, compose_run
from tests.conftest import Cli, Tiny

CPU = torch.device("cpu")
VOCABULARY, HIDDEN, LAYERS, PROMPT, NEW = 50_000, 32, 8, 300, 40
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
RANDOM = [
    f"target.checkpoints.{method}=random" for method in ("medusa", "hydra_heads", "eagle", "eagle3", "dflash", "dspark", "mtp")
]
ALL_LOGITS = 4 * PROMPT * VOCABULARY  # float32, of every row of the prompt


def rehearse(*overrides: str, dtype: str = "float32", max_new_tokens: int = NEW) -> RunNeed:
    nodes = compose_run([*RANDOM, *overrides]).method
    with Rehearsal() as rehearsal:
        target = outline_model(path=None, weights="random", config=CONFIG, dtype=dtype, device="cpu")
        return rehearse_methods(rehearsal, target, nodes, Sampling(max_new_tokens=max_new_tokens), PROMPT)


def test_the_target_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per layer: queries and outputs H × H, keys and values H × H / 2, three products of H × 48, two norms; and one norm."""
    monkeypatch.setattr("specbench.running.rehearse.has_packed_products", lambda device, dtype: True)
    need = rehearse("method=[]")
    layer = 3 * HIDDEN * HIDDEN + 3 * HIDDEN * 48 + 2 * HIDDEN
    assert need.parameters == VOCABULARY * HIDDEN + LAYERS * layer + HIDDEN
    assert 0 <= need.target.weights - 4 * need.parameters < 1000, "beside the weights, some frequencies"
    assert need.target.packed == 4 * VOCABULARY * HIDDEN, "the head alone is large enough to be packed"
    assert need.target.kv == 4 * LAYERS * 2 * (2 * 8) * round_up(PROMPT + NEW)
    monkeypatch.setitem(products.PRODUCTS.first_rows, f"float32 {HIDDEN} to {VOCABULARY}", None)
    assert rehearse("method=[]").target.packed == 0, "it is known to stay plain"


def test_half_the_bytes_in_16_bits() -> None:
    wide, half = rehearse("method=[]"), rehearse("method=[]", dtype="bfloat16")
    assert half.target.kv == wide.target.kv / 2 and half.copy == 4 * half.parameters and wide.copy == 0


def test_logits_of_all_prompt_rows_are_there_only_for_a_method_that_reads_them() -> None:
    need = rehearse("method=[pld,token_recycling,token_recycling_warm,eagle2]", "method.token_recycling.prompt_logits=true")
    assert need.target.working < ALL_LOGITS / 4
    working = {label: method.working for label, method in need.methods.items() if method}
    reads = working.pop("token_recycling")
    assert ALL_LOGITS < reads < 1.5 * ALL_LOGITS
    if not compose_run(["method=[token_recycling_warm]"]).method["token_recycling_warm"]["prompt_logits"]:
        assert working["token_recycling_warm"] < ALL_LOGITS / 2
    assert max(working["pld"], working["eagle2"]) < ALL_LOGITS / 4


def test_methods_bring_weights_and_keys_and_values_of_their_own() -> None:
    need = rehearse("method=[pld,medusa,eagle2,self_speculative]", "method.self_speculative.checkpoint=random")
    pld, medusa, eagle, skipping = need.methods.values()
    assert pld and medusa and eagle and skipping
    assert pld.lasting == skipping.lasting == 0
    assert medusa.weights == 4 * 4 * (VOCABULARY * HIDDEN + HIDDEN * HIDDEN + HIDDEN) and medusa.kv == 0
    assert eagle.weights > 4 * VOCABULARY * HIDDEN and eagle.kv > 0, "a copy of the embeddings, and one layer"
    assert need.total == need.target.lasting + medusa.lasting + eagle.lasting + max(
        [need.target.working, *(method.working for method in need.methods.values() if method)]
    )


def test_nothing_of_a_rehearsal_stays() -> None:
    """A tensor without contents in some cache would end in a run's forwards."""
    labels = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
    random = [f"method.{label}.checkpoint=random" for label in ("p_eagle", "dflash", "dspark")]
    need = rehearse(f"method=[{','.join(labels)}]", "target.draft=null", "~method.oracle", "~method.synthetic", *random)
    unknown = [label for label, method in need.methods.items() if method is None]
    assert unknown == [label for label in labels if label.startswith("sps")], "there is no draft model"
    del need
    gc.collect()
    assert not any(issubclass(type(thing), FakeTensor) for thing in gc.get_objects())


def test_what_depends_on_contents_is_not_guessed() -> None:
    need = rehearse("method=[oracle]")
    assert need.methods == {"oracle": None}
    assert "oracle: not known" in format_need(need, 10**9)[0]


def made_up(**changes: object) -> RunNeed:
    method = Need(weights=300, packed=0, kv=100, working=50)
    whole = RunNeed(Need(1000, 0, 900, 40), {"pld": Need(0, 0, 0, 40), "eagle": method}, 250, torch.float32, CPU, 60)
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_a_run_that_fits_is_not_refused() -> None:
    need = made_up()
    assert need.total == 1000 + 900 + 300 + 100 + 50
    check_need(need, 2350, 40)


@pytest.mark.parametrize(
    ("free", "tokens", "expected"),
    [
        (2250, 40, "sampling.max_new_tokens=40: expected at most about 30: "),  # 100 are missing, 10 per token
        (1945, 40, "method=[pld,eagle]: expected fewer, such as without eagle: "),
        (1500, 40, "target.dtype=float32: expected bfloat16: "),
        (500, 40, "target: expected a smaller model or another device: "),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(free: int, tokens: int, expected: str) -> None:
    with pytest.raises(InputError) as error:
        check_need(made_up(), free, tokens)
    assert str(error.value).startswith(expected) and "\n" not in str(error.value), error.value


def test_copies_for_the_baselines_check_share_the_room() -> None:
    """0.7 * 20 = 14 bytes per weight: 4 in float32 and 2 in bfloat16 fit; of 7 bytes only float32 does."""

    def choose(free: int) -> list[str]:
        return choose_dtypes(1_000_000, torch.float64, torch.device("meta"), free)

    assert choose(20_000_000) == []
    chosen = [choose_dtypes(1_000_000, torch.float32, CPU, free) for free in (1_000_000, 10_000_000)]
    assert chosen == [[], ["bfloat16"]]
    need = made_up().limit(10**6, check_baseline=True, plain=True)
    assert (
        need.dtypes == ("bfloat16",)
        and made_up().limit(10**6, False, True).dtypes == made_up().limit(10**6, True, False).dtypes == ()
    )


def test_a_run_says_what_it_needs_and_plan_shows_it(tiny: Tiny, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.running.execute.say_needs", say_needs)
    small = tiny.overrides("task=[qa]", "method=[pld,sps]", "limit=1", "repeats=1")
    status, out, err = cli("run", *small, "out=run")
    assert status == 0, err
    line = next(line for line in err.splitlines() if line.startswith("memory: "))
    assert " free: target " in line and "sps " in line
    assert any(line.startswith("time: at most about ") for line in err.splitlines())
    status, out, err = cli("plan", *small)
    assert status == 0 and "in a turn" in out and " at once, of " in out and "sps" in out, err


def test_what_cannot_fit_is_refused_before_anything_is_loaded(tiny: Tiny, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.running.execute.say_needs", say_needs)
    monkeypatch.setattr("specbench.running.announce.get_free_memory", lambda device: 100_000)
    monkeypatch.setattr("specbench.setup.objects.load_model", lambda *_, **__: pytest.fail("loaded"))
    for command in (["run", "out=run"], ["plan"]):
        status, _, err = cli(*command, *tiny.overrides("task=[qa]", "method=[pld]", "limit=1"))
        last = err.splitlines()[-1]
        assert status == 2 and last.startswith("specbench: ") and "where 0 MB are free" in last, err


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 1}),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 48}),
    ],
)
def test_a_token_takes_a_part_of_the_experts(kind: str, changes: dict[str, int]) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, **sizes, **changes)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    parameters, active = count_active(model)
    experts = 2 * 4 * 3 * 32 * 48  # layers, experts, products of H × 48
    assert parameters == sum(weight.numel() for weight in model.parameters())
    assert active == pytest.approx(parameters - experts * 3 / 4)


def test_a_dense_model_takes_all_of_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("measure_speed", "measure_products"):
        monkeypatch.setattr(f"specbench.running.minutes.{name}", lambda *_: 1e9)
    assert rehearse("method=[pld]").active == 1.0
    half = replace(made_up(), active=0.5)
    both = [sum(estimate_minutes(need, [60] * 9, 40, ["pld"], 1).by_method.values()) for need in (made_up(), half)]
    assert both[1] < both[0]
