"""What every card of something learned says: which questions, which versions."""

import torch
from hydra.utils import get_object
from omegaconf import DictConfig

from specbench.setup.provenance import provenance


def asked(config: DictConfig) -> str:
    """Whose questions."""
    return f"the questions of {get_object(config.suite._target_).__name__}, {config.suite.get('split', 'no')} split"


def versions(device: torch.device) -> str:
    about = provenance(device)
    commit = f"{about['git']['commit']}{' with changes' * bool(about['git']['dirty'])}"
    return f"specbench {about['versions']['specbench']}, torch {about['versions']['torch']}, commit {commit}."
