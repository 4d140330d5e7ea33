"""A pretend CUDA card: tensors that say cuda:0 and lie in main memory. It refuses mixed devices and counts what a card would do.

Code under test runs whole turns on it, with real values. Counted are kernels (about one per operator), host-to-device copies and
synchronisations; the latter two by the line of code that asks for them.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.cpp_extension import include_paths

from specbench import ROOT
from specbench.models.forwards import find_compiler

CARD = torch.device("cuda:0")
Kind = Literal["kernel", "view", "upload", "sync"]
"""upload: a host-to-device copy, which waits for the card unless its memory is pinned. sync: the host waits for the card."""

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2", "unique_consecutive"}
ONE_KERNEL = {"linear", "matmul", "scaled_dot_product_attention", "softmax", "log_softmax", "rms_norm", "layer_norm", "where"}
OF_LISTS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
UNBINDING = (torch.Tensor.__iter__, torch.Tensor.unbind, torch.unbind)
INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


class Event(NamedTuple):
    kind: Kind
    name: str  # of the operator
    place: str  # file:line; of kernels and views empty


class Ledger:
    """Counts events while it is open."""

    def __init__(self) -> None:
        self.events: Counter[Event] = Counter()
        self._open = False

    def add(self, kind: Kind, name: str) -> None:
        if self._open:
            self.events[Event(kind, name, _find_place() if kind in ("upload", "sync") else "")] += 1

    def count(self, *kinds: Kind) -> int:
        return sum(number for event, number in self.events.items() if event.kind in kinds)

    def list_places(self, *kinds: Kind) -> list[str]:
        """Return who asked for what, the most frequent first."""
        return [f"{n} × {e.kind} {e.name} at {e.place}" for e, n in self.events.most_common() if e.kind in kinds]

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out what happens inside."""
        was, self._open = self._open, False
        try:
            yield
        finally:
            self._open = was

    @contextmanager
    def open(self) -> Iterator[Ledger]:
        """Count from zero."""
        self.events = Counter()
        self._open = True
        try:
            yield self
        finally:
            self._open = False


LEDGER = Ledger()


def _find_place() -> str:
    """Return the innermost line of this project's code that is running."""
    frame = sys._getframe(2)
    while frame is not None and not _is_ours(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}" if frame else "elsewhere"


@cache
def _is_ours(file: str) -> bool:
    """Whether a file asks for a copy; those of machine/ copy what others ask for."""
    path = Path(file)
    return path.is_relative_to(ROOT / "methods") or (path.is_relative_to(ROOT / "specbench") and path.parent.name != "machine")


class CardTensor(Tensor):
    """Says cuda:0; `host` holds the data, so that views of it are views here too."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> CardTensor:
        layout: Any = {"strides": host.stride(), "storage_offset": host.storage_offset()}
        tensor: Any = Tensor._make_wrapper_subclass(cls, host.size(), **layout, dtype=host.dtype, device=CARD)
        tensor.host = host
        return cast(CardTensor, tensor)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"on the card: {self.host}"

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(operator, args, kwargs or {})


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every operator that has a tensor of the card, or is to make one."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operator, args, kwargs or {})


def _run(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    name = operator._schema.name.split("::")[1]
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    cards = [tensor for tensor in tensors if isinstance(tensor, CardTensor)]
    asked = kwargs.get("device")
    goes_to = torch.device(asked).type if asked is not None else "cuda" if cards else "cpu"
    whole = name.rstrip("_") in ONE_KERNEL | WAITING or not operator._can_decompose()
    if cards and not whole and (parts := operator.decompose(*args, **kwargs)) is not NotImplemented:
        return parts
    if cards or goes_to == "cuda":
        _check_devices(name, args, tensors, cards, goes_to)
    out = operator(*tree_map(_unwrap, args), **{**tree_map(_unwrap, dict(kwargs)), **({"device": "cpu"} if asked else {})})
    if not cards and goes_to == "cpu":
        return out
    _count(name, args, tensors, cards, goes_to, out)
    known = {id(card.host): card for card in cards}
    return tree_map(lambda leaf: _wrap(leaf, known), out) if goes_to == "cuda" else out


def _unwrap(leaf: Any) -> Any:
    return leaf.host if isinstance(leaf, CardTensor) else leaf


def _wrap(leaf: Any, known: Mapping[int, CardTensor]) -> Any:
    if not isinstance(leaf, Tensor) or isinstance(leaf, CardTensor):
        return leaf
    return known[id(leaf)] if id(leaf) in known else CardTensor(leaf)


def _check_devices(name: str, args: tuple[Any, ...], tensors: list[Tensor], cards: list[CardTensor], goes_to: str) -> None:
    """Raise what CUDA would for operands on both devices; copies and, as indices, host tensors are allowed."""
    hosts = [tensor for tensor in tensors if not isinstance(tensor, CardTensor) and tensor.dim()]
    allowed = name in ("copy_", "_to_copy") or (name.startswith(("index", "_index_put")) and isinstance(args[0], CardTensor))
    if cards and hosts and not allowed:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")


def _count(name: str, args: tuple[Any, ...], tensors: list[Tensor], cards: list[CardTensor], goes_to: str, out: Any) -> None:
    hosts = [tensor for tensor in tensors if not isinstance(tensor, CardTensor) and tensor.dim()]
    if name.rstrip("_") in WAITING or _reads_mask(name, args):
        LEDGER.add("sync", name)
    if cards and (goes_to == "cpu" or (name == "copy_" and not isinstance(args[0], CardTensor))):
        LEDGER.add("sync", name)
    elif hosts:
        for tensor in hosts:
            LEDGER.add("upload", name if not is_pinned(tensor) else f"{name}, pinned")
    else:
        LEDGER.add("view" if _is_view(out, cards) else "kernel", name)


def _reads_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Whether the size of an index is known only on the card."""
    indices = tree_flatten(args[1])[0] if name.startswith(("index", "_index_put")) and len(args) > 1 else []
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


