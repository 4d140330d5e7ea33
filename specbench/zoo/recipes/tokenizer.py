"""The embedded tokenizer: 1,024 pieces with every byte among them, so any text round-trips.

Whole words of the mini world are single pieces (a Unigram model over GPT-2's byte alphabet); other text is split into bytes.
Numbers of up to two digits are single pieces.
"""

from collections import Counter
from itertools import islice

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tasks.mini import lexicon as lex
from tasks.mini.generator import WRITERS, generate_dialogues

VOCABULARY = 1024
BOS, EOS, USER, ASSISTANT = SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'] + eos_token }}"
    "{% else %}{{ '<|user|>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _count_words(per_task: int = 2000) -> Counter[str]:
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts = Counter(f"Ġ{word}" for word in lex.ORDINALS)  # including a task that no report uses
    for task in WRITERS:
        for dialogue in islice(generate_dialogues(task, "train"), per_task):
            texts = [text for exchange in dialogue.exchanges for text in (exchange.ask, exchange.answer)]
            counts.update(piece for text in texts for piece, _ in split.pre_tokenize_str(text))
    return counts


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build from bytes and the most frequent words of the mini suite's training split, until the vocabulary is full."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted(_count_words().items(), key=lambda item: (-item[1], item[0]))
    room = VOCABULARY - len(SPECIALS) - len(alphabet)
    kept = sorted([word for word, _ in words if len(word) > 1][:room])
    fillers = [f"Ġ{a}{b}" for a in "aeioustnr" for b in "lnrstdcmp"]  # English syllables fill the remaining room
    kept += [piece for piece in fillers if piece not in kept][: room - len(kept)]
    pieces = [(special, 0.0) for special in SPECIALS] + [(byte, -20.0) for byte in alphabet] + [(word, -10.0) for word in kept]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=None, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
