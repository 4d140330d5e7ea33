"""Training texts of drafters, as prompt ids and answer ids: the target's own answers, or given chats."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Sampling
from specbench.errors import InputError
from specbench.models.chat import decode_answer, render_prompt
from specbench.models.target import Target
from specbench.records.files import open_regular
from specbench.watch import Watch
from tasks.question import Question

GRAM = 13  # tokens that texts share: too many for chance (Brown et al. 2020, appendix C)
SIDE_BY_SIDE = 64  # conversations per batch
Keep = Callable[[int, Callable[[], list[Any]]], list[Any]]  # returns the batch of a number: one kept earlier, else a new one
WRONG = (ValueError, KeyError, TypeError, AttributeError)  # raised by rows of another form
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


@dataclass(frozen=True)
class Text:
    """Ids of a prompt (T,) and of the answer after it, with its end-of-sequence token."""

    prompt_ids: list[int]
    answer_ids: list[int]


def make_anew(number: int, make: Callable[[], list[Any]]) -> list[Any]:
    """Make the batch and keep it nowhere; a `Keep`."""
    return make()


def generate_answers(
    target: Target, questions: list[Question], max_new_tokens: int, watch: Watch, last: bool = False, keep: Keep = make_anew
) -> Iterator[Text]:
    """Yield every turn of every question with the target's greedy answer, in batches of similar length.

    last: yield only each question's last turn, whose prompt contains the others. keep: keeps finished batches.
    """
    sampling = Sampling(max_new_tokens=max_new_tokens, stop_token_ids=target.model.eos_ids)
    ordered = sorted(questions, key=lambda question: (len(question.turns), sum(map(len, question.turns))))
    for number, start in enumerate(range(0, len(ordered), SIDE_BY_SIDE)):
        group = ordered[start : start + SIDE_BY_SIDE]
        rows = keep(number, partial(_list_rows, target, group, sampling, last))
        yield from (Text(**row) for row in rows)
        watch("the target answers", min(start + SIDE_BY_SIDE, len(ordered)), len(ordered))


def _list_rows(target: Target, group: list[Question], sampling: Sampling, last: bool) -> list[dict[str, list[int]]]:
    return [asdict(text) for text in _answer_group(target, group, sampling, last)]


def continue_prompts(target: Target, prompts: list[list[int]], sampling: Sampling) -> list[Generation]:
    """Decode prompts, (T,) each, side by side and autoregressively."""
    drafter = Autoregressive()
    drafter.bind(target.model)
    on_device = [torch.tensor(prompt, device=target.model.device) for prompt in prompts]
    return generate(target.model, drafter, on_device, sampling)


def _answer_group(target: Target, group: list[Question], sampling: Sampling, last: bool) -> Iterator[Text]:
    """Yield the texts of one batch; a conversation ends before a prompt that does not fit the context."""
    chats: list[list[tuple[str, str | None]]] = [[] for _ in group]
    prompts: dict[int, list[int]] = {i: [] for i in range(len(group))}
    for turn in range(max(len(question.turns) for question in group)):
        turns = {i: group[i].turns[turn] for i in prompts if turn < len(group[i].turns)}
        rendered = {i: render_prompt(target.chat, [*chats[i], (text, None)], target.tokenizer) for i, text in turns.items()}
        prompts = {i: prompt for i, prompt in rendered.items() if len(prompt) < target.model.context}
        if not prompts:
            return
        outs = continue_prompts(target, list(prompts.values()), sampling)
        for (i, prompt), out in zip(prompts.items(), outs, strict=True):
            if not last or turn + 1 == len(group[i].turns):
                yield Text(prompt, out.output_ids)
            chats[i].append((turns[i], decode_answer(target.chat, target.tokenizer, out.output_ids)))


def write_texts(path: Path, texts: Iterator[Text]) -> None:
    """Write one JSON line per text; the file appears once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(text)) + "\n" for text in texts)
    part.rename(path)


def read_texts(path: Path, target: Target) -> list[Text]:
    """Read a file of `write_texts`, or of chats: `conversations` (ShareGPT's from, value) or `messages` (role, content).

    Only user and assistant messages are read; the rest of a prompt comes from the target's chat format, as in a run. Raises
    InputError with file and line.
    """
    open_regular(path).close()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    texts: list[Text] = []
    for number, line in enumerate(lines, start=1):
        try:
            texts += list(_parse_texts(json.loads(line), target))
        except (*WRONG, RecursionError) as error:
            raise InputError(
                f"{path}:{number}: expected prompt_ids and answer_ids, conversations or messages: {error!r}"
            ) from None
    if not texts:
        raise InputError(f"{path}: holds no answer")
    return texts


def _check_ids(ids: list[int], target: Target) -> list[int]:
    """Return ids (T,) unchanged. Raises ValueError unless all are ids of the target's vocabulary."""
    vocabulary = target.model.config.vocab_size
    wrong = [token for token in ids if type(token) is not int or not 0 <= token < vocabulary]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is not a token id below {vocabulary}")
    return ids


def _parse_texts(row: dict[str, Any], target: Target) -> Iterator[Text]:
    if "prompt_ids" in row:
        yield Text(_check_ids(row["prompt_ids"], target), _check_ids(row["answer_ids"], target))
        return
    turns: list[tuple[str, str | None]] = []
    for question, answer in iter_exchanges(row["messages"] if "messages" in row else row["conversations"]):
        prompt = render_prompt(target.chat, [*turns, (question, None)], target.tokenizer)
        ids = target.tokenizer(answer, add_special_tokens=False).input_ids
        yield Text(prompt, [*ids, *target.model.eos_ids[:1]])
        turns.append((question, answer))


def iter_exchanges(messages: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield question and answer of every turn of a chat: messages of role and content, or ShareGPT's from and value."""
    question = ""
    for message in messages:
        role = ROLES.get(message.get("role") or message["from"])
        content = message["content"] if "content" in message else message["value"]
        if role == "user":
            question = content
        elif role == "assistant":
            yield question, content
