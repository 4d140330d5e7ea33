"""What drafters are trained on: answers that the target wrote itself, or anyone's chats; prompt ids and answer ids."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.errors import InputError
from specbench.models.chat import decode_answer, render_prompt
from specbench.models.target import Target
from tasks.question import Question

SIDE_BY_SIDE = 64  # conversations that the target answers at once
WRONG = (ValueError, KeyError, TypeError, AttributeError)  # what reading a row of another form raises
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


@dataclass(frozen=True)
class Text:
    """A prompt (T,) and the answer that stands behind it, its end-of-sequence token included."""

    prompt_ids: list[int]
    answer_ids: list[int]


def generate_answers(
    target: Target, questions: list[Question], max_new_tokens: int, watch: Callable[[str, int, int], None], last: bool = False
) -> Iterator[Text]:
    """Every turn of every question with the target's own greedy answer, in batches of questions of like length.

    last: of each question only the last turn, whose prompt holds those before.
    """
    drafter = Autoregressive()
    drafter.bind(target.model)
    sampling = Sampling(max_new_tokens=max_new_tokens, stop_token_ids=target.model.eos_ids)
    ordered = sorted(questions, key=lambda question: (len(question.turns), sum(map(len, question.turns))))
    for start in range(0, len(ordered), SIDE_BY_SIDE):
        group = ordered[start : start + SIDE_BY_SIDE]
        yield from _answer_group(target, drafter, group, sampling, last)
        watch("the target answers", min(start + SIDE_BY_SIDE, len(ordered)), len(ordered))


def _answer_group(
    target: Target, drafter: Autoregressive, group: list[Question], sampling: Sampling, last: bool
) -> Iterator[Text]:
    """A conversation ends before a prompt that does not fit the context."""
    said: list[list[tuple[str, str | None]]] = [[] for _ in group]
    prompts: dict[int, list[int]] = {at: [] for at in range(len(group))}
    for turn in range(max(len(question.turns) for question in group)):
        going = [at for at in prompts if turn < len(group[at].turns)]
        asked = {at: render_prompt(target.chat, [*said[at], (group[at].turns[turn], None)], target.tokenizer) for at in going}
        prompts = {at: prompt for at, prompt in asked.items() if len(prompt) < target.model.context}
        if not prompts:
            return
        on_device = [torch.tensor(prompt, device=target.model.device) for prompt in prompts.values()]
        outs = generate(target.model, drafter, on_device, sampling)
        for (at, prompt), out in zip(prompts.items(), outs, strict=True):
            if not last or turn + 1 == len(group[at].turns):
                yield Text(prompt, out.output_ids)
            said[at].append((group[at].turns[turn], decode_answer(target.chat, target.tokenizer, out.output_ids)))


def write_texts(path: Path, texts: Iterator[Text]) -> None:
    """One line each; the file appears when it is whole."""
    begun = path.with_suffix(".part")
    with begun.open("w", encoding="utf-8") as lines:
        for text in texts:
            lines.write(json.dumps(asdict(text)) + "\n")
    begun.rename(path)


def read_texts(path: Path, target: Target) -> list[Text]:
    """Of a file that `write_texts` wrote, or of chats: `conversations` (ShareGPT's from, value) or `messages` (role, content).

    Of chats only users and assistants are read: what else stands in a prompt is the target's own chat format, as in a run.
    Raises InputError with file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    made: list[Text] = []
    for number, line in enumerate(lines, start=1):
        try:
            made += list(_parse_texts(json.loads(line), target))
        except WRONG as error:
            raise InputError(
                f"{path}:{number}: expected prompt_ids and answer_ids, conversations or messages: {error!r}"
            ) from None
    if not made:
        raise InputError(f"{path}: holds no answer")
    return made


def _check_ids(ids: list[int], target: Target) -> list[int]:
    """ids (T,), as they are. Raises ValueError for anything else than ids of the target's vocabulary."""
    vocabulary = target.model.config.vocab_size
    wrong = [one for one in ids if type(one) is not int or not 0 <= one < vocabulary]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no token id below {vocabulary}")
    return ids


def _parse_texts(row: dict[str, Any], target: Target) -> Iterator[Text]:
    if "prompt_ids" in row:
        yield Text(_check_ids(row["prompt_ids"], target), _check_ids(row["answer_ids"], target))
        return
    said: list[tuple[str, str | None]] = []
    for asked, answer in iter_exchanges(row["messages"] if "messages" in row else row["conversations"]):
        prompt = render_prompt(target.chat, [*said, (asked, None)], target.tokenizer)
        ids = target.tokenizer(answer, add_special_tokens=False).input_ids
        yield Text(prompt, [*ids, *target.model.eos_ids[:1]])
        said.append((asked, answer))


def iter_exchanges(spoken: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    """Question and answer of every turn of a chat: messages of role and content, or ShareGPT's from and value."""
    asked = ""
    for message in spoken:
        role = ROLES.get(message.get("role") or message["from"])
        content = message["content"] if "content" in message else message["value"]
        if role == "user":
            asked = content
        elif role == "assistant":
            yield asked, content
