"""Numbers that could hang a machine or make nonsense are refused, as are keys that nothing reads; by name and in one line."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specbench.bounds import Within
from specbench.errors import InputError
from specbench.machine.devices import count_usable_cores
from specbench.records.nested import flatten
from specbench.setup.compose import GROUPS, compose_certify, compose_datastore, compose_run, compose_train
from specbench.setup.instantiate import instantiate
from specbench.setup.objects import check_nodes
from tests.test_compose import refusal

HUGE = 2**63
EXAMPLES = 40
METHODS = (
    "pld,sps,medusa,eagle,eagle2,eagle3,lookahead,rest,self_speculative,token_recycling,sam_decoding,suffix,oracle,synthetic"
)
NUMBERS = {  # each setting's values that are refused
    "limit": (0, -1, HUGE, 1.5, True),
    "repeats": (0, 10**9, HUGE),
    "seed": (-1, 2**64, 10**30, 1.5),
    "threads": (0, -1, 10_000, 2**31, 2**40),
    "sampling.max_new_tokens": (0, -5, 10**12),
    "sampling.temperature": (-1, 1e-300, 1e300, math.nan, math.inf),
    "sampling.top_p": (0, -1, 1e-300, 1.1, math.nan),
    "sampling.top_k": (-1, 10**12, 0.5),
    "suite.per_task": (-1, 10**9, 1e3),
    "suite.seed": (-1, 2**64),
    "method.pld.length": (-4, 0, 10**9, 1.5),
    "method.pld.max_ngram": (0, 10**6),
    "method.pld.filler": (-1, 2**40),
    "method.sps.draft_tokens": (0, -1, 10**9),
    "method.sps.confidence": (-0.1, 1.1, math.nan),
    "method.eagle2.depth": (0, -1, 10**9),
    "method.eagle2.top_k": (0, 10**9),
    "method.eagle2.total_tokens": (0, 1, 10**9),
    "method.eagle3.total_tokens": (0, 1, 10**9),
    "method.eagle3.depth": (0, 10**9),
    "method.lookahead.level": (2, 0, 10**9),
    "method.lookahead.window": (0, 10**9),
    "method.lookahead.guesses": (0, 10**9),
    "method.lookahead.seed": (-1, 2**70),
    "method.rest.longest": (0, 10**9),
    "method.rest.shortest": (0, -2),
    "method.rest.occurrences": (0, 10**12),
    "method.rest.depth": (0, 10**9),
    "method.rest.nodes": (0, 10**9),
    "method.rest.filler": (-1,),
    "method.sam_decoding.length": (0, 10**9),
    "method.sam_decoding.factor": (0, -1, 1e300, math.nan),
    "method.sam_decoding.shortest": (0, -1),
    "method.sam_decoding.trial": (0, -1, 10**9),
    "method.suffix.depth": (1, 0, 10**9),
    "method.suffix.factor": (-1, 1e300, math.nan),
    "method.suffix.offset": (-1e300, math.inf),
    "method.suffix.least_probability": (-0.1, 1.1, math.nan),
    "method.suffix.least_score": (-1, math.nan),
    "method.suffix.cached_requests": (-1, 1.5),
    "method.self_speculative.draft_tokens": (0, 10**9),
    "method.self_speculative.threshold": (-1, 2, math.nan),
    "method.self_speculative.target_acceptance": (-1, 2),
    "method.oracle.length": (0, -1, 10**9),
    "method.synthetic.length": (0, 10**9),
}
FLAT = [(f"{name}={value}", name) for name, values in NUMBERS.items() for value in values]


@pytest.mark.parametrize(("override", "name"), FLAT)
def test_a_number_out_of_bounds_is_refused_by_name(override: str, name: str) -> None:
    line = refusal(f"method=[{METHODS}]", override)
    assert line.startswith(f"{name}=") and "expected" in line, line


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "method.medusa.tree.paths=[[1000000000]]",
            "method.medusa.tree.paths.0.0=1000000000: expected a whole number",
        ),
        ("method.eagle.tree.paths=[[-1]]", "method.eagle.tree.paths.0.0=-1: expected a whole number, at least 0 and at most 255"),
        ("method.token_recycling.tree.paths=[x]", "method.token_recycling.tree.paths.0=x: expected a list"),
        ("method.synthetic.rates=[0.5,2]", "method.synthetic.rates.1=2: expected a number, at least 0 and at most 1"),
        (
            "target.shape=x +target.shapes.x={num_hidden_layers:1000000000}",
            "target.shapes.x.num_hidden_layers=",
        ),
        (
            "target.weights=random target.config={model_type:llama,num_hidden_layers:1000000000}",
            "target.config.num_hidden",
        ),
        ("threads=1024", f"threads=1024: this process may use {count_usable_cores()} cores; expected"),
    ],
)
def test_numbers_inside(override: str, expected: str) -> None:
    assert expected in refusal(f"method=[{METHODS}]", *override.split())


@pytest.mark.parametrize(
    ("label", "changes", "expected"),
    [
        ("pld", {"min_ngram": 5}, "pld: min_ngram=5 is above max_ngram=3"),
        ("rest", {"shortest": 20}, "rest: shortest=20 is above longest=16"),
        ("eagle2", {"depth": 64, "top_k": 64}, "eagle: depth=64 × top_k=64 expands more nodes than 256"),
    ],
)
def test_numbers_that_do_not_go_together(label: str, changes: dict[str, Any], expected: str) -> None:
    from specbench.decoding.drafter import Drafter

    with pytest.raises(InputError, match=expected):
        instantiate({**compose_run([f"method=[{label}]"]).method[label], **changes}, Drafter, label)


@pytest.mark.parametrize(
    ("command", "override"),
    [
        (compose_certify, "draws=1000000000000"),
        (compose_certify, "draws=255"),
        (compose_certify, "level=1e-300"),
        (compose_certify, "seed=-1"),
        (compose_train, "batch_tokens=1000000000"),
        (compose_train, "epochs=1e300"),
        (compose_train, "epochs=1e-300"),
        (compose_train, "rate=nan"),
        (compose_train, "muon=1e-300"),
        (compose_train, "held_out=0"),
        (compose_train, "search.trials=1000000000"),
        (compose_train, "seed=4294967296"),
        (compose_datastore, "chunk_tokens=0"),
        (compose_datastore, "max_new_tokens=1000000000000"),
    ],
)
def test_numbers_of_other_commands(command: Any, override: str) -> None:
    needed = ["method=[medusa]"] if command is compose_train else []
    with pytest.raises(InputError, match=f"^{override.partition('=')[0]}=.*: expected a"):
        command([*needed, override])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+target.zzz=1", "target.zzz: no such setting"),
        ("++target.zzz.deep=1", "target.zzz: no such setting"),
        ("+target.dtyp=float32", "target.dtyp: no such setting; the nearest is dtype"),
        ("+target.draft.zzz=1", "target.draft.zzz: no such setting; expected path, revision, "),
        ("+suite.zzz=1", "suite.zzz: tasks.mini.suite.Mini takes no zzz; expected per_task, split or seed"),
        ("+engine.native.zzz=1", "engine.native.zzz: specbench.engine.native.Native takes no zzz; expected profile"),
        ("+method.pld.zzz=1", "method.pld.zzz: methods.pld.PromptLookup takes no zzz; expected max_ngram, "),
        ("+task.qa.zzz=1", "task.qa.zzz: no such setting; expected name"),
        ("+zzz=1", "zzz: no such setting"),
        ("+sampling.zzz=1", "sampling.zzz: no such setting; expected temperature, top_p, top_k, max_new_tokens"),
        ("~method.autoregressive", "~method.autoregressive: every method is compared with autoregressive"),
        ("~suite.per_task", "suite: tasks.mini.suite.Mini needs per_task"),
        ("~sampling.top_p", "sampling.top_p=null: expected a number above 0"),
    ],
)
def test_keys_that_nothing_reads_and_deletions(override: str, expected: str) -> None:
    assert expected in refusal(override)


def test_what_may_be_added_still_may() -> None:
    added = ["+target.shapes.mine={hidden_size: 512}", "+target.checkpoints.mine=x", "+target.config={model_type: llama}"]
    mine = "+method.mine={_target_: methods.oracle.Oracle, length: 4}"
    config = compose_run([*(one.replace("+target.config", "target.config") for one in added), mine, "~method.sps"])
    check_nodes(config)
    assert list(config.method) == ["autoregressive", "pld", "mine"]


def test_bounds_in_words() -> None:
    assert str(Within(1, 1024)) == "at least 1 and at most 1,024"
    assert not any(Within(0, 1).holds(value) for value in (math.nan, "0", None, True, -1, 10**400))


KNOWN = sorted({prefix for name, _ in flatten(compose_run([]).plain) for prefix in accumulate(name.split("."), "{}.{}".format)})
ODD = ["zzz", "hydra.launcher", "hydra.callbacks", "task@x", "method@method.x", "defaults", "_target_", "target._target_"]
override_keys = st.sampled_from([*KNOWN, *ODD, *GROUPS]) | st.text(min_size=1, max_size=6)
NASTY = """0 1 -1 1e300 1e-300 nan inf true null '' x [] {} [[]] {a:1} {_target_:os.system} ${target} ${nothing} ${oc.env:HOME}
??? a,b range(1,3) glob(*) {1:2} ${ {_args_:[1]} pld [pld,pdl] royal [royal,qa] /dev/zero ../x
{_target_:3} {_target_:null}""".split()
deep = st.sampled_from(["9" * 30, "9" * 5000, "[" * 200 + "]" * 200, "\0", "'\ud800'", "\N{RIGHT-TO-LEFT OVERRIDE}"])
override_values = st.sampled_from(NASTY) | deep | st.text(max_size=8) | st.integers().map(str) | st.floats().map(str)
prefixes = st.sampled_from(["", "", "+", "++", "~"])
words = st.tuples(prefixes, override_keys, override_values).map(lambda parts: f"{parts[0]}{parts[1]}={parts[2]}")


def compose_or_refuse(overrides: list[str]) -> None:
    try:
        check_nodes(compose_run(overrides))
    except InputError as error:
        assert str(error).strip()


def check_examples(number: int) -> None:
    quiet = [HealthCheck.too_slow]
    generate = given(st.lists(words, min_size=1, max_size=2))
    settings(max_examples=number, deadline=None, suppress_health_check=quiet)(generate(compose_or_refuse))()


def test_any_override_composes_or_is_refused() -> None:
    check_examples(EXAMPLES)


@pytest.mark.slow
def test_thousands_of_overrides() -> None:
    check_examples(2500)
