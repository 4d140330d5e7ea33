"""The closed world: its people, materials and rulers, the same in every process."""

import random
from dataclasses import dataclass

from tasks.mini import lexicon as lex

WORLD_SEED = 2401


@dataclass(frozen=True)
class Person:
    name: str
    job: str
    city: str
    food: str
    pet: str
    color: str
    hobby: str

    @property
    def she(self) -> str:
        return "She" if self.name in lex.WOMEN else "He"


@dataclass(frozen=True)
class Material:
    name: str
    color: str
    hardness: int
    place: str
    product: str


@dataclass(frozen=True)
class Ruler:
    name: str
    city: str
    years: int
    built: str
    feast: str


def _draw_people(rng: random.Random) -> dict[str, Person]:
    pools = (lex.JOBS, lex.CITIES, lex.FOODS, lex.PETS, lex.COLORS, lex.HOBBIES)
    return {name: Person(name, *(rng.choice(pool) for pool in pools)) for name in lex.NAMES}


def _draw_materials(rng: random.Random) -> dict[str, Material]:
    return {
        name: Material(name, rng.choice(lex.COLORS), rng.randint(1, 9), rng.choice(lex.PLACES), rng.choice(lex.PRODUCTS))
        for name in lex.MATERIALS
    }


def _draw_rulers(rng: random.Random) -> dict[str, Ruler]:
    return {
        name: Ruler(name, rng.choice(lex.CITIES), rng.randint(5, 40), rng.choice(lex.PLACES), rng.choice(lex.FOODS))
        for name in lex.RULERS
    }


_rng = random.Random(WORLD_SEED)
PEOPLE = _draw_people(_rng)
MATERIALS = _draw_materials(_rng)
RULERS = _draw_rulers(_rng)
