"""The search for a skip set (Zhang et al. 2023, section 3.2): Bayesian optimisation of tokens per second."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import torch
from accelerate import PartialState
from optuna.samplers import GPSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from specbench.decoding.sampling import Sampling
from specbench.drafters.checkpoints import RANDOM
from specbench.drafters.skip_sets import FILE, check_shape, describe_misfit, write_skip_set
from specbench.drafters.skipping import SkipSet, count_layers
from specbench.drafters.skipping_drafter import SkippingDrafter
from specbench.errors import InputError, warn
from specbench.machine.devices import list_timed_devices
from specbench.machine.locks import lock_devices
from specbench.models.target import Target
from specbench.records.files import write_atomic
from specbench.records.trial import BASELINE
from specbench.setup.instantiate import instantiate
from specbench.setup.objects import load_target
from specbench.setup.questions import open_suite, select_questions
from specbench.setup.settings import TrainSettings
from specbench.training.calibration import Calibration, SkipSetTiming
from specbench.training.search_report import format_card, format_trials, plot_trials
from specbench.watch import Watch

JOURNAL, TABLE = "journal.log", "trials.csv"
AT_RANDOM = 8  # trials before the Gaussian process takes over, starting points included
SETTINGS: tuple[str, ...] = ("search.trials", "search.prompts", "search.max_new_tokens")
DONE = "searched for"
Measure = Callable[[SkipSet], SkipSetTiming]


def check(settings: TrainSettings, drafter: type[Any]) -> None:
    if PartialState().num_processes > 1:
        raise InputError("a skip set must be searched for by a single process: several would disturb each other's timing")
    check_shape([label for label in settings.method if label != BASELINE], settings.target.shape, settings.target.sizes)


def make(settings: TrainSettings, label: str, drafter: type[Any], out: Path, watch: Watch) -> None:
    with lock_devices(list_timed_devices(settings.target.device, settings.target.device_map), warn):
        _search(settings, label, out, watch)


def _search(settings: TrainSettings, label: str, out: Path, watch: Watch) -> None:
    target = load_target(settings.target)
    prompts = select_prompts(settings, target)
    node = {**settings.method[label], "checkpoint": RANDOM}  # until the first trial sets its own
    method = instantiate(node, SkippingDrafter, f"method.{label}")
    method.bind(target.model)
    sampling = Sampling(max_new_tokens=settings.search.max_new_tokens, stop_token_ids=target.model.eos_ids)
    calibration = Calibration(target.model, method, prompts, sampling)
    search = Search(out, count_layers(target.model), settings.seed)
    if not search.run_trials(settings.search.trials, calibration, watch) and (out / FILE).is_file():
        return  # finished earlier; its card stays
    timings, best = search.timings, search.best
    write_skip_set(timings[best].skipped, out)
    plot_trials(timings, best, search.layers, out / "curves.png")
    calibrated = f"{len(prompts)} prompts, the first {sampling.max_new_tokens} tokens of each answer"
    sampler = f"optuna {version('optuna')}'s Gaussian-process sampler, seed {settings.seed}"
    card = format_card(settings, label, target, timings, best, calibrated, sampler)
    (out / "README.md").write_text(card, encoding="utf-8")


def describe_kept(settings: TrainSettings, out: Path) -> str:
    """Return how many trials are recorded."""
    trials = len((out / TABLE).read_text(encoding="utf-8").splitlines()) - 1 if (out / TABLE).is_file() else 0
    return f"{trials} trials of the search" if trials else ""


def select_prompts(settings: TrainSettings, target: Target) -> list[torch.Tensor]:
    """Return the first turns as (T,) ids. Raises InputError if one does not fit the context."""
    questions = select_questions(settings, open_suite(settings), settings.search.prompts)
    prompts = [target.render_first_prompt(question) for question in questions]
    longest = max(map(len, prompts))
    if longest >= target.model.context:
        raise InputError(f"a prompt of {longest} tokens does not fit the context of {target.name}, {target.model.context}")
    return [torch.tensor(ids, device=target.model.device) for ids in prompts]


def propose_starts(layers: int) -> list[SkipSet]:
    """Return two starting points: every second attention, which usually costs the least quality, and every second layer."""
    second = tuple(range(1, layers, 2))
    return [SkipSet(second, ()), SkipSet(second, second)]


class Search:
    """Trials in `out`: optuna's journal, from which a killed search resumes, and a table of them."""

    def __init__(self, out: Path, layers: int, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.out, self.layers, self.seed = out, layers, seed
        storage = JournalStorage(JournalFileBackend(str(out / JOURNAL)))
        self.study = optuna.create_study(storage=storage, study_name="skip", direction="maximize", load_if_exists=True)
        for trial in self._list_trials(TrialState.RUNNING):  # interrupted by a kill
            self.study.tell(trial.number, state=TrialState.FAIL)

    def run_trials(self, trials: int, measure: Measure, watch: Watch) -> int:
        """Run the missing trials of `trials`; return how many there were."""
        done = len(self._list_trials(TrialState.COMPLETE, TrialState.PRUNED))
        for number in range(done, trials):
            self._run_trial(number, measure)
            write_atomic(self.out / TABLE, format_trials(self.timings))
            watch(self._format_progress(), number + 1, trials, {})
        return trials - done

    def _run_trial(self, number: int, measure: Measure) -> None:
        """Run one trial, determined by the seed, its number and the results so far: a resumed search runs the same trials."""
        self.study.sampler = GPSampler(seed=self.seed + number, n_startup_trials=AT_RANDOM)
        points = propose_starts(self.layers)
        if number < len(points) and not self._list_trials(TrialState.WAITING):
            self.study.enqueue_trial(dict(zip(self._list_names(), points[number].to_switches(self.layers), strict=True)))
        trial = self.study.ask()
        skipped = SkipSet.of([trial.suggest_categorical(name, [False, True]) for name in self._list_names()])
        if describe_misfit(skipped, self.layers):  # skips every sublayer
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        timing = measure(skipped)
        for name, value in timing.to_row().items():
            trial.set_user_attr(name, value)
        first = self.timings[0] if self.timings else timing
        self.study.tell(trial, timing.rate * first.baseline_rate / timing.baseline_rate)  # without the drift since the first

    def _list_names(self) -> list[str]:
        return [f"{kind} {layer}" for kind in ("attention", "mlp") for layer in range(self.layers)]

    def _list_trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    @property
    def timings(self) -> list[SkipSetTiming]:
        """The completed trials' timings."""
        trials = self._list_trials(TrialState.COMPLETE)
        return [SkipSetTiming.from_row(trial.user_attrs, trial.number, trial.value or 0.0) for trial in trials]

    @property
    def best(self) -> int:
        """The index of the fastest skip set in `timings`."""
        rates = [timing.tokens_per_second for timing in self.timings]
        return rates.index(max(rates))

    def _format_progress(self) -> str:
        if not self.timings:
            return "searching"
        best = self.timings[self.best]
        return f"searching · best so far {best.tokens_per_second:.1f} tokens/s, {best.speedup:.2f}×"
