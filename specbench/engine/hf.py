"""The peer: transformers' own `generate` on the same weights: plain, prompt lookup, an assistant model, DFlash, MTP, early exit.

It does not report steps, so a Generation has only tokens and total seconds.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from time import perf_counter
from typing import Any, Literal

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import CapacityError, Generation
from specbench.decoding.sampling import Sampling
from specbench.drafters.checkpoints import OF_TARGET
from specbench.engine.base import Engine
from specbench.engine.hf_partners import build_block_drafter
from specbench.errors import InputError, name_place, suggest_nearest
from specbench.machine.devices import synchronize
from specbench.models.load import load_draft
from specbench.models.token_map import TokenMap

LATER = {"speculation_type", "use_mtp"}  # settings that not every supported version of transformers has


class TransformersGenerate(Engine):
    """methods: label -> arguments of `generate`; `assistant` holds the draft model's generation config.

    speculation_type: `dflash` drafts with the method's own network. use_mtp: with the modules in the target's own files.
    """

    # it looks for texts only at the end of what it commits at once: a draft may run past one
    honours = frozenset({"sampling.min_new_tokens", "sampling.ignore_eos"})

    def __init__(
        self, methods: Mapping[str, Mapping[str, Any]], draft: Mapping[str, Any] | None, device: str, weights: str
    ) -> None:
        for label, settings in methods.items():
            _check_settings(settings, label)
        self.methods, self._draft = methods, (draft, device, weights)
        self._assistant: LanguageModel | None = None
        self._partners: dict[str, PreTrainedModel] = {}
        self._tokenizers: dict[str, dict[str, PreTrainedTokenizerBase]] = {}

    def open(self, target: LanguageModel, drafters: Mapping[str, Drafter], batch: int = 1) -> None:
        self.target = target
        # the checkpoint's own config may penalise repetition, even greedily
        target.model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        own = {label: self.methods[label] for label in drafters if self.has(label)}
        for label, settings in own.items():
            _check_version(settings, label)
            self._prepare(label, settings, drafters[label])
        if any("assistant" in settings for settings in own.values()):
            self._assistant = load_draft(*self._draft)

    def _prepare(self, label: str, settings: Mapping[str, Any], drafter: Drafter) -> None:
        """Prepare the arguments of `generate` for a method. Raises InputError for what transformers cannot run."""
        if settings.get("use_mtp") and getattr(drafter, "checkpoint", None) != OF_TARGET:
            raise InputError(
                f"engine.hf: method {label}: transformers reads the target's own modules; expected checkpoint={OF_TARGET}"
            )
        if isinstance(tokens := getattr(drafter, "tokens", None), TokenMap) and tokens.tokenizers:
            own, other = tokens.tokenizers
            if own.get_vocab() != other.get_vocab():  # else transformers refuses two of them
                self._tokenizers[label] = {"tokenizer": own, "assistant_tokenizer": other}
        if settings.get("speculation_type") == "dflash":
            if not hasattr(drafter, "network"):
                with name_place(f"method.{label}: "):
                    drafter.bind(self.target)
            if getattr(drafter, "draft_tokens", None) is not None:
                raise InputError(f"engine.hf: method {label}: transformers drafts whole blocks; expected draft_tokens=null")
            self._partners[label] = build_block_drafter(label, drafter.network, self.target)  # type: ignore[attr-defined]

    def has(self, label: str) -> bool:
        return label in self.methods

    def generate(self, label: str, prompt: list[int], sampling: Sampling) -> Generation:
        room = self.target.context - len(prompt)
        if room < 1:
            raise CapacityError(f"a prompt of {len(prompt)} tokens does not fit a context of {self.target.context}")
        ids = torch.tensor([prompt], device=self.target.device)
        most = min(sampling.max_new_tokens, room)
        settings = dict(self.methods[label])
        assistant = self._assistant if "assistant" in settings else None
        extra = self._configure_assistant(assistant, settings.pop("assistant", {}))
        if label in self._partners:
            extra = {"assistant_model": self._partners[label]}
        extra |= self._tokenizers.get(label, {})
        torch.manual_seed(sampling.seed)
        with self.target.use_original_attention() as model, assistant.use_original_attention() if assistant else nullcontext():
            start = self._now()
            out = model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                **_build_options(sampling, most),
                max_new_tokens=most,
                eos_token_id=list(sampling.stop_token_ids),
                pad_token_id=sampling.stop_token_ids[0] if sampling.stop_token_ids else 0,
                **settings,
                **extra,
            )[0, len(prompt) :].tolist()
            seconds = self._now() - start
        return _build_generation(out, sampling, seconds, room)

    def _configure_assistant(self, assistant: LanguageModel | None, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Reset the draft schedule at every turn, so that nothing leaks between questions."""
        if assistant is None:
            return {}
        assistant.model.generation_config = GenerationConfig(**settings)  # type: ignore[no-untyped-call]
        return {"assistant_model": assistant.model}

    def _now(self) -> float:
        synchronize(self.target.device)
        return perf_counter()


def _check_settings(settings: Mapping[str, Any], label: str) -> None:
    """Raise InputError for anything but settings of generation: `generate` also takes code of a repository (custom_generate)."""
    known = _list_settings() | LATER
    for place, given in ((label, {**settings, "assistant": None}), (f"{label}.assistant", settings.get("assistant") or {})):
        for key in given:
            if key not in known and (place, key) != (label, "assistant"):
                raise InputError(f"engine.hf.methods.{place}.{key}: no such setting{suggest_nearest(key, list(known))}")


def _check_version(settings: Mapping[str, Any], label: str) -> None:
    """Raise InputError for a setting that only later versions of transformers support."""
    for key in LATER & settings.keys() - _list_settings():
        raise InputError(f"engine.hf.methods.{label}.{key}: transformers {transformers.__version__} does not support it yet")


def _list_settings() -> set[str]:
    return set(GenerationConfig().to_dict())  # type: ignore[no-untyped-call]


def _build_options(sampling: Sampling, most: int) -> dict[str, Any]:
    """most: new tokens."""
    least = {"min_new_tokens": min(sampling.min_new_tokens, most)} if sampling.min_new_tokens and sampling.stop_token_ids else {}
    if sampling.temperature == 0:
        return {"do_sample": False, **least}
    temperature, top_p = float(sampling.temperature), float(sampling.top_p)
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": sampling.top_k, **least}


def _build_generation(out: list[int], sampling: Sampling, seconds: float, room: int) -> Generation:
    stops = [i for i, token in enumerate(out) if token in sampling.stop_token_ids]
    kept = out[: stops[0] + 1] if stops else out
    limit: Literal["length", "capacity"] = "length" if room >= sampling.max_new_tokens else "capacity"
    return Generation(output_ids=kept, finish_reason="eos" if stops else limit, decode_s=seconds, sees_steps=False)
