"""What goes wrong with servers: one line each, the run goes on, nothing is left running, and ports are free."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from specbench import ROOT
from specbench.analysis.loaded_run import read_run
from specbench.engine.served import Served
from specbench.errors import InputError
from specbench.running.execute import execute
from specbench.servers import client as clients
from specbench.servers.addresses import find_listeners
from specbench.servers.protocol import ServerError
from specbench.servers.started import StartedServer
from specbench.setup.compose import compose_run
from tests.fake_engine import Quiet
from tests.served import PROMPT, SAMPLING, build_server, describe_target, open_server
from tests.stand_in import Behaviour, StandIn

PROTOCOLS = ["vllm", "sglang", "llama_cpp", "openai"]
COMMAND = "{python} -m tests.stand_in llama_cpp {port} 4 0"


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def fail(protocol: str, faults: dict[str, Any], **changes: Any) -> str:
    """Return what an answer's failure says, and check that the next answer is as good as ever."""
    with StandIn(Behaviour(protocol, drafted=0, faults=faults)) as server:
        engine = open_server(protocol, {"autoregressive": server.url}, **changes)
        with pytest.raises(ServerError) as caught:
            engine.generate("autoregressive", PROMPT, SAMPLING)
        faults.clear()
        out = engine.generate("autoregressive", PROMPT, SAMPLING)
        assert len(out.output_ids) == 24 or getattr(out, "tokens", 0) == 24
        engine.close()
    message = str(caught.value)
    assert message.startswith(f"the server of autoregressive at {server.url}: ") and "\n" not in message
    return message.partition(": ")[2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_dies_in_mid_answer(protocol: str) -> None:
    assert "broke off" in fail(protocol, {"die_after": 5}) or "returned" in fail(protocol, {"die_after": 5})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_half_a_line(protocol: str) -> None:
    said = fail(protocol, {"half_after": 5})
    assert "broke off" in said or "did not say how many tokens" in said


def test_a_server_that_hangs_is_given_up() -> None:
    assert "no data within the time limit" in fail("llama_cpp", {"hang_after": 5, "hang_s": 1.0}, patience_s=0.3)


def test_a_server_that_is_slow_is_given_up_as_a_whole() -> None:
    with StandIn(Behaviour("llama_cpp", pause=0.05)) as server:
        engine = open_server("llama_cpp", {"autoregressive": server.url}, patience_s=0.3)
        with pytest.raises(ServerError, match=r"not complete after 0\.3 s"):
            engine.generate("autoregressive", PROMPT, SAMPLING)
        engine.close()


@pytest.mark.parametrize(("protocol", "ids", "said"), [
    ("vllm", [5, 6, 10_000], "it returned token 10000; the target has tokens 0 to 999"),
    ("sglang", [5, 6, -1], "it returned token -1"),
    ("llama_cpp", [5, 6], "it stopped after 2 tokens; 24 were requested"),
    ("vllm", [5, 1, 7, 1], "it continued after token 1"),
])  # fmt: skip
def test_other_ids_than_an_answer_of_the_target(protocol: str, ids: list[int], said: str) -> None:
    assert said in fail(protocol, {"ids": ids})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_more_tokens_than_asked(protocol: str) -> None:
    assert "it returned 27 tokens; 24 were requested" in fail(protocol, {"extra": 3})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cached_tokens(protocol: str) -> None:
    assert "it had 2 prompt tokens cached" in fail(protocol, {"cached": 2})


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_a_few_times(status: int) -> None:
    assert f"it answered {status}: busy" in fail("vllm", {"status": [status] * 4})
    with StandIn(Behaviour("vllm", faults={"status": [status] * 3})) as server:
        engine = open_server("vllm", {"autoregressive": server.url})
        assert len(engine.generate("autoregressive", PROMPT, SAMPLING).output_ids) == 24
        engine.close()


def test_other_errors_are_not_asked_again() -> None:
    faults = {"status": [400]}
    assert "it answered 400" in fail("vllm", faults)


def test_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match=rf"the server of autoregressive at http://127.0.0.1:{port}: .*refused"):
        open_server("llama_cpp", {"autoregressive": f"http://127.0.0.1:{port}"})


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6() -> None:
    try:
        server = StandIn(Behaviour("llama_cpp"), host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        engine = open_server("llama_cpp", {"autoregressive": server.url})
        assert len(engine.generate("autoregressive", PROMPT, SAMPLING).output_ids) == 24
        assert engine.find_processes("autoregressive") == {os.getpid()} | {one.pid for one in psutil.Process().children(True)}
        engine.close()


@pytest.mark.full
def test_a_run_goes_on_when_a_server_fails(tmp_path: Path) -> None:
    """pld's server breaks off after 13 tokens, which the probe does not reach."""
    with (
        StandIn(Behaviour("llama_cpp")) as plain,
        StandIn(Behaviour("llama_cpp", drafted=4, faults={"die_after": 13})) as broken,
    ):
        urls = f"engine.llama_cpp.urls={{autoregressive: '{plain.url}', pld: '{broken.url}'}}"
        settings = ["engine=[llama_cpp]", urls, "method=[pld]", "task=[qa]", "limit=2", "repeats=1", "sampling.max_new_tokens=20"]
        run = read_run(execute(compose_run([*settings, f"out={tmp_path}/run"]), Quiet()))
    found = {label: [one.error for one in run.trials if one.method == label] for label in ("autoregressive", "pld")}
    assert found["autoregressive"] == [None, None]
    assert (
        all(error and "its answer broke off" in error and "\n" not in error for error in found["pld"]) and len(found["pld"]) == 2
    )


# Servers started here


def list_listeners(port: int) -> list[int]:
    return sorted(find_listeners(f"http://127.0.0.1:{port}") or ())


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def test_a_started_server_ends_with_its_engine_and_leaves_its_port(tmp_path: Path) -> None:
    engine = open_started({"sps": COMMAND}, tmp_path)
    url = engine.describe_servers()["sps"]["url"]
    assert len(engine.generate("sps", PROMPT, SAMPLING).output_ids) == 24 and list_listeners(port_of(url))
    engine.close()
    assert not list_listeners(port_of(url)) and (tmp_path / "sps.log").is_file()


def open_started(commands: dict[str, str], logs: Path, **changes: Any) -> Any:
    engine = build_server("llama_cpp", {}, commands=commands, **changes)
    engine.logs = logs
    try:
        engine.open(describe_target(), dict.fromkeys(commands, Served()))
    except BaseException:
        engine.close()
        raise
    return engine


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("{python} -c 'print(\"no such model\"); exit(3)'", r"did not start: it ended; .*sps.log ends: no such model"),
        ("{python} -c 'import time; time.sleep(60)'", r"did not answer within 0.5 s"),
        ("no-such-program --port {port}", r"it ended; .*no-such-program"),
        ("server {model}", r"no value for 'model'"),
    ],
)
def test_a_server_that_does_not_start(command: str, said: str, tmp_path: Path) -> None:
    before = {one.pid for one in psutil.Process().children(True)}
    with pytest.raises(InputError, match=said):
        open_started({"sps": command}, tmp_path, start_s=0.5 if "sleep" in command else 20.0)
    assert {one.pid for one in psutil.Process().children(True)} <= before


