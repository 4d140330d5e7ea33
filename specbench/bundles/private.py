"""What a bundle may not tell: folders, hosts and keys of the machine that made it.

Paths from the root or the home folder are named by their last part alone, as the file of a suite already is; the host's name and
the addresses of servers are replaced, the values of keys and passwords left out. What still looks like a key is refused.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any

from specbench.errors import InputError, mask_home

PART = r"""[^\s/\\"'`,;:()<>{}|]+"""
PATH = re.compile(rf"(?<![\w/:.~\\-])(?:~?(?:/{PART})+/?|[A-Za-z]:(?:[\\/]{PART})+[\\/]?)")
LOGIN = re.compile(r"(?<=://)[^\s/@]+@")
ADDRESS = re.compile(r"(?<=://)[^\s/:\"']+(?::\d+)?")
NAMES = re.compile(r"(?i)(?:api|access|private|secret)_?key$|token$|password$|passwd$|secret$|authorization$|credentials?$")
KEYS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[\w-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}"
    r"|PRIVATE KEY-----|\b[Bb]earer\s+[\w.~+/-]{16,}"
)
SHORTEST = 4  # characters of a host's name that is looked for
HIDDEN = "hidden"

Mask = Callable[[Any], Any]


def build_mask() -> Mask:
    """Return the function that masks a plain value of this machine, with all that lies inside."""
    host = socket.gethostname()
    pattern = re.compile(rf"(?<![\w-]){re.escape(host)}(?![\w-])") if len(host) >= SHORTEST and host != "localhost" else None

    def mask(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: _mask_setting(str(key), inner, mask) for key, inner in value.items()}
        if isinstance(value, list):
            return [mask(inner) for inner in value]
        return _mask_text(value, pattern) if isinstance(value, str) else value

    return mask


def _mask_setting(key: str, value: Any, mask: Mask) -> Any:
    if isinstance(value, str) and value and NAMES.search(key):
        return HIDDEN
    if key in ("url", "urls", "address") and not _is_public(value):
        return mask(_mask_addresses(value))
    return mask(value)


def _is_public(value: Any) -> bool:
    """Whether it is one address of a file in the web, such as a suite's, and not of a server."""
    return isinstance(value, str) and value.startswith("https://") and not LOGIN.search(value)


def _mask_addresses(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mask_addresses(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mask_addresses(inner) for inner in value]
    return ADDRESS.sub("server", value) if isinstance(value, str) else value


def _mask_text(text: str, host: re.Pattern[str] | None) -> str:
    text = PATH.sub(lambda found: re.split(r"[\\/]", found[0].rstrip("\\/"))[-1], LOGIN.sub("", mask_home(text)))
    return host.sub("host", text) if host else text


def check_keys(text: str, name: str) -> None:
    """Raise InputError for a file of a bundle that holds what looks like a key; the message shows its first characters alone."""
    if found := KEYS.search(text):
        raise InputError(f"{name} holds what looks like a secret, {found[0][:6]}…; take it out of the run first")
