"""A stand-in for servers that cannot run here: it speaks the documented messages of vLLM, SGLang, llama.cpp and OpenAI.

It decodes no model: an answer is a rule over the prompt, the same with and without drafts. Faults are set from outside.
    python -m tests.stand_in PROTOCOL PORT DRAFTED PAUSE    serves until it is killed
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EOS = 1
VOCABULARY = 1000
PROMPTS_PATH = {"vllm": "/v1/completions", "openai": "/v1/completions", "sglang": "/generate", "llama_cpp": "/completion"}


@dataclass
class Behaviour:
    """What a stand-in does. drafted: tokens of every draft, 0 for a server without speculation. tells: how it counts drafts.

    faults, by name: `status` (a list of codes for the next requests), `cached`, `extra` (tokens more than asked), `ids` (what it
    returns instead), `fickle` (its answers vary), `die_after`, `hang_after`, `half_after` (tokens), `renamed` (a counter's name),
    `no_ids`, `echo`, `refuse` (the number of one request).
    """

    protocol: str
    drafted: int = 0
    tells: str = "steps"  # or sums, counters, nothing
    pause: float = 0.0  # seconds per step
    ends_after: int | None = None  # tokens after which the answer ends by itself
    faults: dict[str, Any] = field(default_factory=dict)
    seen: list[dict[str, Any]] = field(default_factory=list)  # bodies
    keys: list[str | None] = field(default_factory=list)
    totals: list[int] = field(default_factory=lambda: [0, 0])


def build_answer(prompt: list[int], most: int, ends_after: int | None) -> list[int]:
    """Return the ids that follow a prompt; the last is EOS if the answer ends by itself."""
    ids = [2 + (sum(prompt) * 31 + 17 * i + i * i) % (VOCABULARY - 2) for i in range(most)]
    if ends_after is not None and ends_after <= most:
        ids = [*ids[: ends_after - 1], EOS]
    return ids


def split_steps(ids: list[int], drafted: int) -> list[tuple[int, int, list[int]]]:
    """Return (drafted, accepted, tokens) of every step after the prefill's token; every third step drafts nothing."""
    steps, at, number = [], 1, 0
    while at < len(ids):
        draft = 0 if number % 3 == 2 else drafted
        kept = 0 if not draft else (number * 7) % (draft + 1)
        tokens = ids[at : at + kept + 1]
        steps.append((draft, kept, tokens))
        at, number = at + kept + 1, number + 1
    return steps


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        page = self._find_page(self.path)
        if page is None:
            return self._send(404, "no such page", "text/plain")
        kind = "text/plain" if isinstance(page, str) else "application/json"
        self._send(200, page if isinstance(page, str) else json.dumps(page), kind)

    def _find_page(self, path: str) -> Any:
        known, drafts = self.behaviour, self.behaviour.drafted > 0
        pages: dict[tuple[str, str], Any] = {
            ("vllm", "/version"): {"version": "0.32.0"},
            ("sglang", "/server_info"): {"version": "0.5.9", "speculative_algorithm": "EAGLE3" if drafts else None},
            ("llama_cpp", "/props"): {"build_info": "b11549", "total_slots": 1},
            ("llama_cpp", "/slots"): [{"id": 0, "speculative": drafts}],
        }
        if path == "/metrics" and known.protocol in ("vllm", "llama_cpp"):
            return self._format_metrics() if drafts or known.protocol == "llama_cpp" else "# nothing\n"
        if path in ("/health", "/v1/models"):
            return {"data": [{"id": "stand-in"}]}
        return pages.get((known.protocol, path))

    def _format_metrics(self) -> str:
        start = "vllm" if self.behaviour.protocol == "vllm" else "llamacpp"
        renamed = self.behaviour.faults.get("renamed", "")
        names = [f"{start}:spec_decode_num_{what}_tokens{renamed}_total" for what in ("draft", "accepted")]
        labels = '{engine="0"}' if start == "vllm" else ""
        return "".join(
            f"# TYPE {name} counter\n{name}{labels} {total}\n" for name, total in zip(names, self.behaviour.totals, strict=True)
        )

    def do_POST(self) -> None:
        known = self.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known.seen.append(body)
        known.keys.append(self.headers.get("Authorization"))
        if len(known.seen) == known.faults.get("refuse"):
            return self._send(400, "not this one", "text/plain")
        if known.faults.get("status"):
            return self._send(known.faults["status"].pop(0), f"busy; you sent {self.headers.get('Authorization')}", "text/plain")
        if self.path != PROMPTS_PATH[known.protocol]:
            return self._send(404, "no such page", "text/plain")
        if known.faults.get("echo"):
            return self._send(401, f"wrong key {self.headers.get('Authorization')}", "text/plain")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self._stream(body)

    def _stream(self, body: dict[str, Any]) -> None:
        known, sent = self.behaviour, 0
        for event, tokens in build_events(known, body):
            for name in ("die_after", "hang_after", "half_after"):
                if name in known.faults and sent >= known.faults[name]:
                    return self._break_off(name, event)
            sent += tokens
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
            time.sleep(known.pause)
        self.wfile.write(b"data: [DONE]\n\n")

    def _break_off(self, name: str, event: dict[str, Any]) -> None:
        if name == "hang_after":
            time.sleep(self.behaviour.faults["hang_s"])
        if name == "half_after":
            line = f"data: {json.dumps(event)}".encode()
            self.wfile.write(line[: len(line) // 2])
            self.wfile.flush()

    def _send(self, status: int, text: str, kind: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(content)


def build_events(known: Behaviour, body: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the events of an answer, each with its number of tokens."""
    prompt, most = read_request(known, body)
    ids = build_answer(prompt, most + known.faults.get("extra", 0), known.ends_after)
    ids = known.faults.get("ids", ids)
    if known.faults.get("fickle"):
        ids = [2 + (one + len(known.seen)) % (VOCABULARY - 2) for one in ids]
    steps = split_steps(ids, known.drafted)
    known.totals[0] += sum(drafted for drafted, _, _ in steps)
    known.totals[1] += sum(kept for _, kept, _ in steps)
    yield from BUILDERS[known.protocol](known, prompt, ids, steps)


def read_request(known: Behaviour, body: dict[str, Any]) -> tuple[list[int], int]:
    if known.protocol == "sglang":
        return body["input_ids"], body["sampling_params"]["max_new_tokens"]
    prompt = body["prompt"] if isinstance(body["prompt"], list) else list(body["prompt"].encode())
    return prompt, body["n_predict" if known.protocol == "llama_cpp" else "max_tokens"]


Steps = list[tuple[int, int, list[int]]]


def build_vllm(known: Behaviour, prompt: list[int], ids: list[int], steps: Steps) -> Iterator[tuple[dict[str, Any], int]]:
    pieces = [ids[:1], *(tokens for _, _, tokens in steps)]
    for number, tokens in enumerate(pieces):
        choice: dict[str, Any] = {"index": 0, "text": spell(tokens), "token_ids": tokens, "finish_reason": None}
        if known.faults.get("no_ids"):
            choice["token_ids"] = None
        if number == 0:
            choice["prompt_token_ids"] = prompt
        if number == len(pieces) - 1:
            choice["finish_reason"] = "stop" if ids[-1] == EOS else "length"
        yield {"choices": [choice]}, len(tokens)
    last: dict[str, Any] = {"choices": [], "usage": build_usage(known, prompt, ids)}
    if known.tells in ("steps", "sums"):
        last["metrics"] = {"time_to_first_token_ms": 5.0, "generation_time_ms": 40.0}
        last["metrics"] |= {"speculative_decoding": build_vllm_counts(known, steps)} if known.drafted else {}
    yield last, 0


def build_vllm_counts(known: Behaviour, steps: Steps) -> dict[str, Any]:
    drafting = [(drafted, kept) for drafted, kept, _ in steps if drafted]
    counts: dict[str, Any] = {
        "num_spec_steps": len(drafting),
        "num_draft_tokens": sum(drafted for drafted, _ in drafting),
        "num_accepted_draft_tokens": sum(kept for _, kept in drafting),
    }
    if known.tells == "steps":
        counts |= {"per_step_drafted": [drafted for drafted, _ in drafting], "per_step_accepted": [kept for _, kept in drafting]}
    return counts


def build_usage(known: Behaviour, prompt: list[int], ids: list[int]) -> dict[str, Any]:
    cached = {"prompt_tokens_details": {"cached_tokens": known.faults.get("cached", 0)}}
    return {"prompt_tokens": len(prompt), "completion_tokens": len(ids), **cached}


def build_sglang(known: Behaviour, prompt: list[int], ids: list[int], steps: Steps) -> Iterator[tuple[dict[str, Any], int]]:
    ends = [1]
    for _, _, tokens in steps:
        ends.append(ends[-1] + len(tokens))
    for number, end in enumerate(ends):
        about: dict[str, Any] = {
            "prompt_tokens": len(prompt),
            "cached_tokens": known.faults.get("cached", 0),
            "completion_tokens": end,
        }
        if number == len(ends) - 1:
            stop = ids[-1] == EOS
            about["finish_reason"] = {"type": "stop", "matched": EOS} if stop else {"type": "length", "length": len(ids)}
            about |= build_sglang_counts(known, steps) if known.drafted else {}
        yield {"text": spell(ids[:end]), "output_ids": ids[:end], "meta_info": about}, end - (ends[number - 1] if number else 0)


def build_sglang_counts(known: Behaviour, steps: Steps) -> dict[str, Any]:
    renamed = known.faults.get("renamed", "")
    return {
        "spec_verify_ct": len(steps),
        f"spec_num_correct_drafts{renamed}": sum(kept for _, kept, _ in steps),
        f"spec_num_proposed_drafts{renamed}": sum(drafted for drafted, _, _ in steps),
    }


def build_llama(known: Behaviour, prompt: list[int], ids: list[int], steps: Steps) -> Iterator[tuple[dict[str, Any], int]]:
    cached = known.faults.get("cached", 0)
    times: dict[str, Any] = {"cache_n": cached, "prompt_n": len(prompt) - cached, "prompt_ms": 5.0, "predicted_ms": 0.001}
    yield {"content": spell(ids[:1]), "tokens": ids[:1], "stop": False, "timings": dict(times)}, 1
    drafted = accepted = 0
    for number, (draft, kept, tokens) in enumerate(steps, start=1):
        drafted, accepted = drafted + draft, accepted + kept
        times["predicted_ms"] = 2.0 * number
        if drafted and known.tells == "steps":
            times |= {"draft_n": drafted, "draft_n_accepted": accepted}
        for token in tokens:
            yield {"content": spell([token]), "tokens": [token], "stop": False, "timings": dict(times)}, 1
    stop = "eos" if ids[-1] == EOS else "limit"
    yield {"content": "", "tokens": [], "stop": True, "stop_type": stop, "timings": dict(times)}, 0


def build_openai(known: Behaviour, prompt: list[int], ids: list[int], steps: Steps) -> Iterator[tuple[dict[str, Any], int]]:
    for number, token in enumerate(ids):
        reason = None if number < len(ids) - 1 else "stop" if token == EOS else "length"
        yield {"choices": [{"index": 0, "text": spell([token]), "finish_reason": reason}]}, 1
    yield {"choices": [], "usage": build_usage(known, prompt, ids)}, 0


def spell(ids: list[int]) -> str:
    return "".join(f" w{token}" for token in ids if token != EOS)


BUILDERS = {"vllm": build_vllm, "sglang": build_sglang, "llama_cpp": build_llama, "openai": build_openai}


class StandIn:
    """A stand-in that serves in threads of this process; a context manager."""

    def __init__(self, behaviour: Behaviour, host: str = "127.0.0.1", port: int = 0) -> None:
        handler = type("OneHandler", (Handler,), {"behaviour": behaviour})
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = type(
            "OneServer", (ThreadingHTTPServer,), {"address_family": family, "daemon_threads": True, "request_queue_size": 128}
        )
        self.behaviour, self.server = behaviour, server((host, port), handler)
        self.scheme, self.host = "http", f"[{host}]" if ":" in host else host

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.server.server_address[1]}"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def main() -> None:
    protocol, port, drafted, pause = sys.argv[1:5]
    with StandIn(Behaviour(protocol, drafted=int(drafted), pause=float(pause)), port=int(port)):
        threading.Event().wait()


if __name__ == "__main__":
    main()
