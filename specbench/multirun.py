"""Sweeps over configs: specbench run -m method=pld,sps [hydra/launcher=…], by Hydra itself."""

import sys

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from specbench.compose import CONF
from specbench.progress import ProgressDisplay
from specbench.run import execute


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(config: DictConfig) -> str:
    OmegaConf.resolve(config)
    with ProgressDisplay(Console()) as display:
        return str(execute(config, display))


def sweep(argv: list[str]) -> int:
    sys.argv = ["specbench run", *argv]
    _job()
    return 0
