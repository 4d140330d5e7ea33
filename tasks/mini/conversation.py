"""Two-turn conversations in MT-bench's eight categories; the second turn builds on the first answer."""

import random
from collections.abc import Callable

from tasks.mini import lexicon as lex
from tasks.mini.categories import write_sums
from tasks.mini.dialogue import Dialogue, Exchange, choose_mostly, join_words
from tasks.mini.world import MATERIALS, RULERS, Material, Ruler


def _write_story(name: str, job: str, pet: str, city: str, place: str) -> str:
    return (
        f"Once there was a {job} called {name}. {name} lived in {city} with a {pet}. One day the {pet} of {name} ran away. "
        f"{name} looked near the {place} and behind the {place} of {city}. At last {name} found the {pet} in the {place}. "
        f"The {job} and the {pet} went home together, and all of {city} was happy. In the evening {name} sat near the {place} "
        f"with the {pet}, and the people of {city} still tell of the {job} and the {pet}."
    )


def write_writing(rng: random.Random) -> tuple[Exchange, ...]:
    name, other = rng.sample(lex.NAMES, 2)
    job, pet, city, place = (rng.choice(pool) for pool in (lex.JOBS, lex.PETS, lex.CITIES, lex.PLACES))
    ask = f"Write a story about a {job} called {name}, a {pet}, {city} and the {place}."
    stories = _write_story(name, job, pet, city, place), _write_story(other, job, pet, city, place)
    return (
        Exchange(ask, f"{choose_mostly(rng, 'Here is a story.', 'Sure.')} {stories[0]}", (stories[0],)),
        Exchange(f"Tell it again with {other} instead of {name}.", f"Sure. {stories[1]}", (stories[1],)),
    )


def write_roleplay(rng: random.Random) -> tuple[Exchange, ...]:
    (guest, late), job = rng.sample(lex.NAMES, 2), rng.choice(lex.JOBS)
    city, food, pet = rng.choice(lex.CITIES), rng.choice(lex.FOODS), rng.choice(lex.PETS)
    hello = (
        f"Welcome to {city}, {guest}! I am the {job} of this town. Please sit down and try some {food}. "
        f"My {pet} likes {food} too. "
        f"After the {food} we can walk through {city}, and I will tell you how I became a {job}. You are a good friend, {guest}. "
        f"My {pet} will walk with us, for no {pet} in {city} likes to stay home when a friend of the {job} is there."
    )
    bye = (
        f"Farewell, {late}! It was good to have you in {city}. Take some {food} with you, and think of the {job} and the {pet}. "
        f"Come back to {city} soon, {late}, and we will eat {food} again. "
        f"My {pet} will miss you, and so will the {job} of {city}. "
        f"When you are home, {late}, tell your friends about {city}, the {food} and the {pet} of the {job}."
    )
    ask = f"Pretend to be a {job} from {city} with a {pet} and some {food}. Greet {guest}."
    return Exchange(ask, hello, (hello,)), Exchange(f"Now say goodbye to {late}.", bye, (bye,))


def write_reasoning(rng: random.Random) -> tuple[Exchange, ...]:
    order = rng.sample(lex.NAMES, 9)  # oldest first
    pairs = [f"{a} is older than {b}." for a, b in zip(order, order[1:], strict=False)]
    back = [f"{b} is younger than {a}." for a, b in zip(order, order[1:], strict=False)][::-1]
    ask = " ".join(pairs) + " Who is the oldest?"
    oldest, youngest = f"the oldest is {order[0]}.", f"the youngest is {order[-1]}."
    lines = f"From old to young the order is {join_words(order)}.", f"From young to old the order is {join_words(order[::-1])}."
    first = f"{' '.join(pairs)} {lines[0]} So {oldest}"
    second = f"{' '.join(back)} {lines[1]} So {youngest}"
    return Exchange(ask, first, (lines[0], oldest)), Exchange("Who is the youngest?", second, (lines[1], youngest))


