"""What every card of something learned says: which questions, which versions."""

import torch

from specbench.setup.instantiate import class_of
from specbench.setup.provenance import provenance
from specbench.setup.settings import TrainSettings


def asked(settings: TrainSettings) -> str:
    """Whose questions."""
    return f"the questions of {class_of(settings.suite).__name__}, {settings.suite.get('split', 'no')} split"


def versions(device: torch.device) -> str:
    about = provenance(device)
    commit = f"{about['git']['commit']}{' with changes' * bool(about['git']['dirty'])}"
    return f"specbench {about['versions']['specbench']}, torch {about['versions']['torch']}, commit {commit}."
