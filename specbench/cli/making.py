"""The commands that make what a run needs: train, datastore build, target new; and list, which shows what there is."""

from argparse import Namespace
from pathlib import Path

from specbench.cli.output import Result
from specbench.cli.parser import Command, Parser, add_config_dir


def train(options: Namespace) -> Result | None:
    """Train a drafter's own weights for a target."""
    from specbench.setup.compose import compose_train

    settings = compose_train(options.overrides, options.config_dir)
    from specbench.running.progress import TrainingDisplay

    with TrainingDisplay() as display:
        from accelerate import PartialState

        from specbench.training import train as training

        out = training.train(settings, display.update)
    if not PartialState().is_main_process:
        return None
    return Result({"checkpoint": out, "card": out / "README.md"}, [f"checkpoint: {out}; its card: {out}/README.md"])


def datastore(options: Namespace) -> Result:
    """Build a store of texts that REST drafts from."""
    from specbench.setup.compose import compose_datastore

    settings = compose_datastore(options.overrides, options.config_dir)
    from specbench.running.progress import TrainingDisplay

    with TrainingDisplay() as display:
        from specbench.datastore.make import build_from_config

        out = build_from_config(settings, display.update)
    return Result({"datastore": out}, [f"datastore: {out}; specbench run method=[rest] target.datastore={out}"])


def add_target_options(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="a folder, a GGUF file or a hub id")


def target(options: Namespace) -> Result:
    """Print a YAML for a model of your own."""
    from specbench.running.progress import Display

    with Display(stage="reading the model's config"):
        from specbench.models.load import check_model
        from specbench.models.place import check_holds_model
        from specbench.setup.local import build_yaml

        check_model(options.path)
        check_holds_model(options.path)
        text = build_yaml(options.path)
    return Result({"yaml": text}, [text])


def list_(options: Namespace) -> Result:
    """List the targets, methods, tasks, suites, engines and experiments."""
    from specbench.setup.compose import GROUPS, check_folder, check_syntax, list_options

    folder: Path | None = options.config_dir
    check_folder(folder)
    if folder is not None:
        check_syntax(folder)
    choices = {group: list_options(group, folder) for group in GROUPS}
    return Result(choices, [f"{group}: {', '.join(names) or '-'}" for group, names in choices.items()])


COMMANDS = (
    Command("train", train, "method=eagle3 epochs=1 out=results/my-eagle3", root="train"),
    Command("datastore build", datastore, "limit=100 out=results/my-store", root="datastore"),
    Command("target new", target, "models/my-model > my-conf/target/mine.yaml", add_target_options),
    Command("list", list_, "", add_config_dir),
)
