"""One colour and marker per method, the same in every report and figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from specbench.records.trial import BASELINE

INK = "#1b1b1a"
GREY = "#7d7d7d"
PALETTE = (  # six of Okabe and Ito's, then those farthest from them and each other, for colour-blind readers too
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00",
    "#1a6633", "#b30000", "#6633cc", "#99b380", "#b31a99", "#b366ff", "#664d66",
    "#8c4d26", "#003366", "#b3b31a", "#33999e", "#ff7f7f",
)  # fmt: skip
MARKERS = "osD^PvX<>*hdp8HosD"
KNOWN = (  # methods in the order of their colour and marker above
    "eagle", "eagle2", "eagle3", "pld", "medusa", "sps",
    "sam_decoding", "rest", "token_recycling", "lookahead", "sam_eagle2", "hydra_heads", "self_speculative",
    "suffix", "dflash", "dspark", "mtp", "p_eagle",
)  # fmt: skip
STYLES = (("full", "-"), ("none", ":"), ("left", "--"), ("right", "--"))  # fill and line
VARIANTS = {
    **dict.fromkeys(("warm", "static", "confidence", "typical", "paper", "depth7", "cold", "beyond"), STYLES[1]),
    **dict.fromkeys(("spec_bench", "tree"), STYLES[2]),
    **dict.fromkeys(("vllm", "tli", "depth2"), STYLES[3]),
}
OTHERS = [  # (colour, marker, fill, line) of methods that are not known; no known method has that colour with that marker
    (colour, MARKERS[(place + shift) % len(MARKERS)], fill, line)
    for shift, (fill, line) in enumerate(STYLES[:3], start=4)
    for place, colour in enumerate(PALETTE)
]


@dataclass(frozen=True)
class Look:
    """How one method is drawn everywhere. fill: of the marker."""

    colour: str
    marker: str
    line: str
    fill: str
    label: str

    @property
    def marks(self) -> dict[str, Any]:
        """Arguments of Axes.plot for the markers."""
        return {"color": self.colour, "marker": self.marker, "fillstyle": self.fill}


Style = dict[str, Look]


def assign_looks(labels: Mapping[str, str]) -> Style:
    """Return the look of every method; `labels` maps methods to their names in legends.

    Autoregressive decoding is grey. A known method always has its own look, and its variants have its colour and marker. Any
    other method has the look that its name hashes to, or the next free one where two of them would share it.
    """
    looks: Style = {}
    taken: set[int] = set()
    for name in sorted(labels):
        if strip_variant(name) in (*KNOWN, BASELINE):
            looks[name] = _assign_known(name, labels[name])
            continue
        places = [(crc32(name.encode()) + step) % len(OTHERS) for step in range(len(OTHERS))]
        place = next((place for place in places if place not in taken), places[0])
        taken.add(place)
        colour, marker, fill, line = OTHERS[place]
        looks[name] = Look(colour, marker, line, fill, labels[name])
    return {name: looks[name] for name in labels} | {BASELINE: Look(GREY, "o", "-", "full", BASELINE)}


def strip_variant(label: str) -> str:
    """Return the known method of which the label is a variant, or the label without its engine."""
    name = label.partition("@")[0]
    return next((base for variant in VARIANTS if (base := name.removesuffix(f"_{variant}")) in KNOWN), name)


def _assign_known(name: str, label: str) -> Look:
    base, (preset, _, engine) = strip_variant(name), name.partition("@")
    fill, line = VARIANTS.get(preset[len(base) + 1 :], STYLES[0])
    if engine:
        fill, line = ("bottom", "-.") if preset == base else ("top", "-.")
    if base == BASELINE:
        return Look(GREY, "o", line, fill, label)
    place = KNOWN.index(base)
    return Look(PALETTE[place], MARKERS[place], line, fill, label)
