"""The self-test of a loaded model: our forward against transformers' own, on random tokens.

Theirs is the model's own attention over whole sequences, without any cache; ours goes through the KV store as decoding one
sequence does: a prompt, a chain, a branched tree, commits of both, single tokens. Batches and taps are not tested. Both round, so
they differ. How much rounding explains is measured on transformers alone, in forwards of different shapes; a model that differs
by more is refused.

In 16 bits rounding hides what a part of the model contributes, so the test is made on a float32 copy first, if one fits in
memory. The model as it will run is then compared with the copy's logits, and so is transformers in 16 bits.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.tree import DraftTree
from specbench.errors import InputError, format_error, is_out_of_memory, name_place
from specbench.machine.devices import get_free_memory
from specbench.models.first_difference import describe_first_difference
from specbench.models.logits import check_spread, is_finite, measure_distance

PROMPT = 24  # random tokens
CHAIN, CHAIN_KEPT = 6, 4
PARENTS = (-1, 0, 0, 1, 2, 2, 4, 5, 3)
LEAVES = ((0, 1, 3, 8), (0, 2, 4, 6), (0, 2, 5, 7))  # paths of the tree, equally long
TREE_KEPT = LEAVES[-1]  # leaves a gap, so that the commit moves entries
SINGLE = 4
AFTER_PROMPT = CHAIN_KEPT + len(TREE_KEPT) + SINGLE
SIZES = (1, 12)  # tokens per forward in which transformers' rounding is measured
MARGIN = 3  # a difference of up to this many times the measured one is still rounding
LEAST = {torch.float64: 1e-5, torch.float32: 1e-4}  # floor of the bound; transformers' norms are float32
MOST = {torch.float64: 1e-2, torch.float32: 1e-2}  # a larger difference is not rounding
SIXTEEN_BITS = (torch.bfloat16, torch.float16)
LEAST_IN_16_BITS, MOST_IN_16_BITS = 0.1, 0.3
LEAST_FROM_FLOAT32 = 0.02  # of a model in 16 bits, compared with its float32 copy
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOLERATED = 4  # with experts, one row in this many may differ by more: of two equally good experts the other may be chosen
SECONDS = 30.0  # most that a test beyond a window may take, by estimate
SCORE_BYTES = 8  # of a pair of tokens and a head in a forward of transformers
FORWARDS = 4  # whole ones in a test beyond a window


@dataclass(frozen=True)
class Script:
    """Random tokens, and in which step each of them is fed."""

    prompt: list[int]
    chain: list[int]
    tree: list[int]
    single: list[int]

    @property
    def before_tree(self) -> list[int]:
        return self.prompt + self.chain[:CHAIN_KEPT]

    @property
    def committed(self) -> list[int]:
        return self.before_tree + [self.tree[node] for node in TREE_KEPT] + self.single


Logits = dict[str, Tensor]  # by step: (n, V) float32


@dataclass(frozen=True)
class Float32Copy:
    """The result of testing a float32 copy, its logits, and how far transformers in 16 bits is from them."""

    figures: dict[str, Any]
    logits: Logits
    rounding: float


@torch.inference_mode()
def check_float32_copy(model: LanguageModel) -> Float32Copy | None:
    """Test a float32 copy of a model in 16 bits on one device; None if there is none or it does not fit in memory.

    A quantised checkpoint has none: some libraries keep whole numbers in buffers, which no conversion makes into weights.
    """
    weights = list(model.model.parameters())
    needed = sum(weight.numel() for weight in weights) * torch.float32.itemsize
    plain = all(weight.dtype in SIXTEEN_BITS for weight in weights) and not getattr(model.model, "is_quantized", False)
    if not plain or needed > get_free_memory(model.device) / 2 or model.context <= AFTER_PROMPT:
        return None
    started = time.perf_counter()
    with model.use_original_attention() as original:
        copied = LanguageModel(_copy_as_float32(original, weights))
    figures, script = check_forward(copied), _draw_script(model, _measure_prompt(model))
    with _name_model(model):
        expected, own = _run_theirs(copied, script), _run_theirs(model, script)
    rounding = max(_find_differences(model, own, expected).values())
    return Float32Copy(figures | {"seconds": round(time.perf_counter() - started, 3)}, expected, rounding)


def _copy_as_float32(model: nn.Module, weights: list[nn.Parameter]) -> Any:
    """Return a copy whose weights are created in float32: converting a copy in 16 bits would take half as much memory again."""
    return copy.deepcopy(model, {id(weight): nn.Parameter(weight.float(), False) for weight in weights}).float()


@torch.inference_mode()
def check_forward(model: LanguageModel, float32: Float32Copy | None = None) -> dict[str, Any]:
    """Return what run.json says about the test. float32: what a float32 copy of the model has computed, to compare with.

    Raises InputError if our forward does not compute what transformers' own does.
    """
    if model.context <= AFTER_PROMPT:
        return {"tokens": 0}
    started = time.perf_counter()
    with _name_model(model):
        figures = _check(model, float32)
    return figures | {"seconds": round(time.perf_counter() - started, 3)}


@contextmanager
def _name_model(model: LanguageModel) -> Iterator[None]:
    """Turn whatever a model's own code raises into an InputError that names the model."""
    with name_place(f"{model.config.model_type}: cannot be run: "):
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # of any type
            if is_out_of_memory(error):
                raise torch.OutOfMemoryError(str(error)) from None
            raise InputError(format_error(error)) from None


