"""Addresses of servers: which are valid, and which processes here listen at one."""

from __future__ import annotations

import socket
from urllib.parse import SplitResult, urlsplit

import psutil

from specbench.errors import InputError, show_value


def check_url(label: str, url: str) -> str:
    """Return an address without its trailing slash. Raises InputError for anything else, and for a key or a password in it."""
    parts = _split(url)
    if parts is None or not url.isprintable() or " " in url or parts.scheme not in ("http", "https") or not parts.hostname:
        shown = "its value" if "@" in str(url) else show_value(url)  # which may hold a password
        raise InputError(f"urls.{label}: {shown} is not an address; expected one like http://127.0.0.1:8080")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(f"urls.{label}: expected only an address; name the environment variable that holds the key in `key`")
    return url.rstrip("/").removesuffix("/v1")


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
        (parts.hostname or "").encode("idna")
    except (ValueError, AttributeError, TypeError):
        return None
    return parts


def resolve(url: str) -> frozenset[tuple[str, int]]:
    """Return the numbers and the port of an address; its name, if it has no number."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # of a name that cannot be one
        return frozenset({(str(parts.hostname), port)})
    return frozenset((str(one[4][0]), port) for one in found)


def is_here(url: str) -> bool:
    """Return whether an address is this machine's."""
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return any(host in own for host, _ in resolve(url))


def find_listeners(url: str) -> frozenset[int] | None:
    """Return the processes that listen at the port of an address here, those of other users left out; None if it is not known."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return None
    listening = [one for one in connections if one.status == "LISTEN" and one.laddr and one.laddr.port == port]
    return frozenset(one.pid for one in listening if one.pid) if listening else None


def find_family(url: str) -> frozenset[int] | None:
    """Return the processes that listen at the port of an address here, and all that they started; None if that is not known."""
    try:
        processes = [psutil.Process(pid) for pid in find_listeners(url) or ()]
        return frozenset(one.pid for process in processes for one in (process, *process.children(recursive=True))) or None
    except (psutil.Error, OSError):
        return None
