"""The self-test of a loaded model: our forward against transformers' own, on random tokens, in every way that decoding uses it.

Theirs is the model's own attention over whole sequences, without any cache; ours goes through the KV store: a prompt, a chain, a
branched tree, commits of both, single tokens. Both round, so they differ. How much rounding explains is measured on transformers
alone, in forwards of other shapes; a model that differs by more is refused.

In 16 bits rounding hides what a part of the model contributes, so the test is made on a float32 copy first, where memory holds
one; then on the model as it will run.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specbench.decoding.language_model import LanguageModel
from specbench.decoding.tree import DraftTree
from specbench.errors import InputError, format_error, is_out_of_memory
from specbench.machine.devices import get_free_memory
from specbench.models.first_difference import describe_first_difference

PROMPT = 24  # random tokens
CHAIN, CHAIN_KEPT = 6, 4
PARENTS = (-1, 0, 0, 1, 2, 2, 4, 5, 3)
LEAVES = ((0, 1, 3, 8), (0, 2, 4, 6), (0, 2, 5, 7))  # paths of the tree, equally long
TREE_KEPT = LEAVES[-1]  # leaves a gap, so that the commit moves entries
SINGLE = 4
AFTER_PROMPT = CHAIN_KEPT + len(TREE_KEPT) + SINGLE
SIZES = (1, 12)  # tokens per forward in which transformers' rounding is measured
MARGIN = 3  # a difference of so many times the measured one is still rounding
LEAST = {torch.float64: 1e-5, torch.float32: 1e-4}  # floor of the bound; transformers' norms are float32
SIXTEEN_BITS = (torch.bfloat16, torch.float16)
LEAST_IN_16_BITS = 0.1
LEAST_AFTER_FLOAT32 = 1.0  # of a model whose float32 copy has passed: nothing has gone badly wrong
TOLERATED = 4  # one row in so many may differ by more: of two equally good experts the other one is chosen
FAR = 100.0  # logits so far below the best one do not count
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


def check_float32_copy(model: PreTrainedModel) -> dict[str, Any] | None:
    """Test a float32 copy of a model in 16 bits on one device; None where none is needed or memory does not hold it."""
    weights = list(model.parameters())
    needed = sum(weight.numel() for weight in weights) * torch.float32.itemsize
    plain = all(weight.dtype in SIXTEEN_BITS for weight in weights)
    if not plain or needed > get_free_memory(model.device) / 2:
        return None
    started = time.perf_counter()
    figures = check_forward(LanguageModel(cast(Any, copy.deepcopy(model)).float()))
    return figures | {"seconds": round(time.perf_counter() - started, 3)}


@torch.inference_mode()
def check_forward(model: LanguageModel, least: float | None = None) -> dict[str, Any]:
    """Return what run.json says of the test. least: floor of the difference that rounding explains.

    Raises InputError if our forward does not compute what transformers' own does.
    """
    if model.context <= AFTER_PROMPT:
        return {"tokens": 0}
    started = time.perf_counter()
    try:
        figures = _check(model, LEAST.get(model.dtype, LEAST_IN_16_BITS) if least is None else least)
    except InputError as error:
        raise InputError(f"{model.config.model_type}: cannot be run: {error}") from None
    except Exception as error:  # from the model's own code, of any type
        if is_out_of_memory(error):
            raise torch.OutOfMemoryError(str(error)) from None
        raise InputError(f"{model.config.model_type}: cannot be run: {format_error(error)}") from None
    return figures | {"seconds": round(time.perf_counter() - started, 3)}


def _check(model: LanguageModel, least: float) -> dict[str, Any]:
    model.check_attention()
    script = _draw_script(model, min(PROMPT, model.context - AFTER_PROMPT))
    started = time.perf_counter()
    _read_logits(model, [script.committed], 1)
    pace = (time.perf_counter() - started) / len(script.committed)  # seconds per token of a forward
    figures = _compare(model, script, least)
    return figures | {"beyond": {limit: _compare_beyond(model, limit, pace, least) for limit in _list_limits(model)}}


def _draw_script(model: LanguageModel, prompt: int) -> Script:
    sizes = [prompt, CHAIN, len(PARENTS), SINGLE]
    ids = torch.randint(model.vocabulary, (sum(sizes),), generator=torch.Generator().manual_seed(prompt))
    return Script(*(part.tolist() for part in torch.split(ids, sizes)))


def _list_limits(model: LanguageModel) -> list[int]:
    """Return the windows and chunks of the model's config that its context exceeds and a short test does not."""
    named = {key: value for key, value in model.config.to_dict().items() if "window" in key or key == "attention_chunk_size"}
    limits = {value for value in named.values() if type(value) is int and PROMPT < value < model.context}
    return sorted(limits)


