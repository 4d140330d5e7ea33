"""Rehearse a run's longest turn, without memory: the bytes that its target and each of its methods need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.loop import capacity
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import GREEDY
from specbench.drafters.keeping import KeepingDrafter
from specbench.drafters.network_drafter import NetworkDrafter
from specbench.drafters.yardstick import Yardstick
from specbench.machine.rehearsal import Rehearsal
from specbench.models.load import load_draft
from specbench.models.outline import outline_draft, outline_model
from specbench.models.packed import has_packed_products
from specbench.models.products import count_packed
from specbench.models.self_test import EXPERTS
from specbench.records.trial import BASELINE
from specbench.running.needs import Need, RunNeed
from specbench.setup.instantiate import TARGET, instantiate, locate_class
from specbench.setup.objects import list_model_arguments
from specbench.setup.settings import Node, RunSettings

OUTLINE = f"{outline_draft.__module__}.{outline_draft.__name__}"


def rehearse_run(settings: RunSettings, prompt: int) -> RunNeed:
    """Return the need of a run whose longest prompt has so many tokens. Raises whatever building its target does."""
    with Rehearsal() as rehearsal:
        model = outline_model(**list_model_arguments(settings.target))
        chosen = settings.sampling
        sampling = Sampling(chosen.temperature, chosen.top_p, chosen.top_k, chosen.max_new_tokens)
        return rehearse_methods(rehearsal, model, settings.method, sampling, prompt, settings.batch)


def rehearse_methods(
    rehearsal: Rehearsal, target: LanguageModel, nodes: Mapping[str, Node], sampling: Sampling, prompt: int, batch: int = 1
) -> RunNeed:
    """Return the need of a target's outline and of methods, by label, for `batch` prompts of so many tokens side by side."""
    prompt = min(prompt, target.context - 1)
    drafters = {label: _bind(label, node, target) for label, node in nodes.items() if label != BASELINE}
    plain = Autoregressive()
    plain.bind(target)
    bound = [plain, *filter(None, drafters.values())]
    entries = max(capacity(target, drafter, prompt, sampling) for drafter in bound)
    turns = _Turns(rehearsal, target, target.create_store(entries, batch), sampling, prompt)
    verifying = turns.verify(max(drafter.nodes for drafter in bound))
    own = turns.rehearse(plain)
    store, model = turns.store, target.model
    need = Need(_count_bytes(model), _count_copies(model, target.device), store.bytes, max(own.working, verifying))
    needs = {label: turns.try_out(drafter) if drafter else None for label, drafter in drafters.items()}
    parameters, active = count_active(model)
    return RunNeed(need, needs, parameters, target.dtype, target.device, prompt, active / parameters)


def _bind(label: str, node: Node, target: LanguageModel) -> Drafter | None:
    """Return a method bound to a target's outline; None if it cannot be, as it reads what has no contents here."""
    try:
        drafter = instantiate(_outline_drafts(node), Drafter, f"method.{label}")
        drafter.bind(target)
    except Exception:  # of any type; what is wrong with a method is said where it is bound to the target
        return None
    return drafter


def _outline_drafts(value: Any) -> Any:
    """Return a node whose language models are outlines."""
    if isinstance(value, Mapping):
        parts = {key: _outline_drafts(inner) for key, inner in value.items()}
        return {**parts, TARGET: OUTLINE} if TARGET in value and locate_class(value) is load_draft else parts
    return [_outline_drafts(inner) for inner in value] if isinstance(value, list) else value


