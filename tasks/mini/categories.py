"""The single-turn tasks: translation, summarization, question answering, mathematical reasoning, retrieval.

Each writer takes a random generator and a size (1.0 = as in the suite, smaller = an easier one for training) and returns a
Dialogue. How much an answer copies from its prompt follows Spec-Bench: most in summarization, least in translation.
"""

import random

from tasks.mini import lexicon as lex
from tasks.mini.dialogue import Dialogue, Exchange, joined, usually
from tasks.mini.world import PEOPLE


def _scaled(rng: random.Random, low: int, high: int, size: float) -> int:
    return max(1, round(rng.randint(low, high) * size))


def sentence(words: list[str]) -> str:
    """A plural English sentence from one word of each class, in the order of `columns`."""
    return " ".join(words) + "."


def columns(rng: random.Random, count: int) -> list[list[str]]:
    """`count` rows of (adverb, adjective, subject, verb, adjective, object, preposition, place), no word twice."""
    adjectives = rng.sample(lex.ADJECTIVES, 2 * count)
    classes = [lex.ADVERBS, adjectives[:count], lex.SUBJECTS, lex.VERBS, adjectives[count:], lex.OBJECTS]
    picked = [rng.sample(words, count) for words in [*classes, lex.PREPOSITIONS, lex.PLACES]]
    return [list(row) for row in zip(*picked, strict=True)]


def translation(rng: random.Random, size: float = 1.0) -> Dialogue:
    rows = columns(rng, _scaled(rng, 10, 12, size))
    english = [sentence(row) for row in rows]
    velan = [sentence([lex.VELAN[word] for word in row]) for row in rows]
    ask = "Translate Velan to English: " + " ".join(velan)
    return Dialogue("translation", (Exchange(ask, " ".join(english), tuple(english)),))


def summarization(rng: random.Random, size: float = 1.0) -> Dialogue:
    count = _scaled(rng, 7, 8, size)
    keys, paragraphs = [], []
    for ordinal, row in zip(lex.ORDINALS, columns(rng, count), strict=False):
        keys.append(f"{ordinal}, {' '.join(row)} in {rng.choice(lex.CITIES)}.")
        paragraphs.append(" ".join([keys[-1], *_asides(rng)]))
    ask = "Summarize the report: " + " ".join(paragraphs)
    answer = (
        f"{usually(rng, 'In short:', 'The report says:')} {' '.join(keys)} {usually(rng, 'That is all.', 'The rest is detail.')}"
    )
    return Dialogue("summarization", (Exchange(ask, answer, tuple(keys)),))


def _asides(rng: random.Random) -> list[str]:
    made = [
        f"{rng.choice(lex.NAMES)} was there with a {rng.choice(lex.PETS)}.",
        f"People from {rng.choice(lex.CITIES)} brought {rng.choice(lex.FOODS)}.",
        f"It was {rng.choice(lex.ADVERBS)} a {rng.choice(lex.COLORS)} day.",
    ]
    return rng.sample(made, rng.randint(1, 2))


def portrait(name: str) -> str:
    """All the world knows of a person, in two sentences."""
    p = PEOPLE[name]
    habits = f"{name} eats {p.food}, owns a {p.pet}, wears {p.color} and enjoys {p.hobby}."
    return f"{name} is a {p.job} from {p.city}. {habits}"


def qa(rng: random.Random, size: float = 1.0) -> Dialogue:
    while True:
        names = rng.sample(lex.NAMES, _scaled(rng, 4, 4, size))
        kind = rng.choice(["city", "pet", "food", "job"])
        chosen = rng.choice(names)
        value = getattr(PEOPLE[chosen], kind)
        if [getattr(PEOPLE[name], kind) for name in names].count(value) == 1:
            break
    verb = {"city": "lives in", "pet": "owns a", "food": "eats", "job": "works as a"}[kind]
    portraits = tuple(portrait(name) for name in names)
    question = usually(rng, f"Which of them {verb} {value}?", f"Who of them {verb} {value}?")
    ask = f"Tell me about {joined(names) if len(names) > 1 else names[0]}. {question}"
    last = f"the one who {verb} {value} is {chosen}."
    answer = f"{usually(rng, 'Here is what I know.', 'Gladly.')} {' '.join(portraits)} {usually(rng, 'So', 'Therefore')} {last}"
    return Dialogue("qa", (Exchange(ask, answer, (*portraits, last)),))