def _is_view(out: Any, cards: Iterable[CardTensor]) -> bool:
    """Whether the results lie in an operand's memory, as a tensor of their own: nothing was computed."""
    results = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
    operands = {card.host.untyped_storage()._cdata: card for card in cards}
    inputs = {id(card.host) for card in cards}
    return bool(results) and all(id(x) not in inputs and x.untyped_storage()._cdata in operands for x in results)


class _Functions(TorchFunctionMode):
    """Catches what reaches no dispatcher: tensors made of lists, or on the card; indices that are lists; pinned memory."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in OF_LISTS:
            return self._make_of_list(function, args, kwargs)
        if function is Tensor.pin_memory:
            args[0].pinned = True
            return args[0]
        if function in INDEXING and any(isinstance(arg, CardTensor) for arg in tree_flatten(args)[0]):
            return _index(function, *args)
        if function is Tensor.tolist and isinstance(args[0], CardTensor):
            LEDGER.add("sync", "tolist")
            return args[0].host.tolist()
        if function in UNBINDING and isinstance(args[0], CardTensor):
            return iter([CardTensor(part) for part in args[0].host.unbind(*args[1:], **kwargs)])
        if is_card(kwargs.get("device")) and not any(isinstance(arg, Tensor) for arg in args):
            LEDGER.add("kernel", function.__name__)
            return CardTensor(function(*args, **{**kwargs, "device": "cpu"}))
        return function(*args, **kwargs)

    def _make_of_list(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        device = kwargs.pop("device", None)
        on_card = is_card(device) or (device is None and isinstance(args[0], CardTensor))
        if function is Tensor.new_tensor:
            kwargs.setdefault("dtype", args[0].dtype)
            args = args[1:]
        made = torch.tensor(*args, **kwargs) if on_card else function(*args, **kwargs)
        if not on_card:
            return made
        LEDGER.add("upload", function.__name__)
        return CardTensor(made)


def _index(function: Any, tensor: Tensor, index: Any, *value: Any) -> Any:
    """Read or write the elements that an index names, on the host; torch does so below its dispatcher."""
    parts = index if isinstance(index, tuple) else (index,)
    if not isinstance(tensor, CardTensor):
        raise RuntimeError("a tensor of the host, indexed by one of the card, or written from it")
    gathers = [part for part in parts if isinstance(part, (list, range)) or (isinstance(part, Tensor) and part.dim())]
    for part in parts:
        _count_index(part)
    for written in value:
        if isinstance(written, Tensor) and written.dim() and not isinstance(written, CardTensor):
            LEDGER.add("upload", function.__name__)
    LEDGER.add("kernel" if gathers or value else "view", function.__name__)
    parts = tuple(list(part) if isinstance(part, range) else _unwrap(part) for part in parts)
    out = function(tensor.host, parts if isinstance(index, tuple) else parts[0], *map(_unwrap, value))
    return None if value else CardTensor(out)


def _count_index(part: Any) -> None:
    """Count what a part of an index takes besides the kernel."""
    if isinstance(part, (list, range)) or (isinstance(part, Tensor) and part.dim() and not isinstance(part, CardTensor)):
        LEDGER.add("upload", "index")
    elif isinstance(part, CardTensor) and (part.dtype == torch.bool or not (part.dim() or part.is_floating_point())):
        LEDGER.add("sync", "index by a number or a mask of the card")


def is_card(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == "cuda"


def is_pinned(tensor: Tensor) -> bool:
    return bool(getattr(tensor, "pinned", False))


class _Generator(torch.Generator):
    """Says the card, and draws the numbers of a CPU."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        generator = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        generator.where = torch.device(device)
        return generator

    where: torch.device

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.where


@contextmanager
def use_card() -> Iterator[None]:
    """Run a block on the card."""
    _load_guard()
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        stack.enter_context(patch.object(torch.cuda, "_lazy_init", lambda: None))
        stack.enter_context(patch.object(torch.cuda, "synchronize", lambda device=None: LEDGER.add("sync", "synchronize")))
        stack.enter_context(_Dispatch())  # type: ignore[no-untyped-call]
        stack.enter_context(_Functions())
        yield


def put_on_card(module: nn.Module) -> None:
    """Move parameters and buffers, in place; what is shared stays shared."""
    moved: dict[int, Any] = {}
    for part in module.modules():
        for tensors, wrap in ((part._parameters, _to_parameter), (part._buffers, CardTensor)):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = moved.setdefault(id(tensor), wrap(tensor.detach().clone()))


def _to_parameter(host: Tensor) -> nn.Parameter:
    return nn.Parameter(CardTensor(host), requires_grad=False)


@cache
def _load_guard() -> None:
    library = Path(tempfile.mkdtemp()) / "pretend_card.so"
    folders = [f"-I{folder}" for folder in include_paths()]
    libraries = Path(torch.__file__).parent / "lib"
    link = [f"-L{libraries}", "-lc10", f"-Wl,-rpath,{libraries}"]
    source = Path(__file__).with_suffix(".cpp")
    compiler = find_compiler() or "g++"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", source, "-o", library, *folders, *link], check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def why_not() -> str:
    """Return why there is no pretend card here; empty if there is one."""
    if sys.platform != "linux":
        return "the pretend card is tried on Linux alone"
    return "" if find_compiler() else "no C++ compiler, which the pretend card needs"
