"""Servers as engines, on a stand-in: requests that leave nothing to a server's defaults, and steps rebuilt from what it says.

The stand-in speaks the documented messages of vLLM and SGLang, which cannot run here; test_llama_cpp.py drives a real server.
"""

from __future__ import annotations

import json
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from specbench.engine.server import PAUSE
from specbench.errors import InputError
from specbench.servers.protocol import Answer, ServerError, fit_steps
from tests.served import PROMPT, SAMPLING, build_server, open_server
from tests.stand_in import EOS, Behaviour, StandIn, build_answer, spell, split_steps

PROTOCOLS = ["vllm", "sglang", "llama_cpp"]


@pytest.mark.parametrize("ends_after", [None, 1, 2, 9])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ids_and_steps_are_those_of_the_server(protocol: str, ends_after: int | None) -> None:
    ids = build_answer(PROMPT, SAMPLING.max_new_tokens, ends_after)
    steps = split_steps(ids, 4)
    with StandIn(Behaviour(protocol, drafted=4, ends_after=ends_after)) as server:
        engine = open_server(protocol, {"sps": server.url})
        out = engine.generate("sps", PROMPT, SAMPLING)
        engine.close()
    assert out.output_ids == ids and out.finish_reason == ("length" if ends_after is None else "eos")
    if protocol == "sglang":
        sums = {"drafted": sum(d for d, _, _ in steps), "accepted": sum(k for _, k, _ in steps), "steps": len(steps)}
        assert out.sums == sums and not out.sees_steps
    elif protocol == "vllm" and not out.sees_steps:  # a step of one token may have drafted or not
        assert out.sums is not None and out.sums["drafted"] == sum(d for d, _, _ in steps) and out.sums["steps"] == len(steps)
    else:
        assert out.committed == [len(tokens) for _, _, tokens in steps]
        assert (out.drafted, out.accepted) == ([d for d, _, _ in steps], [min(k, len(tokens)) for _, k, tokens in steps])


def test_steps_without_a_draft_are_placed_by_the_events_of_vllm() -> None:
    answer = Answer(ids=[0] * 9, drafted=[4, 4], accepted=[2, 3], pieces=[1, 3, 1, 4])
    fit_steps(answer)
    assert (answer.drafted, answer.accepted, answer.committed) == ([4, 0, 4], [2, 0, 3], [3, 1, 4])


@pytest.mark.parametrize(
    ("pieces", "drafted", "accepted", "expected"),
    [
        ([1, 1, 1, 3], [4, 4], [0, 2], (8, 2, 3)),  # which of the two ones drafted?
        ([1, 6], [4, 4], [2, 2], (8, 4, 2)),  # two steps in one event
        ([1, 3, 2], [4, 4], [2, 3], (8, 4, 2)),  # the last step was cut: 3 of its drafts were kept, 2 tokens written
    ],
)
def test_what_cannot_be_placed_becomes_sums(
    pieces: list[int], drafted: list[int], accepted: list[int], expected: tuple[int, int, int]
) -> None:
    answer = Answer(ids=[0] * sum(pieces), drafted=list(drafted), accepted=list(accepted), pieces=pieces)
    fit_steps(answer)
    if answer.drafted is not None and answer.accepted is not None:
        found: tuple[int, int, int | None] = (sum(answer.drafted), sum(answer.accepted), len(answer.drafted))
    else:
        assert answer.counts is not None
        found = (answer.counts.drafted, answer.counts.accepted, answer.counts.steps)
    assert found == expected


def test_counts_that_make_no_answer_are_refused() -> None:
    with pytest.raises(ServerError, match="does not give 3 tokens"):
        fit_steps(Answer(ids=[0] * 3, drafted=[4, 4, 4], accepted=[4, 4, 0], pieces=[1, 2]))


@pytest.mark.parametrize(("tells", "steps"), [("sums", True), ("counters", False)])
def test_vllm_without_lists_gives_sums(tells: str, steps: bool) -> None:
    with StandIn(Behaviour("vllm", drafted=4, tells=tells)) as server:
        engine = open_server("vllm", {"sps": server.url})
        engine.probe("sps", PROMPT, SAMPLING)
        out = engine.generate("sps", PROMPT, SAMPLING)
        engine.close()
    made = split_steps(build_answer(PROMPT, 24, None), 4)
    expected = {"drafted": sum(d for d, _, _ in made), "accepted": sum(k for _, k, _ in made)}
    assert out.sums == (expected | {"steps": len(made)} if steps else expected)


