"""The begin token comes once: chat templates of twelve families, with a tokenizer that adds one to whatever it encodes.

The templates are written here from what the families publish about their formats: special tokens and their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from specbench.datastore.sources import DocumentEncoder
from specbench.models.chat import Chat, choose_chat, describe_chat, render_prompt
from specbench.models.texts import Text, _parse_texts
from specbench.training.own_questions import find_user_turn

EACH = "{% for m in messages %}"
SYSTEM_FIRST = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """bos: its begin token, or None; template: of chats; turns: begin tokens in a chat of two turns; starts: of a prompt."""

    bos: str | None
    template: str
    starts: str
    turns: int = 1
    specials: tuple[str, ...] = ()


def mark(before: str, after: str, reply: str, start: str = "{{ bos_token }}") -> str:
    """A template in which every message stands between two marks that may name its role."""
    return f"{start}{EACH}{before}{{{{ m.content }}}}{after}{{% endfor %}}{{% if add_generation_prompt %}}{reply}{{% endif %}}"


CHATML = mark("<|im_start|>{{ m.role }}\n", "<|im_end|>\n", "<|im_start|>assistant\n", start="")
INSTRUCT = (
    EACH + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
THINKING = "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
FAMILIES = {
    "llama2": Family(
        "<s>",
        SYSTEM_FIRST + EACH + "{% if m.role == 'user' %}{{ bos_token }}[INST] "
        "{% if loop.first and system is defined %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}{{ m.content }} [/INST]"
        "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
        "<s>[INST] ",
        turns=2,
    ),
    "llama3": Family(
        "<|begin_of_text|>",
        mark(
            "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n",
            "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        "<|begin_of_text|><|start_header_id|>user",
    ),
    "mistral": Family("<s>", "{{ bos_token }}" + INSTRUCT, "<s>[INST] "),
    "qwen2": Family(None, CHATML, "<|im_start|>user"),
    "qwen3": Family(None, CHATML[: -len("{% endif %}")] + THINKING + "{% endif %}", "<|im_start|>user"),
    "smollm2": Family("<|im_start|>", CHATML, "<|im_start|>user", turns=4),  # its begin token opens every message
    "gemma": Family(
        "<bos>",
        "{{ bos_token }}" + EACH + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<bos><start_of_turn>user",
    ),
    "phi3": Family("<s>", mark("<|{{ m.role }}|>\n", "<|end|>\n", "<|assistant|>\n", start=""), "<|user|>", turns=0),
    "zephyr": Family("<s>", mark("<|{{ m.role }}|>\n", "</s>\n", "<|assistant|>\n", start=""), "<|user|>", turns=0),
    "tinyllama": Family("<s>", mark("<|{{ m.role }}|>\n", "</s>\n", "<|assistant|>\n"), "<s><|user|>"),
    "vicuna": Family(
        "<s>",
        "{{ bos_token }}"
        + EACH
        + "{% if m.role == 'user' %}USER: {{ m.content }} {% else %}ASSISTANT: {{ m.content }}</s>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        "<s>USER: ",
    ),
    "deepseek": Family(
        "<|begin|>",
        "{{ bos_token }}" + EACH + "{% if m.role == 'user' %}User: {{ m.content }}\n\n"
        "{% elif m.role == 'assistant' %}Assistant: {{ m.content }}</s>{% else %}{{ m.content }}\n\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
        "<|begin|>User: ",
    ),
}
every_family = pytest.mark.parametrize("name", FAMILIES)


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """One token per byte; what is encoded begins with the family's begin token, or with one of no template's."""
    family = FAMILIES[name]
    bos = family.bos or "<never>"
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in dict.fromkeys((bos, "</s>", "<|end|>", "<|im_end|>"))]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    adds = [(bos, tokenizer.token_to_id(bos))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=adds)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=family.bos, eos_token="</s>", chat_template=family.template
    )


def count_begins(name: str, ids: list[int], tokenizer: PreTrainedTokenizerFast) -> int:
    assert tokenizer("x").input_ids[0] in tokenizer.all_special_ids or not FAMILIES[name].bos, "it adds a token by itself"
    return ids.count(tokenizer.get_vocab().get(FAMILIES[name].bos or "", -1))


TWO = [("Hi there", "Hello."), ("Why?", None)]


@every_family
def test_a_template_writes_its_own_begin_token_and_nothing_adds_another(name: str) -> None:
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    chat = choose_chat(Chat("auto"), tokenizer)
    prompt = render_prompt(chat, TWO[1:], tokenizer)
    assert chat.format == "template" and str(tokenizer.decode(prompt)).startswith(family.starts)
    alone = {"llama2": 1, "smollm2": 2}.get(name, min(family.turns, 1)) if family.bos else 0
    assert count_begins(name, prompt, tokenizer) == alone
    assert count_begins(name, render_prompt(chat, TWO, tokenizer), tokenizer) == (family.turns if family.bos else 0)


@every_family
def test_nor_do_training_texts_and_datastores_double_it(name: str) -> None:
    tokenizer = tokenizer_of(name)
    chat = choose_chat(Chat("auto"), tokenizer)
    prompt = render_prompt(chat, TWO[1:], tokenizer)
    answer = tokenizer("Because.", add_special_tokens=False).input_ids
    end = tokenizer.eos_token_id
    target: Any = SimpleNamespace(chat=chat, tokenizer=tokenizer, model=SimpleNamespace(eos_ids=(end,)))
    exchange = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    assert list(_parse_texts({"messages": exchange}, target)) == [Text(prompt, [*answer, end])]
    opening = find_user_turn(target).before
    assert opening == prompt[: len(opening)] and count_begins(name, opening, tokenizer) <= 1
    encoder = DocumentEncoder(tokenizer, chat, len(tokenizer))
    assert encoder.encode_conversation([("Why?", "Because.")]) == [*prompt, *answer, end]
    assert encoder.encode_text("Because.") == [*answer, end], "a document begins with no token: it is found inside others"


@pytest.mark.parametrize("format", ["plain", "vicuna"])
@pytest.mark.parametrize("turns", [TWO[1:], TWO])
def test_formats_without_a_template_begin_with_what_the_tokenizer_adds(format: str, turns: list[tuple[str, str | None]]) -> None:
    tokenizer = tokenizer_of("llama2")
    ids = render_prompt(Chat(format), turns, tokenizer)
    assert ids[0] == tokenizer.bos_token_id and count_begins("llama2", ids, tokenizer) == 1


def test_thinking_on_and_off_are_other_prompts_and_are_recorded() -> None:
    tokenizer = tokenizer_of("qwen3")
    chats = [choose_chat(Chat("auto", {"enable_thinking": on}), tokenizer) for on in (True, False)]
    on, off = (str(tokenizer.decode(render_prompt(chat, TWO[1:], tokenizer))) for chat in chats)
    assert off == f"{on}<think>\n\n</think>\n\n"
    told = [describe_chat(chat, tokenizer) for chat in chats]
    assert [one["arguments"] for one in told] == [{"enable_thinking": True}, {"enable_thinking": False}]
    assert told[0]["template_sha256"] == told[1]["template_sha256"] and told[0]["format"] == "template"
    assert describe_chat(Chat("plain"), tokenizer)["template_sha256"] is None
