"""Make a run from Python, as `specbench run` does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from specbench.api.results import Results, open_run
from specbench.running.progress import mute
from specbench.running.start import start_run
from specbench.running.sweep import check_single_run
from specbench.setup.compose import compose_run
from specbench.setup.words import check_words, format_words


def run(*words: str, config_dir: str | Path | None = None, progress: bool = False, **settings: Any) -> Results:
    """Time methods against autoregressive decoding, and return the results.

    settings: those of `specbench run`, such as target="mini", method=["pld"], limit=4 or sampling={"max_new_tokens": 64}.
    words: the same as on the command line, for dotted names: "target.shape=100m". config_dir: a further folder of YAMLs, like
    conf/. progress: print what is running. To resume an interrupted run, or to extend one, run it again with out=FOLDER.
    Raises InputError.
    """
    folder = None if config_dir is None else Path(config_dir)
    overrides = [*check_words(words, folder), *format_words(settings)]
    composed = compose_run(overrides, folder)
    check_single_run(composed, overrides, "specbench.run")
    with warnings.catch_warnings(), mute(not progress):
        warnings.simplefilter("ignore")
        return open_run(start_run(composed))