@pytest.mark.parametrize("protocol", [*PROTOCOLS, "openai"])
def test_every_request_says_how_to_choose_tokens(protocol: str) -> None:
    sampling = replace(SAMPLING, temperature=0.6, top_p=0.9, top_k=7, seed=11)
    with StandIn(Behaviour(protocol)) as server:
        engine = open_server(protocol, {"autoregressive": server.url})
        for one in (SAMPLING, sampling):
            engine.generate("autoregressive", PROMPT, one)
        engine.close()
    greedy, sampled = [body.get("sampling_params", {}) | body for body in server.behaviour.seen]
    assert greedy["temperature"] == 0 and sampled["temperature"] == 0.6 and sampled["top_p"] == 0.9
    assert all(
        next(body[name] for name in ("max_tokens", "n_predict", "max_new_tokens") if name in body) == 24
        for body in (greedy, sampled)
    )
    if protocol in ("vllm", "sglang"):
        assert greedy["repetition_penalty"] == 1 and greedy["top_k"] == -1 and sampled["top_k"] == 7
        assert greedy["stop_token_ids"] == [EOS] and greedy["ignore_eos"] is False
    if protocol == "llama_cpp":
        assert greedy["samplers"] == ["temperature"] and greedy["cache_prompt"] is False


def test_a_server_of_texts_gives_texts_and_the_clock_here() -> None:
    with StandIn(Behaviour("openai", ends_after=9)) as server:
        engine = open_server("openai", {"autoregressive": server.url}, prompts="text")
        with pytest.raises(InputError, match="11 prompt tokens|counted"):  # a text of other tokens than the prompt's
            engine.probe("autoregressive", PROMPT, SAMPLING)
        engine.decode = lambda ids: "x" * len(ids)
        out = engine.generate("autoregressive", PROMPT, SAMPLING)
        engine.close()
    assert out.text == spell(build_answer([120] * 4, 24, 9)) and out.tokens == 9 and out.output_ids == []
    assert 0 < out.client_first_s <= out.client_last_s and out.prefill_s == out.client_first_s


def test_a_servers_own_clock_counts_where_it_tells_the_time() -> None:
    with StandIn(Behaviour("llama_cpp", drafted=4)) as server:
        engine = open_server("llama_cpp", {"sps": server.url})
        out = engine.generate("sps", PROMPT, SAMPLING)
        engine.close()
    assert out.prefill_s == 0.005 and out.decode_s == pytest.approx(0.002 * out.steps)
    assert out.client_last_s != out.decode_s


def test_an_answer_is_read_in_pieces_but_not_piece_by_piece() -> None:
    """If the whole answer has already arrived, the client does not pause between its events."""
    long = replace(SAMPLING, max_new_tokens=400)
    with StandIn(Behaviour("llama_cpp")) as server:
        engine = open_server("llama_cpp", {"autoregressive": server.url})
        out = engine.generate("autoregressive", PROMPT, long)
        engine.close()
    assert len(out.output_ids) == 400 and out.client_last_s < 400 * PAUSE / 4


# What is refused before the run


def test_two_methods_cannot_share_a_server() -> None:
    with StandIn(Behaviour("llama_cpp")) as server, pytest.raises(InputError, match="autoregressive and sps share the server"):
        open_server("llama_cpp", {"autoregressive": server.url, "sps": server.url + "/"})


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("label", "drafted", "said"), [("autoregressive", 4, "it drafts"), ("sps", 0, "without speculation")])
def test_a_server_must_speculate_as_asked(protocol: str, label: str, drafted: int, said: str) -> None:
    with StandIn(Behaviour(protocol, drafted=drafted)) as server, pytest.raises(InputError, match=said):
        open_server(protocol, {label: server.url})


