"""How methods look: one colour and marker a method, the same in every report and figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

from specbench.records.trial import BASELINE

INK = "#1b1b1a"
GREY = "#7d7d7d"
PALETTE = (  # six of Okabe and Ito's, and those farthest from them and each other with either kind of colour blindness, too
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00",
    "#1a6633", "#b30000", "#6633cc", "#99b380", "#b31a99", "#b366ff", "#664d66",
)  # fmt: skip
MARKERS = "osD^PvX<>*hdp"  # of the colour beside it above
KNOWN = (  # whose colour and marker these are, in every report
    "eagle", "eagle2", "eagle3", "pld", "medusa", "sps",
    "sam_decoding", "rest", "token_recycling", "lookahead", "sam_eagle2", "hydra_heads", "self_speculative",
)  # fmt: skip
VARIANTS = dict.fromkeys(("warm", "static", "confidence", "typical", "paper", "depth7"), ("none", ":")) | {
    "spec_bench": ("left", "--")
}  # of a known method: its colour and marker, another fill and line


@dataclass(frozen=True)
class Look:
    """How one method is drawn everywhere."""

    colour: str
    marker: str
    line: str
    fill: str  # of the marker: full, or another for a variant
    label: str


Style = dict[str, Look]


def assign_looks(labels: Mapping[str, str]) -> Style:
    """The look of every method in the mapping of methods to what they are called in legends.

    Autoregressive is grey. A known method looks the same wherever it is drawn, a variant of it has its colour; any other has a
    colour by its name, which moves on only where two of these others would share it.
    """
    looks = {name: look for name in labels if (look := _assign_known(name, labels[name]))}
    looks |= _assign_others({name: labels[name] for name in labels if name not in looks})
    return {name: looks[name] for name in labels} | {BASELINE: Look(GREY, "o", "-", "full", BASELINE)}


def strip_variant(label: str) -> str:
    """The method that a preset is a variant of, without its engine; the name itself where it is none."""
    name = label.partition("@")[0]
    return next((base for variant in VARIANTS if (base := name.removesuffix(f"_{variant}")) in KNOWN), name)


def _assign_known(name: str, label: str) -> Look | None:
    base, (preset, _, engine) = strip_variant(name), name.partition("@")
    if base not in (*KNOWN, BASELINE):
        return None
    fill, line = VARIANTS.get(preset[len(base) + 1 :], ("full", "-"))
    if engine:
        fill, line = ("bottom", "-.") if preset == base else ("top", "-.")
    if base == BASELINE:
        return Look(GREY, "o", line, fill, label)
    return Look(PALETTE[KNOWN.index(base)], MARKERS[KNOWN.index(base)], line, fill, label)


def _assign_others(labels: Mapping[str, str]) -> Style:
    """Never the marker that a known method has in that colour; hollow and dashed when all colours are taken."""
    colours: Counter[int] = Counter()
    markers: Counter[int] = Counter()
    looks, count = {}, len(PALETTE)
    for name in sorted(labels):
        start = crc32(name.encode())
        at = min(((start + step) % count for step in range(count)), key=lambda place: colours[place])
        shapes = [(start // count + step) % count for step in range(count)]
        shape = min((shape for shape in shapes if shape != at), key=lambda place: markers[place])
        fill, line = (("full", "-"), ("none", "--"), ("left", ":"))[colours[at] % 3]
        looks[name] = Look(PALETTE[at], MARKERS[shape], line, fill, labels[name])
        colours[at] += 1
        markers[shape] += 1
    return looks
