"""The single-turn tasks: translation, summarization, question answering, mathematical reasoning, retrieval.

Each writer takes a random generator and a size (1.0 as in the suite, smaller for easier training) and returns a Dialogue. The
share that an answer copies from its prompt follows Spec-Bench: most in summarization, least in translation.
"""

import random
from dataclasses import dataclass

from tasks.mini import lexicon as lex
from tasks.mini.dialogue import Dialogue, Exchange, choose_mostly, join_words
from tasks.mini.world import PEOPLE


def _draw_count(rng: random.Random, low: int, high: int, size: float) -> int:
    return max(1, round(rng.randint(low, high) * size))


def write_sentence(words: list[str]) -> str:
    """Join one word of each class, in the order of `draw_columns`, to a plural English sentence."""
    return " ".join(words) + "."


def draw_columns(rng: random.Random, count: int) -> list[list[str]]:
    """Draw `count` rows of (adverb, adjective, subject, verb, adjective, object, preposition, place), no word twice."""
    adjectives = rng.sample(lex.ADJECTIVES, 2 * count)
    classes = [lex.ADVERBS, adjectives[:count], lex.SUBJECTS, lex.VERBS, adjectives[count:], lex.OBJECTS]
    picked = [rng.sample(words, count) for words in [*classes, lex.PREPOSITIONS, lex.PLACES]]
    return [list(row) for row in zip(*picked, strict=True)]


def write_translation(rng: random.Random, size: float = 1.0) -> Dialogue:
    rows = draw_columns(rng, _draw_count(rng, 10, 11, size))
    english = [write_sentence(row) for row in rows]
    velan = [write_sentence([lex.VELAN[word] for word in row]) for row in rows]
    ask = "Translate Velan to English: " + " ".join(velan)
    return Dialogue("translation", (Exchange(ask, " ".join(english), tuple(english)),))


def write_summarization(rng: random.Random, size: float = 1.0) -> Dialogue:
    count = _draw_count(rng, 6, 7, size)
    keys, paragraphs = [], []
    for ordinal, row in zip(lex.ORDINALS, draw_columns(rng, count), strict=False):
        keys.append(f"{ordinal} {' '.join(row)} in {rng.choice(lex.CITIES)}.")
        paragraphs.append(" ".join([keys[-1], *_write_asides(rng)]))
    ask = "Summarize the report: " + " ".join(paragraphs)
    opening = choose_mostly(rng, "In short:", "The report says:")
    answer = f"{opening} {' '.join(keys)} {choose_mostly(rng, 'That is all.', 'The rest is detail.')}"
    return Dialogue("summarization", (Exchange(ask, answer, tuple(keys)),))


def _write_asides(rng: random.Random) -> list[str]:
    asides = [
        f"{rng.choice(lex.NAMES)} was there with a {rng.choice(lex.PETS)}.",
        f"People from {rng.choice(lex.CITIES)} brought {rng.choice(lex.FOODS)}.",
        f"It was {rng.choice(lex.ADVERBS)} a {rng.choice(lex.COLORS)} day.",
    ]
    return rng.sample(asides, rng.randint(1, 2))


def describe_person(name: str) -> str:
    """Write all facts about a person in two sentences."""
    p = PEOPLE[name]
    habits = f"{name} eats {p.food}, owns a {p.pet}, wears {p.color} and enjoys {p.hobby}."
    return f"{name} is a {p.job} from {p.city}. {habits}"


def write_qa(rng: random.Random, size: float = 1.0) -> Dialogue:
    names = rng.sample(lex.NAMES, _draw_count(rng, 5, 5, size))
    portraits = tuple(describe_person(name) for name in names)
    question, last = _write_question(rng, rng.choice(names))
    ask = f"Tell me about {join_words(names) if len(names) > 1 else names[0]}. {question}"
    opening = choose_mostly(rng, "Here is what I know.", "Gladly.")
    answer = f"{opening} {' '.join(portraits)} {choose_mostly(rng, 'So', 'Therefore')} {last}"
    return Dialogue("qa", (Exchange(ask, answer, (*portraits, last)),))


def _write_question(rng: random.Random, name: str) -> tuple[str, str]:
    """Return a question about one of a person's facts, and its answer."""
    p = PEOPLE[name]
    questions = {
        f"Where does {name} live?": f"{name} lives in {p.city}.",
        f"Which pet does {name} own?": f"{name} owns a {p.pet}.",
        f"What does {name} eat?": f"{name} eats {p.food}.",
        f"What is the job of {name}?": f"{name} works as a {p.job}.",
    }
    return rng.choice(list(questions.items()))


