"""Short drills for early training: copying, word-by-word translation, arithmetic, facts of the closed world."""

import random
from collections.abc import Iterator

from tasks.mini import lexicon as lex
from tasks.mini.categories import describe_person
from tasks.mini.conversation import describe_material, describe_ruler
from tasks.mini.dialogue import Dialogue, Exchange
from tasks.mini.world import MATERIALS, PEOPLE, RULERS


def _write_repeat(rng: random.Random) -> Exchange:
    words = rng.sample([*lex.VELAN, *lex.NAMES, *lex.CITIES], rng.randint(4, 24))
    return Exchange(f"Repeat: {' '.join(words)}.", f"{' '.join(words)}.", ())


def _write_vocabulary(rng: random.Random) -> Exchange:
    words = rng.sample(list(lex.VELAN), rng.randint(1, 12))
    velan = " ".join(lex.VELAN[word] for word in words)
    return Exchange(f"Translate Velan to English: {velan}.", f"{' '.join(words)}.", ())


def _write_equation(rng: random.Random) -> str:
    kind = rng.choice("+-*")
    if kind == "*":
        a, b = rng.randint(2, 3), rng.randint(2, 4)
        return f"{a} * {b} = {a * b}"
    a, b = rng.randint(1, 25), rng.randint(2, 12 if kind == "+" else 6)
    return f"{a} + {b} = {a + b}" if kind == "+" else f"{a + b} - {b} = {a}"


def _write_arithmetic(rng: random.Random) -> Exchange:
    equations = [_write_equation(rng) for _ in range(rng.randint(3, 8))]
    asked = " ".join(equation.split(" =")[0] + "," for equation in equations)
    return Exchange(f"Work out {asked}", " ".join(equation + "." for equation in equations), ())


def _write_facts(rng: random.Random) -> Exchange:
    name = rng.choice([*lex.NAMES, *lex.MATERIALS, *lex.RULERS])
    if name in PEOPLE:
        return Exchange(f"Tell me about {name}.", describe_person(name), ())
    fact = describe_material(MATERIALS[name]) if name in MATERIALS else describe_ruler(RULERS[name])
    return Exchange(f"Explain {name}.", fact, ())


WRITERS = {"repeat": _write_repeat, "vocabulary": _write_vocabulary, "arithmetic": _write_arithmetic, "facts": _write_facts}


def generate_drills(name: str, seed: int) -> Iterator[Dialogue]:
    """Yield endless drills of one kind."""
    rng = random.Random(f"drill/{name}/{seed}")
    while True:
        yield Dialogue(name, (WRITERS[name](rng),))
