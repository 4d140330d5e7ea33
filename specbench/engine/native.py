"""specbench's own engine: one decode loop for every method."""

from collections.abc import Mapping

import torch

from specbench.decoding.drafter import Drafter
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel, check_taps
from specbench.decoding.loop import Generation, capacity, generate
from specbench.decoding.sampling import Sampling
from specbench.drafters.yardstick import Yardstick
from specbench.engine.base import Engine


class Native(Engine):
    """profile: also time drafting and verifying, which costs device synchronisations in every step."""

    def __init__(self, profile: bool) -> None:
        self.profile = profile

    def open(self, target: LanguageModel, drafters: Mapping[str, Drafter]) -> None:
        self.target, self.drafters = target, drafters
        self._store: KVStore | None = None
        for drafter in drafters.values():
            drafter.bind(target)
            if drafter.taps:
                check_taps(drafter.taps, len(target.layers))

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