class _Turns:
    """Rehearses turns of one prompt length in one store: prefill, first draft, verification.

    Methods that read the same of the prefill share it.
    """

    def __init__(self, rehearsal: Rehearsal, target: LanguageModel, store: KVStore, sampling: Sampling, prompt: int) -> None:
        self.rehearsal, self.target, self.store = rehearsal, target, store
        self.sampling, self.prompt = sampling, prompt
        self._prefills: dict[tuple[tuple[int, ...], bool], tuple[list[TargetOutput], int, int]] = {}

    def try_out(self, drafter: Drafter) -> Need | None:
        """Return a method's need; None where what it does depends on contents, or on the whole answer."""
        if isinstance(drafter, Yardstick):
            return None
        try:
            needs = [self.rehearse(part) for part in drafter.iter_family()]
        except Exception:  # of any type
            return None
        weights, packed, kv = (sum(sizes) for sizes in zip(*((n.weights, n.packed, n.kv) for n in needs), strict=True))
        return Need(weights, packed, kv, max(need.working for need in needs))

    @torch.inference_mode()
    def rehearse(self, drafter: Drafter) -> Need:
        """Return the need of a drafter without its parts."""
        batch = self.store.batch
        drafter.prepare([self._draw(self.prompt)] * batch, [self.sampling] * batch, self.store.capacity)
        outs, read, working = self._prefill(drafter.taps, drafter.prompt_logits)
        before = self.rehearsal.restart()
        if drafter.offers:
            contexts = [SequenceContext(self.store.view_row(row), drafter.verifier(self.sampling)) for row in range(batch)]
            states = drafter.begin([[1] * (self.prompt + 1)] * batch, outs, contexts)
            drafter.propose(states, [max(1, self.sampling.max_new_tokens - 2)] * batch)
        own, kv = _find_module(drafter, self.target), _count_stores(drafter)
        drafting = read + self.rehearsal.peak - before - kv
        return Need(_count_bytes(own), _count_copies(own, self.target.device), kv, max(working, drafting))

    @torch.inference_mode()
    def verify(self, nodes: int) -> int:
        """Return the bytes that a forward over so many nodes takes."""
        self._prefill((), False)
        before = self.rehearsal.restart()
        rows = min(max(nodes, 1), self.store.capacity - self.prompt)
        self.target.forward(self.store, [DraftTree.chain(self._draw(rows))] * self.store.batch)
        return self.rehearsal.peak - before

    def _prefill(self, taps: tuple[int, ...], all_logits: bool) -> tuple[list[TargetOutput], int, int]:
        """Return the output of the prompt's forward, its bytes, and what the forward takes."""
        key = taps, all_logits
        if key not in self._prefills:
            self.store.clear()
            ids, held = self._draw(self.prompt), self.store.bytes
            self.target.tap(taps)
            before = self.rehearsal.restart()
            outs = self.target.prefill(self.store, [ids] * self.store.batch, all_logits)
            GREEDY.choose_first(outs[0].logits[-1])
            filled = self.store.bytes - held
            working = self.rehearsal.peak - before - filled
            self._prefills[key] = outs, self.rehearsal.held - before - filled, working
        self.store.lengths = [self.prompt] * self.store.batch
        return self._prefills[key]

    def _draw(self, tokens: int) -> Tensor:
        return torch.ones(tokens, dtype=torch.long, device=self.target.device)


def _find_module(drafter: Drafter, target: LanguageModel) -> nn.Module | None:
    """Return the network or the language model that a drafter brings, if there is one."""
    if isinstance(drafter, NetworkDrafter):
        network: nn.Module = drafter.network
        return network
    model = getattr(drafter, "model", None)
    shared = isinstance(model, LanguageModel) and model.embedding is target.embedding  # made of the target's own layers
    return model.model if isinstance(model, LanguageModel) and not shared else None


def count_active(model: PreTrainedModel) -> tuple[int, float]:
    """Return a model's parameters, and how many of them a token takes: of its experts, those that it is sent to."""
    config = model.config.get_text_config()
    experts = next((count for name in EXPERTS if (count := getattr(config, name, None))), 0)
    share = getattr(config, "num_experts_per_tok", experts) / experts if experts else 1.0
    sizes = [(weight.numel(), share if ".experts." in name else 1.0) for name, weight in model.named_parameters()]
    return sum(size for size, _ in sizes), sum(size * part for size, part in sizes)


def _count_bytes(module: nn.Module | None) -> int:
    return sum(weight.nbytes for weight in {*module.parameters(), *module.buffers()}) if module else 0


def _count_copies(module: nn.Module | None, device: torch.device) -> int:
    """Return the bytes of a module's packed copies."""
    if module is None or not getattr(module, "packs", True):
        return 0
    return count_packed(module) if has_packed_products(device, next(module.parameters()).dtype) else 0


def _count_stores(drafter: Drafter) -> int:
    """Return the bytes of a drafter's own keys and values."""
    return drafter.count_bytes() if isinstance(drafter, KeepingDrafter) else 0