def _check(model: LanguageModel, float32: Float32Copy | None) -> dict[str, Any]:
    _check_attention(model)
    script = _draw_script(model, _measure_prompt(model))
    started = time.perf_counter()
    _read_logits(model, [script.committed], 1)
    pace = (time.perf_counter() - started) / len(script.committed)  # seconds per token of a forward
    if float32 is None:
        figures = _compare(model, script, LEAST.get(model.dtype, LEAST_IN_16_BITS))
    else:
        figures = _judge(model, script, float32.logits, float32.rounding, LEAST_FROM_FLOAT32)
    beyond = {limit: _compare_beyond(model, limit, pace, figures["bound"]) for limit in _list_limits(model)}
    return figures | {"beyond": beyond}


def _check_attention(model: LanguageModel) -> None:
    try:
        model.check_attention()
    except Exception as error:  # of any type
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        raise InputError(f"it cannot attend through transformers' interface: {format_error(error)}") from None


def _measure_prompt(model: LanguageModel) -> int:
    return min(PROMPT, model.context - AFTER_PROMPT)


def _draw_script(model: LanguageModel, prompt: int) -> Script:
    sizes = [prompt, CHAIN, len(PARENTS), SINGLE]
    ids = torch.randint(model.vocabulary, (sum(sizes),), generator=torch.Generator().manual_seed(prompt))
    return Script(*(part.tolist() for part in torch.split(ids, sizes)))


def _list_limits(model: LanguageModel) -> list[int]:
    """Return the windows and chunks of the model's config that its context exceeds and a short test does not."""
    limits = {vars(model.config).get(name) for name in WINDOWS}
    return sorted(limit for limit in limits if type(limit) is int and PROMPT < limit < model.context)


