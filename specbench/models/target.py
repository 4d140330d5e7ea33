"""The target: a loaded model, and how it is talked to."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from specbench.decoding.language_model import LanguageModel
from specbench.models.chat import render_prompt
from tasks.question import Question


@dataclass(frozen=True)
class Target:
    """A loaded model, and how it is talked to: tokenizer and chat format (prompts.FORMATS)."""

    name: str
    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    chat: str

    def render_first_prompt(self, question: Question) -> list[int]:
        """Ids (T,) of its first turn."""
        return render_prompt(self.chat, [(question.turns[0], None)], self.tokenizer)
