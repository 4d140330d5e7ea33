"""The arms of llama.cpp: one server per method inside this process (xllamacpp), prompts and answers as token ids over HTTP.

A request cannot choose how to speculate, so each method has its own server. The server times itself: `predicted_ms` runs from the
first token on. Servers that were started by hand, such as of a native build, answer the same requests.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException
from importlib import import_module
from typing import Any

from benchmarks.peers.arms import CONTINUATION, DRAFT_TOKENS, NGRAM, Answer, Arm, Job
from specbench.errors import InputError, format_error
from specbench.records.trial import BASELINE

PATIENCE = 600  # seconds for one answer
QUIET = -1  # of the server's log: errors alone


def open_llama_cpp(job: Job, stack: ExitStack) -> Iterator[Arm]:
    """Yield the arms of llama.cpp: of the servers whose addresses the job has, else of the wheel."""
    if job.servers:
        job.notes.append("llama.cpp ran in servers of its own; whether something else used the machine meanwhile is not known")
    for method in (name for name in job.methods if name in job.servers):
        yield Arm("llama.cpp", method, Client(job.servers[method], job).decode, worker="process")
    if not job.servers:
        yield from _open_wheel(job, stack)


def _open_wheel(job: Job, stack: ExitStack) -> Iterator[Arm]:
    package: Any = import_module("xllamacpp")
    job.notes.append(f"llama.cpp is the wheel's, built for {', '.join(list_instructions(package.get_system_info()))}")
    for method in job.methods:
        server = package.Server(_choose_parameters(package, job, method))
        stack.callback(lambda held: None, server)  # it lives as long as this reference
        client = Client(server.listening_address, job)
        yield Arm("llama.cpp", method, client.decode, worker="threads")


def list_instructions(info: str) -> list[str]:
    """Return what is on in a text like `CPU : AVX = 1 | AVX2 = 0`."""
    parts = (part.split("=") for part in info.partition(":")[2].split("|") if "=" in part)
    return [name.strip() for name, value in parts if value.strip() == "1"]


def _choose_parameters(package: Any, job: Job, method: str) -> Any:
    """Return the settings of a server with one slot.

    Under a float32 target, keys and values are float32 too, and its flash attention is off, which computes in float16 whatever
    they are: logits are then 0.01 off instead of 0.00001. Under bfloat16 both are llama.cpp's defaults: float16, on.
    """
    params = package.CommonParams()
    params.model.path = str(job.export())
    params.port = 0  # any that is free
    params.n_ctx, params.n_parallel = -(-job.room // 256) * 256, 1
    params.cache_prompt = params.fit_params = False
    params.cache_ram_mib = 0
    params.verbosity = QUIET
    _set_threads(params, job.threads)
    draft = params.speculative.draft
    if job.target.model.dtype_name == "float32":
        float32 = package.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = package.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = draft.cache_type_k = draft.cache_type_v = float32
    kinds = package.common_speculative_type
    if method == "sps":
        params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        draft.mparams.path = str(job.export(draft=True))
        draft.n_max, draft.n_min, draft.p_min = DRAFT_TOKENS, 0, 0.0
        _set_threads(draft, job.threads)
    elif method != BASELINE:
        params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        params.speculative.ngram_simple.size_n, params.speculative.ngram_simple.size_m = NGRAM, CONTINUATION
    return params


def _set_threads(params: Any, threads: int) -> None:
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads


class Client:
    """Asks one server, one prompt after another."""

    def __init__(self, address: str, job: Job) -> None:
        self.place = address.removeprefix("http://")
        self._sampling = job.sampling

    def decode(self, prompt: list[int]) -> Answer:
        """Return the greedy answer and the server's own times. Raises InputError for a reply that cannot be compared."""
        reply = self._post(
            {
                "prompt": prompt,
                "n_predict": self._sampling.max_new_tokens,
                "temperature": 0,
                "samplers": ["temperature"],
                "return_tokens": True,
                "cache_prompt": False,
            }
        )
        ids, times = reply["tokens"], reply["timings"]
        if times["cache_n"] or times["prompt_n"] != len(prompt) or times["predicted_n"] != len(ids):
            raise InputError(f"llama.cpp: a prompt of {len(prompt)} and an answer of {len(ids)} tokens: it counts {times}")
        return Answer(ids, len(ids) - 1, times["predicted_ms"] / 1e3, times.get("draft_n", 0))

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        connection = HTTPConnection(self.place, timeout=PATIENCE)
        try:
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            reply: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, HTTPException, ValueError) as error:
            raise InputError(f"llama.cpp at {self.place}: {format_error(error)}") from None
        finally:
            connection.close()
        if "tokens" not in reply:
            raise InputError(f"llama.cpp: no answer but {json.dumps(reply)[:400]}")
        return reply