@pytest.mark.parametrize(
    ("protocol", "faults", "said"),
    [
        ("vllm", {"cached": 3}, "3 prompt tokens cached"),
        ("sglang", {"cached": 3}, "3 prompt tokens cached"),
        ("llama_cpp", {"cached": 3}, "3 prompt tokens cached"),
        ("vllm", {"no_ids": True}, "it returned no token"),
        ("vllm", {"fickle": True}, "gives a prompt two different answers at temperature 0"),
        ("sglang", {"renamed": "_x"}, "it speculates, but reports none of spec_num_proposed_drafts"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_the_probe(protocol: str, faults: dict[str, Any], said: str) -> None:
    with StandIn(Behaviour(protocol, drafted=4, faults=faults)) as server:
        engine = open_server(protocol, {"sps": server.url})
        with pytest.raises(InputError, match=said):
            engine.probe("sps", PROMPT, SAMPLING)
        engine.close()


def test_renamed_counters_are_no_zeros() -> None:
    with StandIn(Behaviour("vllm", drafted=4, tells="counters", faults={"renamed": "_x"})) as server:
        engine = open_server("vllm", {"sps": server.url})
        with pytest.raises(InputError, match=r"the server of sps at .*/metrics lacks vllm:spec_decode_num_draft_tokens_total"):
            engine.probe("sps", PROMPT, SAMPLING)
        engine.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:80", "is not an address"),
        ("ftp://host", "is not an address"),
        ("http://", "is not an address"),
        ("http://host:99999", "is not an address"),
        ("http://a..b", "is not an address"),
        (f"http://{'x' * 70}.org", "is not an address"),
        ("http://me:secret@host", "expected only an address"),
        ("http://host/?key=secret", "expected only an address"),
    ],
)
def test_an_address_is_an_address_alone(url: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_server("vllm", {"autoregressive": url})


# Keys and certificates


def test_a_key_comes_from_the_environment_and_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="key=MY_KEY: this environment variable is not set"):
        build_server("vllm", {"autoregressive": "http://127.0.0.1:1"}, key="MY_KEY")
    monkeypatch.setenv("MY_KEY", "top-secret")
    with StandIn(Behaviour("vllm", faults={"echo": True})) as server:
        engine = open_server("vllm", {"autoregressive": server.url}, key="MY_KEY")
        with pytest.raises(ServerError) as caught:
            engine.generate("autoregressive", PROMPT, SAMPLING)
        engine.close()
    assert server.behaviour.keys == ["Bearer top-secret"]
    assert "it answered 401: wrong key Bearer [key]" in str(caught.value)
    assert "top-secret" not in json.dumps(engine.describe_servers())


def test_no_part_of_a_key_survives_where_a_reply_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s" * 300 + "\n")
    with StandIn(Behaviour("vllm", faults={"echo": True})) as server:
        engine = open_server("vllm", {"autoregressive": server.url}, key="MY_KEY")
        with pytest.raises(ServerError) as caught:
            engine.generate("autoregressive", PROMPT, SAMPLING)
        engine.close()
    assert "sss" not in str(caught.value) and "[key]" in str(caught.value)
    monkeypatch.setenv("MY_KEY", "two\nlines")
    with pytest.raises(InputError, match="other than printable ASCII") as refused:
        build_server("vllm", {"autoregressive": "http://127.0.0.1:1"}, key="MY_KEY")
    assert "two" not in str(refused.value)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def serve_tls(authority: trustme.CA, behaviour: Behaviour) -> StandIn:
    server = StandIn(behaviour)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
    server.scheme = "https"
    return server


def test_a_certificate_is_checked_unless_switched_off_by_name(authority: trustme.CA, tmp_path: Path) -> None:
    with serve_tls(authority, Behaviour("llama_cpp")) as server:
        urls = {"autoregressive": server.url}
        with pytest.raises(InputError, match="CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
            open_server("llama_cpp", urls)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        for trust in ({"certificates": str(tmp_path / "ca.pem")}, {"check_certificates": False}):
            engine = open_server("llama_cpp", urls, **trust)
            assert len(engine.generate("autoregressive", PROMPT, SAMPLING).output_ids) == 24
            engine.close()
    with pytest.raises(InputError, match=r"certificates=.*missing.pem"):
        open_server("llama_cpp", urls, certificates=str(tmp_path / "missing.pem"))
