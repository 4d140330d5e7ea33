"""Save a target as the folder that transformers' from_pretrained reads."""

import os
from pathlib import Path

from specbench.errors import InputError
from specbench.models.target import Target


def check_folder(out: str | None) -> Path:
    """Return the folder to write. Raises InputError for one that exists."""
    if out is None:
        raise InputError("out=null: expected a folder, such as out=models/mine")
    folder = Path(out).expanduser()
    if os.path.lexists(folder):
        raise InputError(f"out={out}: already exists; choose another folder")
    return folder


def export_folder(target: Target, folder: Path) -> None:
    """Write weights, config and tokenizer. The folder appears once it is complete."""
    part = folder.with_name(f".{folder.name}.part")
    with target.model.use_original_attention() as model:
        model.save_pretrained(part)
    target.tokenizer.save_pretrained(part)
    part.rename(folder)
