"""The target: a loaded model with its tokenizer and chat format."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from specbench.decoding.language_model import LanguageModel
from specbench.models.chat import Chat, render_prompt
from tasks.question import Question


@dataclass(frozen=True)
class Target:
    """A loaded model, its tokenizer, and how conversations become prompts."""

    name: str
    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    chat: Chat

    def render_first_prompt(self, question: Question) -> list[int]:
        """Return the prompt ids (T,) of the question's first turn."""
        return render_prompt(self.chat, [(question.turns[0], None)], self.tokenizer)