def _compare_beyond(model: LanguageModel, limit: int, pace: float, least: float) -> dict[str, Any]:
    """Compare after a prompt longer than a window or chunk, if time and memory allow; only committed tokens' logits."""
    prompt = min(limit + limit // 8 + 8, model.context - AFTER_PROMPT)
    heads = getattr(model.config, "num_attention_heads", 1)
    if pace * prompt * FORWARDS > SECONDS or prompt**2 * heads * SCORE_BYTES > get_free_memory(model.device) / 2:
        return {"tokens": 0}
    return _compare(model, _draw_script(model, prompt), least, committed_only=True)


def _compare(model: LanguageModel, script: Script, least: float, committed_only: bool = False) -> dict[str, Any]:
    """Compare with transformers' own forward in the same dtype."""
    expected = _run_theirs(model, script, committed_only)
    whole = torch.cat(list(expected.values()))[-AFTER_PROMPT:] if committed_only else None
    rounding = _measure_rounding(model, script, whole)
    if not rounding <= max(MOST.get(model.dtype, MOST_IN_16_BITS), least):
        raise InputError(f"transformers' own cache changes its logits by {rounding:.2g} of their spread: more than rounding")
    return _judge(model, script, expected, rounding, least, committed_only)


def _judge(
    model: LanguageModel, script: Script, expected: Logits, rounding: float, least: float, committed_only: bool = False
) -> dict[str, Any]:
    """Return the figures of a comparison. Raises InputError where the difference is more than rounding."""
    bound = max(MARGIN * rounding, least)
    found = _run_ours(model, script, committed_only)
    differences = _find_differences(model, found, expected)
    wrong = next((step for step, difference in differences.items() if not difference <= bound), None)
    if wrong is not None:
        off = f"in {wrong} its logits differ from transformers' by {differences[wrong]:.2g} of their spread"
        where = describe_first_difference(model, script.prompt, script.committed[len(script.prompt) :], bound)
        raise InputError(f"{off}; rounding explains {bound:.2g}{where}")
    return {"tokens": len(script.committed), "rounding": rounding, "bound": bound, "differences": differences}


def _read_logits(model: LanguageModel, sequences: list[list[int]], count: int) -> Tensor:
    """(B, count, V) float32: transformers' own logits of each sequence's last tokens, without any cache."""
    ids = torch.tensor(sequences, device=model.device)
    with model.use_original_attention() as plain:
        logits: Tensor = plain(input_ids=ids, use_cache=False, logits_to_keep=count).logits
    return logits.float()


def _run_theirs(model: LanguageModel, script: Script, committed_only: bool = False) -> Logits:
    rows = _read_logits(model, [script.committed], AFTER_PROMPT + (1 if committed_only else len(script.prompt)))[0]
    sizes = [len(rows) - AFTER_PROMPT, CHAIN_KEPT, len(TREE_KEPT), SINGLE]
    logits = dict(zip(("the prompt", "a chain", "a branched tree", "single tokens"), torch.split(rows, sizes), strict=True))
    if not committed_only:
        logits["the prompt"] = torch.cat([logits["the prompt"], logits["the prompt"][-1:]])
        logits["a chain"] = _read_logits(model, [script.prompt + script.chain], CHAIN)[0]
        logits["a branched tree"] = _read_tree(model, script)
    if not all(map(is_finite, logits.values())):
        raise InputError("its logits are not finite numbers")
    check_spread(torch.cat(list(logits.values())))
    return logits


def _read_tree(model: LanguageModel, script: Script) -> Tensor:
    """(N, V): each node's logits after its own path."""
    sequences = [script.before_tree + [script.tree[node] for node in path] for path in LEAVES]
    paths = _read_logits(model, sequences, len(LEAVES[0]))
    return torch.stack(
        [next(paths[i, path.index(node)] for i, path in enumerate(LEAVES) if node in path) for node in range(len(PARENTS))]
    )


def _run_ours(model: LanguageModel, script: Script, committed_only: bool) -> Logits:
    store = model.create_store(len(script.prompt) + CHAIN + len(PARENTS) + SINGLE)

    def feed(tree: DraftTree, kept: tuple[int, ...]) -> Tensor:
        logits = model.forward(store, [tree])[0].logits.float()
        store.keep(0, kept)
        return logits

    def to_tensor(tokens: list[int]) -> Tensor:
        return torch.tensor(tokens, device=model.device)

    model.tap(())
    prompt = _feed_prompt(model, store, to_tensor(script.prompt), committed_only)
    chain = feed(DraftTree.chain(to_tensor(script.chain)), tuple(range(CHAIN_KEPT)))
    tree = feed(DraftTree(to_tensor(script.tree), to_tensor(list(PARENTS))), TREE_KEPT)
    single = torch.cat([feed(DraftTree.chain(to_tensor([token])), (0,)) for token in script.single])
    if committed_only:
        chain, tree = chain[:CHAIN_KEPT], tree[list(TREE_KEPT)]
    return {"the prompt": prompt, "a chain": chain, "a branched tree": tree, "single tokens": single}


def _feed_prompt(model: LanguageModel, store: KVStore, prompt: Tensor, committed_only: bool) -> Tensor:
    """(T + 1, V): every token's logits, then the last one's as decoding reads them; (1, V), only these, if `committed_only`."""
    last = model.prefill(store, [prompt])[0].logits.float()
    if committed_only:
        return last
    every = model.prefill(model.create_store(len(prompt)), [prompt], all_logits=True)[0].logits.float()
    return torch.cat([every, last])


def _measure_rounding(model: LanguageModel, script: Script, whole: Tensor | None) -> float:
    """Return by how much transformers' logits change when the tokens after the prompt are fed through its cache."""
    ids = torch.tensor([script.committed], device=model.device)
    expected = _read_logits(model, [script.committed], AFTER_PROMPT)[0] if whole is None else whole
    return max(_summarize(model.config, _read_cached(model, ids, size), expected) for size in SIZES)


def _read_cached(model: LanguageModel, ids: Tensor, size: int) -> Tensor:
    """(AFTER_PROMPT, V): transformers' own logits, the tokens after the prompt fed `size` at a time."""
    start = ids.shape[1] - AFTER_PROMPT
    with model.use_original_attention() as plain:
        out = plain(input_ids=ids[:, :start], use_cache=True, logits_to_keep=1)
        logits = []
        for block in torch.split(ids[:, start:], size, dim=1):
            out = plain(input_ids=block, use_cache=True, past_key_values=out.past_key_values)
            logits.append(out.logits[0])
    return torch.cat(logits).float()


def _find_differences(model: LanguageModel, found: Logits, expected: Logits) -> dict[str, float]:
    return {step: _summarize(model.config, found[step], expected[step]) for step in expected}


def _summarize(config: PretrainedConfig, found: Tensor, expected: Tensor) -> float:
    """Return the largest distance between rows of logits (n, V); infinite where a found row is not of finite numbers.

    With experts, one row in TOLERATED is left out.
    """
    if not is_finite(found):
        return float("inf")
    ordered = measure_distance(found, expected).sort().values
    left_out = len(ordered) // TOLERATED if any(map(vars(config).get, EXPERTS)) else 0
    return float(ordered[len(ordered) - 1 - left_out])
