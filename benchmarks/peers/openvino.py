"""The arms of OpenVINO GenAI on the CPU: a pipeline per method, in the target's precision, from float16 GGUF files.

Its reader of GGUF takes float16, but neither bfloat16 nor a draft model: that is converted first. The pipeline times itself: it
notes when each step's tokens were there.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peers.arms import CONTINUATION, DRAFT_TOKENS, NGRAM, Answer, Arm, Job
from specbench.records.trial import BASELINE

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def open_openvino(job: Job, stack: ExitStack) -> Iterator[Arm]:
    """Yield the arms of OpenVINO GenAI."""
    package: Any = import_module("openvino_genai")
    if changed := count_changed(job.target.model.model):
        job.notes.append(f"OpenVINO reads float16, which rounds {changed:.2%} of the weights")
    for method in job.methods:
        pipeline = Pipeline(package, job, method)
        yield Arm("OpenVINO", method, pipeline.decode, worker="others")


def count_changed(model: nn.Module) -> float:
    """Return the share of weights that are another number in float16."""
    matrices = [weight for weight in model.state_dict().values() if weight.ndim > 1]
    changed: int = sum(int((weight.half().to(weight.dtype) != weight).sum()) for weight in matrices)
    total: int = sum(weight.numel() for weight in matrices)
    return changed / total


class Pipeline:
    """Decodes by one method. Keys and values have the precision of the weights, not OpenVINO's default of 8 bits."""

    def __init__(self, package: Any, job: Job, method: str) -> None:
        self._package = package
        precision = PRECISIONS[job.target.model.dtype_name]
        options = {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision, "INFERENCE_NUM_THREADS": job.threads}
        more: dict[str, Any] = {}
        if method == "sps":
            more["draft_model"] = package.draft_model(_convert_draft(package, job), "CPU", **options)
        elif method != BASELINE:
            more["prompt_lookup"] = True
        self._pipeline = package.LLMPipeline(str(job.export(dtype=torch.float16)), "CPU", **options, **more)
        self._config = _configure(package, job, method)

    def decode(self, prompt: list[int]) -> Answer:
        """Return the greedy answer and the pipeline's own times."""
        ids = np.array([prompt], dtype=np.int64)
        tensor = import_module("openvino").Tensor
        inputs = self._package.TokenizedInputs(tensor(ids), tensor(np.ones_like(ids)))
        out = self._pipeline.generate(inputs, self._config)
        raw = out.perf_metrics.raw_metrics
        sizes, times = list(raw.m_batch_sizes), list(raw.m_new_token_times)  # tokens and milliseconds by step, prefill's first
        return Answer(list(out.tokens[0]), sum(sizes[1:]), (times[-1] - times[0]) / 1e3, _count_drafted(out))


def _convert_draft(package: Any, job: Job) -> str:
    """Return the folder of the draft model in OpenVINO's own format, converted from a GGUF file there."""
    path = job.export(draft=True, dtype=torch.float16)
    if not (path.parent / "openvino_model.xml").exists():
        package.LLMPipeline(str(path), "CPU", enable_save_ov_model=True)
    return str(path.parent)


def _configure(package: Any, job: Job, method: str) -> Any:
    config = package.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.apply_chat_template = job.sampling.max_new_tokens, False, False
    config.stop_token_ids = set(job.sampling.stop_token_ids)
    if job.sampling.stop_token_ids:
        config.eos_token_id = job.sampling.stop_token_ids[0]
    if method == "sps":
        config.num_assistant_tokens = DRAFT_TOKENS
    elif method != BASELINE:
        config.num_assistant_tokens, config.max_ngram_size = CONTINUATION, NGRAM
    return config


def _count_drafted(out: Any) -> int | None:
    metrics = out.extended_perf_metrics
    return int(metrics.get_num_draft_tokens()) if hasattr(metrics, "get_num_draft_tokens") else None
