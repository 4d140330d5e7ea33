"""Every convention on a trace small enough for pencil and paper.

Turn 1, three steps: drafts 3, 3, 3 deep; accepts 3, 0, 2; commits 4, 1, 3.
Turn 2, three steps: drafts 2, none, 3 deep; accepts 1, 0, 2; commits 2, 1, 2 (the second accepted token ends the text).
The first draft of turn 2 is a tree of five nodes; all others are chains.
"""

import math

import pytest

from specbench.analysis import acceptance
from specbench.analysis.acceptance import Steps
from specbench.analysis.metrics import tabulate_conventions, tabulate_positions
from tests.fake_run import failed, trial

ONE = Steps([3, 3, 3], [3, 3, 3], [3, 0, 2], [4, 1, 3])
TWO = Steps([2, 0, 3], [5, 0, 3], [1, 0, 2], [2, 1, 2])
TURNS = [ONE, TWO]


def test_means_over_steps_and_over_turns() -> None:
    assert acceptance.micro(TURNS) == pytest.approx(13 / 6), "8 + 5 tokens in 3 + 3 steps"
    assert acceptance.macro(TURNS) == pytest.approx((8 / 3 + 5 / 3) / 2)
    assert acceptance.micro(TURNS, prefill=True) == pytest.approx(15 / 8), "two tokens and two forwards more"
    assert acceptance.macro(TURNS, prefill=True) == pytest.approx((9 / 4 + 6 / 4) / 2)


def test_rates_by_draft_token_and_by_position() -> None:
    assert acceptance.rate(TURNS) == pytest.approx(8 / 17), "5 + 3 accepted of 9 + 8 nodes"
    places = acceptance.positions(TURNS)
    assert [place.joint for place in places] == pytest.approx([4 / 6, 3 / 6, 1 / 6])
    assert [place.conditional for place in places] == pytest.approx([4 / 5, 3 / 4, 1 / 3]), (
        "five draft; four get to 2, three to 3"
    )


def test_vllm_counts_steps_that_draft() -> None:
    counters = acceptance.count_vllm(TURNS)
    assert (counters.drafts, counters.draft_tokens, counters.accepted_tokens) == (5, 17, 8)
    assert counters.accepted_per_position == [4, 3, 1]
    assert counters.acceptance_length == pytest.approx(1 + 8 / 5) and counters.acceptance_rate == pytest.approx(8 / 17)
    assert counters.per_position == pytest.approx([4 / 5, 3 / 5, 1 / 5])


def test_sglang_counts_prefills_token_but_not_its_forward() -> None:
    counters = acceptance.count_sglang(TURNS)
    assert (counters.completion_tokens, counters.verifications, counters.proposed_drafts, counters.correct_drafts) == (
        15,
        6,
        17,
        8,
    )
    assert counters.accept_length == pytest.approx(15 / 6) and counters.accept_rate == pytest.approx(8 / 17)


def test_speed_benchs_chunks_begin_with_prefills() -> None:
    (row,) = tabulate_conventions([trial("pld", [4, 1, 3], 1.0)]).to_dict("records")
    assert row["speed_bench_average_al"] == 9 / 4, "prefill's token and 8 more in 1 + 3 chunks"


def test_where_every_step_drafts_and_nothing_is_cut_off_the_conventions_of_steps_agree() -> None:
    whole = [ONE]
    micro, joint = acceptance.micro(whole), [place.joint for place in acceptance.positions(whole)]
    assert micro == acceptance.macro(whole)
    assert micro == pytest.approx(acceptance.count_vllm(whole).acceptance_length) == pytest.approx(1 + sum(joint))


def test_nothing_gives_nothing() -> None:
    alone = [Steps([0, 0], [0, 0], [0, 0], [1, 1])]
    assert acceptance.micro(alone) == 1 and acceptance.positions(alone) == [] and math.isnan(acceptance.rate(alone))
    assert math.isnan(acceptance.count_vllm(alone).acceptance_length)
    for convention in (acceptance.micro, acceptance.macro, acceptance.rate):
        assert math.isnan(convention([]))


def test_turns_come_from_records_and_agree_with_the_reports_positions() -> None:
    trials = [
        trial("pld", [4, 1, 3], 1.0, depth=[3, 3, 3], drafted=[3, 3, 3], accepted=[3, 0, 2]),
        trial("pld", [2, 1, 2], 1.0, question_id=2, depth=[2, 0, 3], drafted=[5, 0, 3], accepted=[1, 0, 2]),
    ]
    assert acceptance.collect_steps([*trials, failed("pld", question_id=3)]) == TURNS
    rows = tabulate_positions(trials)
    assert rows["joint"].tolist() == pytest.approx([4 / 6, 3 / 6, 1 / 6])
    assert rows["conditional"].tolist() == pytest.approx([4 / 5, 3 / 4, 1 / 3])
    assert rows["vllm_acceptance_rate"].tolist() == pytest.approx([4 / 5, 3 / 5, 1 / 5])
    (counted,) = tabulate_conventions(trials).to_dict("records")
    assert counted["micro"] == pytest.approx(13 / 6) and counted["sglang_accept_length"] == pytest.approx(15 / 6)
    assert counted["vllm_acceptance_length"] == pytest.approx(13 / 5)