class Purse:
    """A running total told as a story: each event has a sentence for the question and a calculation for the answer."""

    def __init__(self, rng: random.Random, name: str, item: str, total: int) -> None:
        self.rng, self.name = rng, name
        self.item, self.total = item, total
        self.she = PEOPLE[name].she

    def draw_event(self) -> tuple[str, str]:
        events = (
            [self._find_items] * (self.total < 26) + [self._give_items] * (self.total > 3) + [self._buy_boxes] * (self.total < 18)
        )
        return self.rng.choice(events)()

    def _find_items(self) -> tuple[str, str]:
        n, before = self.rng.randint(2, 6), self.total
        self.total += n
        return f"{self.she} finds {n} more.", f"{self.she} finds {n} more, and {before} + {n} = {self.total}."

    def _give_items(self) -> tuple[str, str]:
        n, before = self.rng.randint(2, min(6, self.total - 1)), self.total
        friend = self.rng.choice([name for name in lex.NAMES if name != self.name])
        self.total -= n
        story = f"{self.she} gives {n} to {friend}"
        return f"{story}.", f"{story}, and {before} - {n} = {self.total}."

    def _buy_boxes(self) -> tuple[str, str]:
        boxes, each, before = self.rng.randint(2, 3), self.rng.randint(2, 4), self.total
        self.total += boxes * each
        worked = f"That is {boxes} * {each} = {boxes * each}, and {before} + {boxes * each} = {self.total}."
        return f"{self.she} buys {boxes} boxes of {each}.", f"{self.she} buys {boxes} boxes of {each}. {worked}"


def write_sums(rng: random.Random, steps: int) -> tuple[Purse, Exchange]:
    """Write a word problem of `steps` events and its step-by-step solution."""
    purse = Purse(rng, rng.choice(lex.NAMES), rng.choice(lex.ITEMS), rng.randint(3, 15))
    begin = f"{purse.name} has {purse.total} {purse.item}."
    events = [purse.draw_event() for _ in range(steps)]
    problem = " ".join([begin, *(story for story, _ in events)])
    ask = f"{problem} How many {purse.item} does {purse.name} have?"
    worked = " ".join([f"{purse.name} starts with {begin.split(' has ')[1]}", *(work for _, work in events)])
    final = f"The answer is {purse.total}."
    so = choose_mostly(rng, "So", "Therefore")
    answer = f"{worked} {so} {purse.name} has {purse.total} {purse.item}. {final}"
    return purse, Exchange(ask, answer, (final,))


def write_math_reasoning(rng: random.Random, size: float = 1.0) -> Dialogue:
    return Dialogue("math_reasoning", (write_sums(rng, _draw_count(rng, 6, 7, size))[1],))


@dataclass(frozen=True)
class _Company:
    """The facts of one passage; no two companies of a question share any."""

    name: str
    color: str
    product: str
    city: str
    leader: str
    workers: int

    @property
    def passage(self) -> str:
        return f"{self.name} makes {self.color} {self.product} in {self.city} and {self.leader} leads {self.workers} workers."

    @property
    def restated(self) -> str:
        makers = f"{self.leader} and {self.workers} workers"
        return f"In other words, {makers} make {self.product} that are {self.color}, and {self.city} is their home."


def write_rag(rng: random.Random, size: float = 1.0) -> Dialogue:
    pools = (lex.COMPANIES, lex.COLORS, lex.PRODUCTS, lex.CITIES, lex.NAMES, range(5, 51))
    count = max(3, _draw_count(rng, 4, 5, size))
    companies = [_Company(*row) for row in zip(*(rng.sample(pool, count) for pool in pools), strict=True)]
    listed = " ".join(f"[{number}] {company.passage}" for number, company in enumerate(companies, 1))
    led, located, making = chosen = rng.sample(companies, 3)
    ask = f"{listed} Who runs {led.name}, where is {located.name}, and what does {making.name} make?"
    keys = [f"{company.passage} {company.restated}" for company in chosen]
    last = f"{led.name} is led by {led.leader}, {located.name} is in {located.city} and {making.name} makes {making.product}."
    answer = (
        f"{choose_mostly(rng, 'Let me look.', 'I will check.')} {' '.join(keys)} {choose_mostly(rng, 'So', 'Therefore')} {last}"
    )
    return Dialogue("rag", (Exchange(ask, answer, (*keys, last)),))
