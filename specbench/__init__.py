"""specbench: a benchmark of speculative decoding. Its Python interface (docs/python.md) is imported when it is first used."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specbench.api.generating import Answer, generate
    from specbench.api.loading import LoadedMethod, LoadedTarget, load_method, load_target
    from specbench.api.results import Results, open_run, render_report
    from specbench.api.runs import run
    from specbench.errors import InputError

__all__ = [
    "ROOT",
    "Answer",
    "InputError",
    "LoadedMethod",
    "LoadedTarget",
    "Results",
    "generate",
    "load_method",
    "load_target",
    "open_run",
    "render_report",
    "run",
]
__version__ = "0.2.0"
ROOT = Path(__file__).parent.parent  # the checkout, with conf/, results/ and the embedded models
_MODULES = {
    "InputError": "errors",
    **dict.fromkeys(("Answer", "generate"), "api.generating"),
    **dict.fromkeys(("LoadedMethod", "LoadedTarget", "load_method", "load_target"), "api.loading"),
    **dict.fromkeys(("Results", "open_run", "render_report"), "api.results"),
    "run": "api.runs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
