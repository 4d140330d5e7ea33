"""The words of the closed world. Their order is part of the frozen suite: append nothing, reorder nothing."""

WOMEN = "Anna Clara Diana Elena Flora Greta Hanna Iris Julia Karin Laura Maria Nora Olga Petra Rosa".split()
MEN = "Adam Boris Carl David Emil Felix Georg Hugo Ivan Jonas Konrad Leon Marco Niklas Oscar Paul".split()
NAMES = WOMEN + MEN
CITIES = (
    "Oslo Rome Paris Lima Cairo Delhi Tokyo Berlin Madrid Lisbon Dublin Vienna Prague Athens Boston Quito Riga Bern"
).split()
JOBS = ("baker teacher doctor painter sailor farmer singer tailor pilot writer nurse judge miner cook guard dancer").split()
PETS = "cat dog parrot rabbit turtle pony goat duck mouse snake".split()
FOODS = "soup bread cheese rice fish salad honey cake beans pasta plums nuts".split()
COLORS = "red blue green yellow white black purple gray".split()
HOBBIES = "chess tennis music painting fishing cooking reading skating hiking sewing".split()
ITEMS = "apples books coins pencils shells stamps stones cards".split()
COMPANIES = ("Zarvo Lumex Tandor Kelvix Morano Pilex Quantor Rivano Selto Varix Wendo Brisco Dalvo Fenix Garmo Holvex").split()
PRODUCTS = "lamps chairs clocks boots ropes mirrors drums kites bells tables".split()
MATERIALS = "iron copper silver gold zinc glass marble amber coal quartz".split()
RULERS = "Aldric Berengar Cedric Dorian Edmund Fergus Gawain Harold Isolde Leofric".split()
FUNCTIONS = "shift scale adjust update convert change".split()
ORDINALS = "First Second Third Fourth Fifth Sixth Seventh Eighth".split()

# Translation: plural English without articles, so that every Velan word translates one English word in place.
ADVERBS = "quietly slowly often sometimes today rarely gladly bravely always usually early together".split()
ADJECTIVES = (
    "old young tall small happy tired brave clever proud gentle strange heavy light golden wooden broken shiny dusty "
    "empty round cheap rare simple quick"
).split()
SUBJECTS = ("farmers sailors children kings bakers hunters soldiers students miners dancers pirates monks nurses thieves").split()
VERBS = "carry find paint sell hide watch clean steal repair count bury lift trade".split()
OBJECTS = "boats baskets swords letters wheels blankets barrels candles ladders coats jars keys flutes maps".split()
PREPOSITIONS = "near behind under above inside beside beyond around across below between against".split()
PLACES = "rivers towers bridges gardens castles forests harbors markets mountains caves fields walls lakes barns".split()


def _invent_words(count: int) -> list[str]:
    """Return `count` distinct invented words of two syllables, by a fixed walk through the syllables."""
    heads = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    tails = [v + c for v in "aeiou" for c in "lnrsk"]
    return [heads[(7 * i) % len(heads)] + tails[(11 * i + i // 25) % len(tails)] for i in range(count)]


_ENGLISH = ADVERBS + ADJECTIVES + SUBJECTS + VERBS + OBJECTS + PREPOSITIONS + PLACES
VELAN = dict(zip(_ENGLISH, _invent_words(len(_ENGLISH)), strict=True))  # English -> Velan, one to one
