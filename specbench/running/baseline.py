"""Is the run's autoregressive decoding the best baseline of its device? Timed beside other dtypes and transformers' generate."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.sampling import Sampling
from specbench.engine.base import Engine
from specbench.engine.hf import TransformersGenerate
from specbench.engine.native import Native
from specbench.machine.devices import DTYPES, get_free_memory
from specbench.models.load import estimate_memory
from specbench.models.target import Target
from specbench.records.trial import BASELINE
from specbench.setup.objects import load_target_model
from specbench.setup.settings import RunSettings
from tasks.question import Question

ROUNDS, TOKENS = 5, 24
ROOM = 0.7  # of the free memory may go to one copy
ALTERNATIVES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16", "float16"), "mps": ("bfloat16", "float16")}

Rates = list[dict[str, Any]]  # of run.json: engine, dtype, tokens_per_second of each round; the run's own way first


def list_other_dtypes(model: LanguageModel, dtype: str) -> list[str]:
    """What else targets are run in on the model's device, where its memory holds a copy of such weights beside the model."""
    weights, free = sum(p.numel() for p in model.model.parameters()), get_free_memory(model.device)
    there = [other for other in ALTERNATIVES.get(model.device.type, ()) if other != dtype]
    return [other for other in there if estimate_memory(weights, DTYPES[other], model.device) < ROOM * free]


def open_engines(models: Mapping[str, LanguageModel]) -> dict[tuple[str, str], Engine]:
    """Both engines on each of the models, which are named by dtype."""
    made: dict[tuple[str, str], Engine] = {}
    for dtype, model in models.items():
        plain = TransformersGenerate({BASELINE: {}}, draft=None, device="auto", weights="pretrained")
        for name, engine in {"native": Native(profile=False), "hf": plain}.items():
            engine.open(model, {BASELINE: Autoregressive()})
            made[name, dtype] = engine
    return made


def measure_rates(ways: Mapping[tuple[str, str], Engine], prompt: list[int]) -> Rates:
    """Plain decoding of TOKENS tokens by each way, (engine, dtype), in turn, ROUNDS times after a warm-up."""
    found: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for number in range(ROUNDS + 1):
        for way, engine in ways.items():
            out = engine.generate(BASELINE, prompt, Sampling(max_new_tokens=TOKENS))
            if number:
                found[way].append(len(out.output_ids) / (out.prefill_s + out.decode_s))
    return [
        {"engine": engine, "dtype": dtype, "tokens_per_second": [round(rate, 3) for rate in rates]}
        for (engine, dtype), rates in found.items()
    ]


def measure_baselines(settings: RunSettings, target: Target, questions: list[Question]) -> Rates:
    """Autoregressive decoding by the run's own way, and by the others that this device and its memory allow."""
    own, first = target.model.dtype_name, next(iter(settings.engine))
    models = {own: target.model}
    if settings.target.device_map is None:
        for other in list_other_dtypes(target.model, own):
            models[other] = load_target_model(replace(settings.target, dtype=other))
    shortest = min(map(target.render_first_prompt, questions), key=len)
    there = open_engines(models)
    return measure_rates({(first, own): there.pop((first, own)), **there}, shortest) if (first, own) in there else []
