"""Check the baseline: time autoregressive decoding in other dtypes by transformers' generate, and forwards by rows."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.sampling import Sampling
from specbench.diagnose.roofline import time_rows
from specbench.engine.base import Engine
from specbench.engine.hf import TransformersGenerate
from specbench.engine.native import Native
from specbench.errors import InputError, format_error
from specbench.machine.devices import DTYPES, get_free_memory
from specbench.models.load import estimate_memory
from specbench.models.target import Target
from specbench.records.trial import BASELINE
from specbench.setup.objects import load_target_model
from specbench.setup.settings import RunSettings
from tasks.question import Question

ROUNDS = 5
CONTEXT = 64  # tokens before a node that is timed
ROOM_TO_WIN = 0.8  # a rival that would be slower by more stays eager: compiling it takes longer than it is worth
TOKENS = 24
ROWS = (1, 2, 4, 8)  # autoregressive decoding's forward and small verifications
ROW_ROUNDS = 9  # so many that a disturbance does not meet the same rows in all of them
ROOM = 0.7  # share of the free memory that all copies of the weights together may take
STATIC = {"cache_implementation": "static"}  # of `generate`, which then compiles its forward on CUDA
ALTERNATIVES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16", "float16"), "mps": ("bfloat16", "float16")}

Say = Callable[[str, bool], None]  # shows what is running, and whether it is timed
Rates = list[dict[str, Any]]  # as in run.json: engine, dtype, tokens_per_second of each round; the run's own pair first


def list_other_dtypes(model: LanguageModel) -> list[str]:
    """Return the device's other usual dtypes, as far as its memory holds copies of the weights in them beside the model.

    Quantised layers have a type of their own, whatever that of the others: with them there is none.
    """
    if model.quantised is not None:
        return []
    weights = sum(p.numel() for p in model.model.parameters())
    return choose_dtypes(weights, model.dtype, model.device, get_free_memory(model.device))


def choose_dtypes(weights: int, dtype: torch.dtype, device: torch.device, free: int) -> list[str]:
    """Return the dtypes other than a model's in which copies of so many weights, all at once, take a share of `free` bytes."""
    room, chosen = ROOM * free, []
    for other in ALTERNATIVES.get(device.type, ()):
        if DTYPES[other] != dtype and (needed := estimate_memory(weights, DTYPES[other], device)) < room:
            chosen.append(other)
            room -= needed
    return chosen


def open_engines(models: Mapping[str, LanguageModel]) -> dict[tuple[str, str], Engine]:
    """Open every engine on each model. models: by dtype, the run's own first; the engines come by (engine, dtype)."""
    engines: dict[tuple[str, str], Engine] = {}
    own = next(iter(models.values()))
    for dtype, model in models.items():
        plain = TransformersGenerate({BASELINE: {}}, draft=None, device="auto", weights="pretrained")
        forward = own.runner.kind if model is own else "auto" if _may_win(model, own) else "eager"
        native = Native(profile=False, forward=forward)
        ways: dict[str, Engine] = {"native": native, "hf": plain}
        if model.device.type == "cuda":
            ways["hf static"] = TransformersGenerate({BASELINE: STATIC}, draft=None, device="auto", weights="pretrained")
        for name, engine in ways.items():
            engine.open(model, {BASELINE: Autoregressive()})
            engines[name, dtype] = engine
    return engines


def _may_win(rival: LanguageModel, own: LanguageModel) -> bool:
    """Whether the rival, once compiled or captured, could be the faster one, if that gains as much as in the run's own dtype."""
    kind = own.runner.kind
    if kind in ("eager", "static"):
        return False
    fast, rivals = (_time_node(model) for model in (own, rival))
    own.runner.kind = "eager"
    gain = _time_node(own) / fast
    own.runner.kind = kind
    return rivals / gain < fast / ROOM_TO_WIN


def _time_node(model: LanguageModel) -> float:
    """Return the milliseconds of a forward over one node."""
    return median(time_rows(model, [1], CONTEXT, ROUNDS)[1])


def measure_rates(
    engines: Mapping[tuple[str, str], Engine], prompt: list[int], say: Say = lambda what, timed: None
) -> tuple[Rates, dict[str, str]]:
    """Time plain decoding by each (engine, dtype) in turn, ROUNDS times after a warm-up.

    Also return which of them failed, by name, and why: a model's own code may not know `generate`. say: shows what is timed.
    """
    measured: dict[tuple[str, str], list[float]] = {pair: [] for pair in engines}
    failed = {}
    for number in range(ROUNDS + 1):
        for pair in list(measured):
            say(f"timing other baselines: {' '.join(pair)}, {f'round {number} of {ROUNDS}' if number else 'warming up'}", True)
            try:
                measured[pair].append(_measure_rate(engines[pair], prompt))
            except Exception as error:  # of any type
                failed[" ".join(pair)] = format_error(error)
                del measured[pair]
    rates = [
        {"engine": engine, "dtype": dtype, "tokens_per_second": [round(rate, 3) for rate in rounds[1:]]}
        for (engine, dtype), rounds in measured.items()
    ]
    return rates, failed


def _measure_rate(engine: Engine, prompt: list[int]) -> float:
    """Return the tokens per second of decoding TOKENS tokens."""
    out = engine.generate(BASELINE, prompt, Sampling(max_new_tokens=TOKENS))
    return len(out.output_ids) / (out.prefill_s + out.decode_s)


def measure_baselines(settings: RunSettings, target: Target, questions: list[Question], say: Say) -> dict[str, Any]:
    """Time autoregressive decoding on the run's own engine and dtype, and on the others that device and memory allow.

    Returns what run.json says: `baseline`, and which rivals failed and why, `baseline_failed`.
    """
    dtype = target.model.dtype_name
    models = {dtype: target.model}
    if settings.target.device_map is None:
        for other in list_other_dtypes(target.model):
            say(f"loading the target in {other}, for the comparison of baselines", False)
            with suppress(InputError):  # in that dtype the model cannot be run, so it is no rival
                models[other] = load_target_model(replace(settings.target, dtype=other))
    shortest = min(map(target.render_first_prompt, questions), key=len)
    say("preparing the forwards of other baselines", False)
    engines = open_engines(models)
    own = next(iter(settings.engine)), dtype
    if own not in engines:
        return {"baseline": []}
    rates, failed = measure_rates({own: engines.pop(own), **engines}, shortest, say)
    return {"baseline": [] if " ".join(own) in failed else rates, "baseline_failed": failed}


def measure_rows(target: Target, questions: list[Question]) -> list[dict[str, Any]]:
    """Return rows and milliseconds of forwards over 1, 2, 4 and 8 rows after the shortest prompt, round by round.

    More rows are more work: where they take less time, fewer rows run slower code.
    """
    context = min(len(target.render_first_prompt(question)) for question in questions)
    timed = time_rows(target.model, [rows for rows in ROWS if rows < target.model.context], context, ROW_ROUNDS)
    return [{"rows": rows, "milliseconds": [round(time, 4) for time in times]} for rows, times in timed.items()]
