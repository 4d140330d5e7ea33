"""The recipe of the embedded drafters: Medusa and Hydra heads, EAGLE's layer (for EAGLE-1 and 2), EAGLE-3's, DFlash, DSpark, MTP.

    python -m specbench.zoo.recipes.train_heads ZOO [METHOD ...]

`specbench train` trains each on the suite's training dialogues (specbench.zoo.recipes.chats); results go to ZOO/METHOD.
"""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from specbench.cli.output import console
from specbench.drafters.checkpoints import OURS
from specbench.running.progress import TrainingDisplay
from specbench.setup.compose import compose_train
from specbench.training.train import train
from specbench.training.trainer import LOG
from specbench.zoo.recipes.chats import COUNT, write_chats

EPOCHS: dict[str, float] = {"medusa": 1, "hydra_heads": 1, "eagle": 2, "eagle3": 1}
EPOCHS |= {"dflash": 2.55, "dspark": 2.24, "mtp": 2.19}  # the time that EAGLE-3's epoch takes on two cores
SHIPPED = (OURS, "config.json", LOG, "curves.png", "README.md")
SETTINGS = ["target=mini", "target.dtype=bfloat16", "precision=bf16", "muon=0.03", "rate=0.005", "held_out=400", "storage=int8"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("methods", nargs="*", default=list(EPOCHS))
    options = parser.parse_args()
    with TemporaryDirectory() as scratch, TrainingDisplay(console) as display:
        chats = Path(scratch) / "chats.jsonl"
        write_chats(chats, COUNT)
        for method in options.methods:
            arguments = [*SETTINGS, f"epochs={EPOCHS[method]}", f"method={method}", f"data={chats}", f"out={scratch}/{method}"]
            out = train(compose_train(arguments), display.update)
            (options.zoo / method).mkdir(exist_ok=True)
            for name in SHIPPED:
                shutil.copy(out / name, options.zoo / method / name)


if __name__ == "__main__":
    main()