class Purse:
    """A running total told as a story: each event has what the question says and what the answer works out."""

    def __init__(self, rng: random.Random, name: str, item: str, total: int) -> None:
        self.rng, self.name, self.item, self.total = rng, name, item, total
        self.she = PEOPLE[name].she

    def event(self) -> tuple[str, str]:
        events = [self._finds] * (self.total < 42) + [self._gives] * (self.total > 3) + [self._boxes] * (self.total < 30)
        return self.rng.choice(events)()

    def _finds(self) -> tuple[str, str]:
        n, before = self.rng.randint(2, 9), self.total
        self.total += n
        return f"{self.she} finds {n} more.", f"{self.she} finds {n} more, and {before} + {n} = {self.total}."

    def _gives(self) -> tuple[str, str]:
        n, before = self.rng.randint(2, min(9, self.total - 1)), self.total
        friend = self.rng.choice([name for name in lex.NAMES if name != self.name])
        self.total -= n
        told = f"{self.she} gives {n} to {friend}"
        return f"{told}.", f"{told}, and {before} - {n} = {self.total}."

    def _boxes(self) -> tuple[str, str]:
        boxes, each, before = self.rng.randint(2, 4), self.rng.randint(2, 4), self.total
        self.total += boxes * each
        worked = f"That is {boxes} * {each} = {boxes * each}, and {before} + {boxes * each} = {self.total}."
        return f"{self.she} buys {boxes} boxes of {each}.", f"{self.she} buys {boxes} boxes of {each}. {worked}"


def sums(rng: random.Random, steps: int) -> tuple[Purse, Exchange]:
    """A word problem of `steps` events, worked step by step."""
    purse = Purse(rng, rng.choice(lex.NAMES), rng.choice(lex.ITEMS), rng.randint(3, 20))
    begin = f"{purse.name} has {purse.total} {purse.item}."
    events = [purse.event() for _ in range(steps)]
    told = " ".join([begin, *(story for story, _ in events)])
    ask = f"{told} How many {purse.item} does {purse.name} have?"
    worked = " ".join([f"{purse.name} starts with {begin.split(' has ')[1]}", *(work for _, work in events)])
    final = f"The answer is {purse.total}."
    so = usually(rng, "So", "Therefore")
    answer = f"{worked} {so} {purse.name} has {purse.total} {purse.item}. {final}"
    return purse, Exchange(ask, answer, (final,))


def math_reasoning(rng: random.Random, size: float = 1.0) -> Dialogue:
    return Dialogue("math_reasoning", (sums(rng, _scaled(rng, 6, 7, size))[1],))


def rag(rng: random.Random, size: float = 1.0) -> Dialogue:
    companies = rng.sample(lex.COMPANIES, max(2, _scaled(rng, 5, 6, size)))
    facts = {
        company: (
            rng.choice(lex.COLORS),
            rng.choice(lex.PRODUCTS),
            rng.choice(lex.CITIES),
            rng.choice(lex.NAMES),
            rng.randint(5, 50),
        )
        for company in companies
    }
    passages = {company: _passage(company, *fact) for company, fact in facts.items()}
    listed = " ".join(f"[{i}] {passages[company]}" for i, company in enumerate(companies, 1))
    first, second = rng.sample(companies, 2)
    ask = f"{listed} Who leads {first}, and where is {second}?"
    keys = [
        f"[{companies.index(company) + 1}] says: {passages[company]} {_restated(*facts[company])}" for company in (first, second)
    ]
    last = f"{first} is led by {facts[first][3]} and {second} is in {facts[second][2]}."
    opening = usually(rng, "Let me look.", "I will check.")
    answer = f"{opening} Passage {keys[0]} Passage {keys[1]} {usually(rng, 'So', 'Therefore')} {last}"
    return Dialogue("rag", (Exchange(ask, answer, (*keys, last)),))


def _passage(company: str, color: str, product: str, city: str, leader: str, workers: int) -> str:
    return f"{company} makes {color} {product} in {city}. It is led by {leader} and has {workers} workers."


def _restated(color: str, product: str, city: str, leader: str, workers: int) -> str:
    return f"In other words, {leader} and {workers} workers make {product} that are {color}, and {city} is their home."