def test_a_port_that_another_server_has_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StandIn(Behaviour("llama_cpp")) as other:
        monkeypatch.setattr("specbench.servers.started._find_port", lambda: port_of(other.url))
        with pytest.raises(InputError, match=r"the server of sps did not start: it ended; .*in use"):
            open_started({"sps": COMMAND}, tmp_path)


def test_a_key_is_taken_out_of_a_log(tmp_path: Path) -> None:
    words = "{python} -c 'print(\"the key is top-secret\", flush=True); import time; time.sleep(60)'"
    server = StartedServer("sps", words, {"python": sys.executable}, tmp_path / "sps.log", "top-secret")
    while "the key" not in (tmp_path / "sps.log").read_text():
        time.sleep(0.01)
    server.end()
    assert (tmp_path / "sps.log").read_text() == "the key is [key]\n"


@pytest.mark.full
def test_what_a_server_leaves_behind_ends_too(tmp_path: Path) -> None:
    """A leader that ends by itself leaves a child that ignores being asked to."""
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    leader = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(1); sys.exit(3)"
    server = StartedServer("sps", shlex.join([sys.executable, "-c", leader]), {}, tmp_path / "sps.log", None)
    while "up" not in server.read_log():
        time.sleep(0.01)
    pids = server.list_processes()
    assert len(pids) == 3
    assert not psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)[1]
    server.end()


HOLDER = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from specbench.servers.started import StartedServer
server = StartedServer("sps", sys.argv[1], {"python": sys.executable}, Path(sys.argv[2]), None)
server.await_health("/health", 20)
print(server.url, flush=True)
input()
"""


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_when_specbench_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, COMMAND, str(tmp_path / "sps.log")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as holder:
        assert holder.stdout is not None
        port = port_of(holder.stdout.readline().decode().strip())
        assert list_listeners(port)
        holder.send_signal(number)
        holder.wait(20)
    deadline = time.monotonic() + 20
    while list_listeners(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list_listeners(port)
