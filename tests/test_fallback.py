"""Two drafters in one: each must draft as if it had been told everything, and as if nobody stood beside it."""

from typing import Any

import pytest
import torch

from methods.eagle import Eagle2
from methods.eagle3 import Eagle3
from methods.fallback import Fallback
from methods.hydra_heads import HydraHeads
from methods.medusa import Medusa
from methods.sps import SpeculativeSampling
from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.errors import InputError
from tests.methods_under_test import draft_model_of, drafter_of, each_preset, target_of
from tests.tiny import NO_CONTEXT, prompts, tiny_model

pytestmark = pytest.mark.full

TREE = {"paths": [[0], [1], [0, 0], [1, 0], [0, 0, 0]]}
OTHERS: dict[str, Any] = {
    "eagle2": lambda: Eagle2("random", 8, 3, 3, "auto"),
    "eagle3": lambda: Eagle3("random", 8, 3, 3, "auto"),
    "medusa": lambda: Medusa("random", TREE, "auto"),
    "hydra_heads": lambda: HydraHeads("random", TREE, "auto"),
    "sps": lambda: SpeculativeSampling(draft_model_of("llama"), 4, "heuristic", 0.0, False),
}


class Now(Drafter):
    """Offers two tokens in every third step: a stand-in for a drafter that has a long match now and then."""

    def __init__(self) -> None:
        self.offered = 0

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> list[int]:
        return [prompt[-1], 0]

    def draft(self, state: list[int], budget: int) -> DraftTree:
        state[1] += 1
        wrong_or_right = [state[0], state[0]] if state[1] % 3 == 0 else []
        self.offered += bool(wrong_or_right[:budget])
        return DraftTree.chain(self.to_tensor([state[0], *wrong_or_right[:budget]]))

    def observe(self, state: list[int], tree: DraftTree, out: TargetOutput, verified: Any) -> None:
        state[0] = verified.next_token


def decoded(target: LanguageModel, drafter: Drafter) -> list[Generation]:
    drafter.bind(target)
    return [generate(target, drafter, [prompt], Sampling(max_new_tokens=30))[0] for prompt in prompts(6)]


@pytest.mark.parametrize("name", OTHERS)
def test_text_that_came_from_the_first_one_reaches_the_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draft of the other one equals that of a new one which starts behind the same text."""
    target = LanguageModel(tiny_model("llama", 6))
    first, other = Now(), OTHERS[name]()
    both = Fallback(first, other)
    said: list[tuple[list[int], DraftTree, int]] = []
    texts: list[list[int]] = []
    begin, propose, update = Fallback.begin, Fallback.propose, Fallback.update

    def note_begin(self: Fallback, given: list[list[int]], outs: list[TargetOutput], contexts: list[SequenceContext]) -> Any:
        texts.append(list(given[0]))
        return begin(self, given, outs, contexts)

    def note_propose(self: Fallback, states: Any, budgets: list[int]) -> list[DraftTree]:
        before = first.offered
        trees = propose(self, states, budgets)
        if first.offered == before and budgets[0]:
            said.append((list(texts[-1]), trees[0], budgets[0]))
        return trees

    def note_update(self: Fallback, states: Any, trees: Any, outs: Any, verified: Any) -> None:
        update(self, states, trees, outs, verified)
        texts[-1] += verified[0].tokens

    for method, patched in (("begin", note_begin), ("propose", note_propose), ("update", note_update)):
        monkeypatch.setattr(Fallback, method, patched)
    outs = decoded(target, both)
    assert first.offered > 20 and len(said) > 60 and sum(sum(out.accepted) for out in outs) > 0
    for text, tree, budget in said[::7]:
        new = OTHERS[name]()
        new.bind(target)
        if name == "sps":
            new.schedule = "fixed"
            new.draft_tokens = len(tree) - 1  # its length is memory, the tokens are not
        assert same(drafted_behind(target, new, text, budget), tree), f"{name} behind {text}"


@torch.inference_mode()
def drafted_behind(target: LanguageModel, drafter: Drafter, text: list[int], budget: int) -> DraftTree:
    target.tap(drafter.taps)
    store = target.create_store(300)
    outs = target.prefill(store, [torch.tensor(text[:-1])])
    drafter.prepare([torch.tensor(text)], [Sampling()], 300)
    return drafter.propose(drafter.begin([text], outs, [NO_CONTEXT]), [budget])[0]


def same(one: DraftTree, other: DraftTree) -> bool:
    return torch.equal(one.tokens, other.tokens) and torch.equal(one.parents, other.parents)


def test_each_part_sees_its_own_hidden_states() -> None:
    target = LanguageModel(tiny_model("llama", 6))
    both = Fallback(OTHERS["eagle3"](), OTHERS["medusa"]())
    both.bind(target)
    hidden = torch.arange(4 * 32).float()[None]
    three, one = both._split_outputs([TargetOutput(torch.zeros(1, 8), hidden)])
    assert len(both.taps) == 4 and torch.equal(three[0].hidden, hidden[:, :96]) and torch.equal(one[0].hidden, hidden[:, 96:])


@each_preset
@pytest.mark.parametrize("second", [False, True])
def test_every_method_bears_another_beside_it(label: str, second: bool) -> None:
    """First, or second behind one that offers now and then: the text is the target's own, and both have drafted."""
    target, own = target_of("llama"), drafter_of(label, "llama")
    if not own.lossless:
        with pytest.raises(InputError, match="typical acceptance"):
            Fallback(Now(), own)
        return
    medusa = Medusa("random", TREE, "auto")
    both = Fallback(Now(), own) if second else Fallback(own, medusa)
    plain = [out.output_ids for out in decoded(target, Autoregressive())]
    outs = decoded(target, both)
    assert [out.output_ids for out in outs] == plain
    assert both.warm == own.warm
    assert label == "autoregressive" or sum(sum(out.drafted) for out in outs) > 0