def write_math(rng: random.Random) -> tuple[Exchange, ...]:
    purse, first = write_sums(rng, 5)
    begin = f"{purse.name} had {purse.total} {purse.item}."
    events = [purse.draw_event() for _ in range(4)]
    ask = " ".join([*(story for story, _ in events), f"How many {purse.item} now?"])
    final = f"The answer is {purse.total}."
    worked = " ".join([begin, *(work for _, work in events)])
    answer = f"{worked} So {purse.name} has {purse.total} {purse.item}. {final}"
    return first, Exchange(ask, answer, (final,))


_OPERATORS = {"adds": "+", "takes": "-", "multiplies": "*"}


def _write_code(function: str, item: str, operator: str, number: int) -> str:
    return (
        f"def {function}({item}):\n    result = []\n    for value in {item}:\n        value = value {operator} {number}\n"
        f"        result.append(value)\n    return result\n\nprint({function}([1, 2, 3]))"
    )


def write_coding(rng: random.Random) -> tuple[Exchange, ...]:
    function, item, number = rng.choice(lex.FUNCTIONS), rng.choice(lex.ITEMS), rng.randint(2, 9)
    verb, other = rng.sample(sorted(_OPERATORS), 2)
    codes = [_write_code(function, item, _OPERATORS[v], number) for v in (verb, other)]
    ask = f"Write a function called {function} that {verb} {number} for all {item}."
    tails = [
        f"The function {function} {v} {number} for each of the {item} and returns the result. It goes through the {item} one by "
        f"one, and the last line shows how to use {function}."
        for v in (verb, other)
    ]
    first, second = (f"{code}\n\n{tail}" for code, tail in zip(codes, tails, strict=True))
    return Exchange(ask, first, (codes[0],)), Exchange(f"Change it so that it {other} {number}.", second, (codes[1],))


def write_extraction(rng: random.Random) -> tuple[Exchange, ...]:
    rows = [(n, rng.choice(lex.CITIES), rng.randint(2, 9), rng.choice(lex.ITEMS)) for n in rng.sample(lex.NAMES, 8)]
    story = " ".join(f"{name} from {city} bought {count} {item}." for name, city, count, item in rows)
    lists = [f"name: {name}, city: {city}, item: {item}, number: {count}" for name, city, count, item in rows]
    brief = [f"{name}: {count} {item}, {city}" for name, city, count, item in rows]
    first, second = "\n".join(lists), "\n".join(brief)
    ask = f"List name, city, item and number. {story}"
    return Exchange(ask, first, (first,)), Exchange("Make it shorter.", second, (second,))


def describe_material(m: Material) -> str:
    return f"{m.name} is {m.color}, has a hardness of {m.hardness}, is found near {m.place} and is used for {m.product}."


def describe_ruler(r: Ruler) -> str:
    return f"{r.name} ruled {r.city} for {r.years} years, built {r.built} there and served {r.feast} at every feast."


def write_stem(rng: random.Random) -> tuple[Exchange, ...]:
    names = rng.sample(lex.MATERIALS, 10)
    parts = (names[:5], names[5:])
    return tuple(_write_explanation(rng, part, [describe_material(MATERIALS[n]) for n in part]) for part in parts)


def write_humanities(rng: random.Random) -> tuple[Exchange, ...]:
    names = rng.sample(lex.RULERS, 10)
    return tuple(_write_explanation(rng, part, [describe_ruler(RULERS[n]) for n in part]) for part in (names[:5], names[5:]))


def _write_explanation(rng: random.Random, names: list[str], facts: list[str]) -> Exchange:
    answer = f"{choose_mostly(rng, 'Here is what I know.', 'Gladly.')} {' '.join(facts)}"
    return Exchange(f"Explain {join_words(names)}.", answer, tuple(facts))


WRITERS: dict[str, Callable[[random.Random], tuple[Exchange, ...]]] = {
    "writing": write_writing,
    "roleplay": write_roleplay,
    "reasoning": write_reasoning,
    "math": write_math,
    "coding": write_coding,
    "extraction": write_extraction,
    "stem": write_stem,
    "humanities": write_humanities,
}


def write_mt_bench(rng: random.Random, size: float = 1.0) -> Dialogue:
    category = rng.choice(list(WRITERS))
    return Dialogue(category, WRITERS[category](rng))
