"""llama.cpp's server from the package xllamacpp, with the options of `llama-server` that are listed here.

    python -m specbench.servers.wheel -m target.gguf --port 8080 [--spec-type draft-simple -md draft.gguf]

A binary `llama-server` takes the same options. Imports no torch: the package would share torch's OpenMP runtime, which no longer
spins at barriers once it has more threads than there are cores, and every product would then wait to be woken up.
"""

import argparse
import signal
import sys
import threading
from importlib import import_module
from typing import Any

KINDS = ("none", "draft-simple", "draft-eagle3", "draft-mtp", "ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod")
TYPES = ("f32", "f16", "bf16", "q8_0")
FLASH = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}  # flash attention, in words of llama-server and of the package
QUIET = -1  # only errors


def main() -> None:
    options = build_parser().parse_args()
    try:
        package: Any = import_module("xllamacpp")
    except ImportError:
        sys.exit("the package xllamacpp is not installed; pip install -e '.[llama_cpp]' adds it")
    print(package.get_system_info(), flush=True)
    try:
        server = package.Server(choose_parameters(package, options))
    except RuntimeError as error:
        sys.exit(f"{options.model}: {error}")
    print(f"listening at {server.listening_address}", flush=True)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    # at once, whatever it still computes
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of llama-server's options, by llama-server's names."""
    parser = argparse.ArgumentParser(prog="specbench.servers.wheel", allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-md", "--spec-draft-model", dest="draft")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("-c", "--ctx-size", dest="context", type=int, default=4096)
    parser.add_argument("-np", "--parallel", dest="slots", type=int, default=1)
    parser.add_argument("-t", "--threads", type=int, default=0)
    parser.add_argument("-ngl", "--gpu-layers", dest="gpu_layers", type=int)
    parser.add_argument("-fa", "--flash-attn", dest="flash", choices=("auto", "on", "off"), default="auto")
    for name in ("-ctk", "-ctv", "-ctkd", "-ctvd"):
        parser.add_argument(name, choices=TYPES)
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--no-cache-prompt", action="store_true")
    parser.add_argument("--cache-ram", type=int, default=0)
    parser.add_argument("-fit", "--fit", choices=("off",), default="off")  # sizes stay as given
    parser.add_argument("--spec-type", choices=KINDS, default="none")
    parser.add_argument("--spec-draft-n-max", dest="most_drafted", type=int, default=3)
    parser.add_argument("--spec-draft-n-min", dest="least_drafted", type=int, default=0)
    parser.add_argument("--spec-draft-p-min", dest="least_probability", type=float, default=0.0)
    parser.add_argument("--spec-ngram-simple-size-n", dest="ngram", type=int, default=12)
    parser.add_argument("--spec-ngram-simple-size-m", dest="copied", type=int, default=48)
    return parser


def choose_parameters(package: Any, options: argparse.Namespace) -> Any:
    """Return the options as the package's parameters."""
    params = package.CommonParams()
    params.model.path = options.model
    params.hostnames, params.port = [options.host], options.port
    params.n_ctx, params.n_parallel = options.context, options.slots
    params.cache_prompt, params.cache_ram_mib = not options.no_cache_prompt, options.cache_ram
    params.endpoint_metrics = options.metrics
    params.fit_params = False
    params.verbosity = QUIET
    if options.gpu_layers is not None:
        params.n_gpu_layers = options.gpu_layers
    params.flash_attn_type = getattr(package.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{FLASH[options.flash]}")
    _set_threads(params, options.threads)
    _choose_types(package, params, options)
    _choose_speculation(package, params.speculative, options)
    return params


def _choose_types(package: Any, params: Any, options: argparse.Namespace) -> None:
    """Set the types of keys and values, of the target and of the draft model."""
    for short, (part, name) in {
        "ctk": (params, "cache_type_k"),
        "ctv": (params, "cache_type_v"),
        "ctkd": (params.speculative.draft, "cache_type_k"),
        "ctvd": (params.speculative.draft, "cache_type_v"),
    }.items():
        if kind := getattr(options, short):
            setattr(part, name, getattr(package.ggml_type, f"GGML_TYPE_{kind.upper()}"))


def _choose_speculation(package: Any, speculative: Any, options: argparse.Namespace) -> None:
    if options.spec_type == "none":
        return
    kind = options.spec_type.upper().replace("-", "_")
    speculative.types = [getattr(package.common_speculative_type, f"COMMON_SPECULATIVE_TYPE_{kind}")]
    draft, simple = speculative.draft, speculative.ngram_simple
    if options.draft:
        draft.mparams.path = options.draft
    draft.n_max, draft.n_min, draft.p_min = options.most_drafted, options.least_drafted, options.least_probability
    _set_threads(draft, options.threads)
    simple.size_n, simple.size_m = options.ngram, options.copied


def _set_threads(params: Any, threads: int) -> None:
    if threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads


if __name__ == "__main__":
    main()
