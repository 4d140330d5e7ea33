"""specbench's own engine: one decode loop for every method."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from specbench.decoding.drafter import Drafter
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel, check_taps
from specbench.decoding.loop import Generation, capacity, generate
from specbench.decoding.runner import Kind
from specbench.decoding.sampling import Sampling
from specbench.drafters.compiled_layers import compile_layers
from specbench.drafters.network_drafter import LayerDrafter
from specbench.drafters.yardstick import Yardstick
from specbench.engine.base import Engine
from specbench.models.forwards import Choice, Shape, Wanted, choose_forward


class Native(Engine):
    """profile: also time drafting and verifying, which costs device synchronisations in every step.

    forward: how the models' forwards run (`auto`: compiled where that is faster), see models/forwards.py.
    """

    def __init__(self, profile: bool, forward: Wanted = "auto") -> None:
        self.profile, self.forward = profile, forward
        self._known: dict[str, Kind] = {}
        self._choices: dict[str, Choice] = {}

    def recall(self, forwards: Mapping[str, Mapping[str, Any]]) -> None:
        self._known = {part: forward["kind"] for part, forward in forwards.items()}

    def describe_forwards(self) -> dict[str, dict[str, Any]]:
        return {part: asdict(choice) for part, choice in self._choices.items()}

    def open(self, target: LanguageModel, drafters: Mapping[str, Drafter]) -> None:
        self.target, self.drafters = target, drafters
        self._store: KVStore | None = None
        for drafter in drafters.values():
            drafter.bind(target)
            if drafter.taps:
                check_taps(drafter.taps, len(target.layers))
        self._choose_forwards(target, drafters)

    def _choose_forwards(self, target: LanguageModel, drafters: Mapping[str, Drafter]) -> None:
        shapes = [Shape(), *(Shape(drafter.taps, several=True) for drafter in drafters.values() if drafter.offers)]
        compiling = partial(self.say, "compiling the target's forward")
        wanted = self._known.get("target", self.forward)
        chosen = self._choices["target"] = choose_forward(target, shapes, wanted, compiling)
        target.tap(())  # its hooks would become part of graphs over its own layers
        for label, drafter in drafters.items():
            for model in drafter.list_models():
                loaded = bool(model.self_test)  # or made of the target's own layers, to be fed token by token
                shapes = [Shape(), Shape(several=True)] if loaded else [Shape()]
                wanted = self._known.get(label, self.forward if chosen.kind == "compiled" else chosen.kind)
                compiling = partial(self.say, f"compiling the forward of {label}'s model")
                self._choices[label] = choose_forward(model, shapes, wanted, compiling, small=True)
            self._run_layers(label, drafter, chosen.kind)

    def _run_layers(self, label: str, drafter: Drafter, kind: Kind) -> None:
        """Run the layers of a drafter's own networks as the target runs: a method is not to be slower by its host code."""
        for part in drafter.iter_family():
            if isinstance(part, LayerDrafter):
                part.runner.kind = kind
                if kind == "compiled" and (choice := compile_layers(part)):
                    self._choices[label] = choice

    def has(self, label: str) -> bool:
        return True

    def reserve(self, prompt_tokens: int, sampling: Sampling) -> None:
        needed = max(capacity(self.target, drafter, prompt_tokens, sampling) for drafter in self.drafters.values())
        if self._store is None or self._store.capacity < needed:
            self._store = self.target.create_store(needed)

    def generate(self, label: str, prompt: list[int], sampling: Sampling) -> Generation:
        self.reserve(len(prompt), sampling)
        drafter = self.drafters[label]
        ids = torch.tensor(prompt, device=self.target.device)
        return generate(self.target, drafter, [ids], sampling, self._store, self.profile)[0]

    def reset(self, label: str) -> None:
        self.drafters[label].reset()

    def is_warm(self, label: str) -> bool:
        return self.drafters[label].warm

    def get_kind(self, label: str) -> str:
        knows_answer = any(isinstance(part, Yardstick) for part in self.drafters[label].iter_family())
        return "synthetic" if knows_answer else "measured"