def _compare_beyond(model: LanguageModel, limit: int, pace: float, least: float) -> dict[str, Any]:
    """Compare after a prompt longer than a window or chunk, if time and memory allow; only committed tokens' logits."""
    prompt = min(limit + limit // 8 + 8, model.context - AFTER_PROMPT)
    heads = getattr(model.config, "num_attention_heads", 1)
    if pace * prompt * FORWARDS > SECONDS or prompt**2 * heads * SCORE_BYTES > get_free_memory(model.device) / 2:
        return {"tokens": 0}
    return _compare(model, _draw_script(model, prompt), least, committed_only=True)


def _compare(model: LanguageModel, script: Script, least: float, committed_only: bool = False) -> dict[str, Any]:
    """Return the figures of a comparison. Raises InputError where the difference is more than rounding."""
    expected = _run_theirs(model, script, committed_only)
    if not all(logits.amax(dim=-1).isfinite().all() for logits in expected.values()):  # NaN and +inf win every maximum
        raise InputError("its logits are not finite numbers")
    rounding = _measure_rounding(model, script, torch.cat(list(expected.values()))[-AFTER_PROMPT:] if committed_only else None)
    bound = max(MARGIN * rounding, least)
    found = _run_ours(model, script, committed_only)
    differences = {step: _summarize(measure_distance(found[step], expected[step])) for step in expected}
    wrong = next((step for step, difference in differences.items() if not difference <= bound), None)
    if wrong is not None:
        off = f"in {wrong} its logits leave transformers' by {differences[wrong]:.2g} of their spread"
        where = describe_first_difference(model, script.prompt, script.committed[len(script.prompt) :], bound)
        raise InputError(f"{off}, where rounding explains {bound:.2g}{where}")
    return {"tokens": len(script.committed), "rounding": rounding, "bound": bound, "differences": differences}


def _read_logits(model: LanguageModel, sequences: list[list[int]], count: int) -> Tensor:
    """(B, count, V) float32: transformers' own logits of each sequence's last tokens, without any cache."""
    ids = torch.tensor(sequences, device=model.device)
    with model.use_original_attention() as plain:
        logits: Tensor = plain(input_ids=ids, use_cache=False, logits_to_keep=count).logits
    return logits.float()


def _run_theirs(model: LanguageModel, script: Script, committed_only: bool) -> Logits:
    rows = _read_logits(model, [script.committed], AFTER_PROMPT + (1 if committed_only else len(script.prompt)))[0]
    sizes = [len(rows) - AFTER_PROMPT, CHAIN_KEPT, len(TREE_KEPT), SINGLE]
    logits = dict(zip(("the prompt", "a chain", "a branched tree", "single tokens"), torch.split(rows, sizes), strict=True))
    if not committed_only:
        logits["a chain"] = _read_logits(model, [script.prompt + script.chain], CHAIN)[0]
        logits["a branched tree"] = _read_tree(model, script)
    return logits


def _read_tree(model: LanguageModel, script: Script) -> Tensor:
    """(N, V): each node's logits after its own path."""
    sequences = [script.before_tree + [script.tree[node] for node in path] for path in LEAVES]
    paths = _read_logits(model, sequences, len(LEAVES[0]))
    return torch.stack([next(paths[i, path.index(node)] for i, path in enumerate(LEAVES) if node in path) for node in _NODES])


_NODES = range(len(PARENTS))


def _run_ours(model: LanguageModel, script: Script, committed_only: bool) -> Logits:
    store = model.create_store(len(script.prompt) + CHAIN + len(PARENTS) + SINGLE)

    def feed(tree: DraftTree, kept: tuple[int, ...]) -> Tensor:
        logits = model.forward(store, [tree])[0].logits.float()
        store.keep(0, kept)
        return logits

    def to_tensor(tokens: list[int]) -> Tensor:
        return torch.tensor(tokens, device=model.device)

    model.tap(())
    prompt = model.prefill(store, [to_tensor(script.prompt)], all_logits=not committed_only)[0].logits.float()
    chain = feed(DraftTree.chain(to_tensor(script.chain)), tuple(range(CHAIN_KEPT)))
    tree = feed(DraftTree(to_tensor(script.tree), to_tensor(list(PARENTS))), TREE_KEPT)
    single = torch.cat([feed(DraftTree.chain(to_tensor([token])), (0,)) for token in script.single])
    if committed_only:
        chain, tree = chain[:CHAIN_KEPT], tree[list(TREE_KEPT)]
    return {"the prompt": prompt, "a chain": chain, "a branched tree": tree, "single tokens": single}


def _measure_rounding(model: LanguageModel, script: Script, whole: Tensor | None) -> float:
    """Return by how much transformers differs from itself when the tokens after the prompt come through its cache."""
    ids = torch.tensor([script.committed], device=model.device)
    expected = _read_logits(model, [script.committed], AFTER_PROMPT)[0] if whole is None else whole
    return max(_summarize(measure_distance(_read_cached(model, ids, size), expected)) for size in SIZES)


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


def measure_distance(found: Tensor, expected: Tensor) -> Tensor:
    """(n,): the root mean square difference of each row of logits (n, V), relative to the spread of the expected ones."""
    near = expected > expected.amax(dim=-1, keepdim=True) - FAR  # an expanded model's further tokens are far
    count = near.sum(dim=-1)
    mean = expected.where(near, 0).sum(dim=-1) / count
    spread = (expected - mean[:, None]).where(near, 0).square().sum(dim=-1)
    error = (found - expected).where(near, 0).square().sum(dim=-1)
    return (error / spread.clamp(min=torch.finfo(spread.dtype).tiny)).sqrt()


def _summarize(distances: Tensor) -> float:
    """Return the largest distance, leaving out one row in TOLERATED; NaN counts as infinite."""
    ordered = distances.nan_to_num(nan=torch.inf).sort().values
    return float(ordered[len(ordered) - 1 - len(ordered) // TOLERATED])
