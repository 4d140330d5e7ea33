"""Names from runs, configs and machines as file names: whatever a name contains, the file stays in its folder."""

from __future__ import annotations

import re
import time
from hashlib import sha256
from itertools import count
from pathlib import Path

KEPT = re.compile(r"[^A-Za-z0-9 _.,+=@()\[\]-]")
LONGEST = 150  # characters; a file system allows 255 bytes, and suffixes are added
DIGEST = 16


def make_file_name(name: str) -> str:
    """Return a name as one component of a path. Different names stay different.

    Anything but letters, digits and harmless marks is written as %XX, as are a leading dot and a trailing space or dot. What is
    too long is cut, and ends in a part of its sha256.
    """
    quoted = KEPT.sub(lambda found: _quote(found[0]), name)
    quoted = re.sub(r"^\.|[ .]$", lambda found: _quote(found[0]), quoted) or "%"
    if len(quoted) <= LONGEST:
        return quoted
    return f"{quoted[: LONGEST - DIGEST - 2]}%-{sha256(quoted.encode()).hexdigest()[:DIGEST]}"


def stamp_path(folder: Path, name: str) -> Path:
    """Return folder/<name>-<time>, numbered if that already exists. Whatever the name holds, it stays in the folder."""
    stamp = f"{make_file_name(name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (folder / (f"{stamp}-{number}" if number > 1 else stamp) for number in count(1))
    return next(path for path in numbered if not path.exists())


def _quote(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def split_numbers(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts texts with numbers in them by the numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text) if part]
