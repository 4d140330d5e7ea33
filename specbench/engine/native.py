"""specbench's own engine: one decode loop for every method."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from specbench.decoding.drafter import Drafter
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel, check_taps
from specbench.decoding.loop import Generation, capacity, generate_group
from specbench.decoding.runner import Kind
from specbench.decoding.sampling import Sampling
from specbench.drafters.compiled_layers import choose_layers
from specbench.drafters.network_drafter import LayerDrafter
from specbench.drafters.yardstick import Yardstick
from specbench.engine.base import Engine
from specbench.errors import name_place
from specbench.models.forwards import SETTING, Choice, Shape, Wanted, choose_forward


class Native(Engine):
    """profile: also time drafting and verifying, which costs device synchronisations in every step.

    forward: how the models' forwards run (`auto`: compiled where that is faster), see models/forwards.py.
    """

    batches = True
    honours = frozenset({"sampling.min_new_tokens", "sampling.ignore_eos", "sampling.stop"})

    def __init__(self, profile: bool, forward: Wanted = "auto") -> None:
        self.profile, self.forward = profile, forward
        self._known: dict[str, Kind] = {}
        self._choices: dict[str, Choice] = {}

    def recall(self, forwards: Mapping[str, Mapping[str, Any]]) -> None:
        self._known = {part: forward["kind"] for part, forward in forwards.items()}

    def describe_forwards(self) -> dict[str, dict[str, Any]]:
        return {part: asdict(choice) for part, choice in self._choices.items()}

    def open(self, target: LanguageModel, drafters: Mapping[str, Drafter], batch: int = 1) -> None:
        torch.backends.cuda.enable_cudnn_sdp(False)  # planning again for every KV length takes longer than a step
        self.target, self.drafters = target, drafters
        self._store: KVStore | None = None
        for label, drafter in drafters.items():
            with name_place(f"method.{label}: "):
                drafter.bind(target)
            if drafter.taps:
                check_taps(drafter.taps, len(target.layers))
        self._choose_forwards(target, drafters, batch)

    def _choose_forwards(self, target: LanguageModel, drafters: Mapping[str, Drafter], batch: int) -> None:
        """Choose the target's forwards, then the drafters' to match: host code must not make a method slower."""
        self._choices.clear()
        shapes = [Shape(), *(Shape(drafter.taps, several=True) for drafter in drafters.values() if drafter.offers)]
        self._choose_model("target", target, _add_batch(shapes, batch), "the target")
        target.tap(())  # its hooks would become part of graphs over its own layers
        for label, drafter in drafters.items():
            for number, model in enumerate(drafter.list_models(), start=1):
                loaded = bool(model.self_test)  # or made of the target's own layers, to be fed token by token
                shapes = _add_batch([Shape(), Shape(several=True)], batch) if loaded else [Shape()]
                self._choose_model(_name(label, number), model, shapes, f"{label}'s model")
            layered = (part for part in drafter.iter_family() if isinstance(part, LayerDrafter))
            for number, part in enumerate(layered, start=1):
                self._choose_layers(_name(f"{label}'s layers", number), part, batch)

    def _choose_model(self, name: str, model: LanguageModel, shapes: list[Shape], whose: str) -> None:
        compiling = partial(self.say, f"preparing the forward of {whose}")
        draft = name != "target"
        self._choices[name] = choose_forward(model, shapes, *self._get_wanted(name), compiling=compiling, small=draft)

    def _choose_layers(self, name: str, part: LayerDrafter, batch: int) -> None:
        if choice := choose_layers(part, batch, *self._get_wanted(name)):
            self._choices[name] = choice

    def _get_wanted(self, name: str) -> tuple[Wanted, str]:
        """Return the kind of a part's forwards and, for a message, who asked for it."""
        if name in self._known:
            return self._known[name], f"the run began with {self._known[name]} forwards; choose another out"
        target = self._choices.get("target")
        wanted = target.kind if target and target.kind in ("eager", "static") else self.forward
        return wanted, f"{SETTING}={wanted}"

    def has(self, label: str) -> bool:
        return True

    def reserve(self, prompt_tokens: int, sampling: Sampling, batch: int = 1) -> None:
        needed = max(capacity(self.target, drafter, prompt_tokens, sampling) for drafter in self.drafters.values())
        if self._store is None or self._store.batch < batch or self._store.capacity < needed:
            self._store = self.target.create_store(needed, max(batch, self._store.batch if self._store else 1))

    def generate(self, label: str, prompt: list[int], sampling: Sampling) -> Generation:
        (out,) = self.generate_group(label, [prompt], [sampling])
        if out.error is not None:
            raise out.error
        return out

    def generate_group(self, label: str, prompts: list[list[int]], samplings: list[Sampling]) -> list[Generation]:
        self.reserve(max(map(len, prompts)), samplings[0], len(prompts))
        drafter = self.drafters[label]
        ids, before = [torch.tensor(prompt, device=self.target.device) for prompt in prompts], self._sum_recording(drafter)
        outs = generate_group(self.target, drafter, ids, samplings, self._store, self.profile)
        recording = self._sum_recording(drafter) - before
        for out in outs:
            out.decode_s -= recording
        return outs

    def _sum_recording(self, drafter: Drafter) -> float:
        """Return the seconds spent so far on recording a method's forwards as graphs."""
        layers = sum(part.runner.captures.seconds for part in drafter.iter_family() if isinstance(part, LayerDrafter))
        return layers + sum(model.runner.captures.seconds for model in (self.target, *drafter.list_models()))

    def reset(self, label: str) -> None:
        self.drafters[label].reset()

    def is_warm(self, label: str) -> bool:
        return self.drafters[label].warm

    def get_kind(self, label: str) -> str:
        knows_answer = any(isinstance(part, Yardstick) for part in self.drafters[label].iter_family())
        return "synthetic" if knows_answer else "measured"


def _add_batch(shapes: list[Shape], batch: int) -> list[Shape]:
    """Return the shapes for one sequence, then those for `batch` sequences."""
    return [*shapes, *(replace(shape, batch=batch) for shape in shapes if batch > 1)]


def _name(part: str, number: int) -> str:
    return part if number == 1 else f"{part} {number}"
