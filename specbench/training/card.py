"""Lines of every training card: the questions and the versions."""

import torch

from specbench.setup.instantiate import locate_class
from specbench.setup.provenance import collect_provenance
from specbench.setup.settings import TrainSettings


def describe_questions(settings: TrainSettings) -> str:
    return f"the questions of {locate_class(settings.suite).__name__}, {settings.suite.get('split', 'no')} split"


def describe_versions(device: torch.device) -> str:
    about = collect_provenance(device)
    commit = f"{about['git']['commit']}{' with changes' * bool(about['git']['dirty'])}"
    return f"specbench {about['versions']['specbench']}, torch {about['versions']['torch']}, commit {commit}."
