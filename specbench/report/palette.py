"""One colour and marker per method, the same in every figure."""

from __future__ import annotations

from collections.abc import Mapping
from colorsys import hls_to_rgb, rgb_to_hls
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from matplotlib.colors import to_hex, to_rgb

from specbench.records.trial import BASELINE

INK = "#1b1b1a"
GREY = "#7d7d7d"
DIMMEST = 0.14  # luminance on a dark page: a contrast of 3 with its figures
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
SHADES = {"full": 0.0, "none": 0.45, "left": 0.25, "right": 0.55, "bottom": 0.35, "top": 0.15}  # of colours, by fill
VARIANTS = {
    **dict.fromkeys(("warm", "static", "confidence", "typical", "paper", "depth7", "cold", "beyond"), STYLES[1]),
    **dict.fromkeys(("spec_bench", "tree"), STYLES[2]),
    **dict.fromkeys(("vllm", "tli", "depth2"), STYLES[3]),
}
OTHERS = [  # (colour before shading, marker, fill, line) of methods that are not known; no known one has that colour and marker
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

    Autoregressive decoding is grey. A known method always has its own look, and its variants have its marker in shades of its
    colour. Any other method has the look that its name hashes to. If that colour is taken, it has the next free one.
    """
    known = {name for name in labels if strip_variant(name) in (*KNOWN, BASELINE)}
    looks: Style = {name: _assign_known(name, labels[name]) for name in known}
    taken: set[int] = set()
    for name in sorted(set(labels) - known):
        places = [(crc32(name.encode()) + step) % len(OTHERS) for step in range(len(OTHERS))]
        free = [place for place in places if place not in taken] or places
        colours = {look.colour for look in looks.values()}
        place = next((place for place in free if _pick_other(place, "").colour not in colours), free[0])
        taken.add(place)
        looks[name] = _pick_other(place, labels[name])
    return {name: looks[name] for name in labels} | {BASELINE: Look(GREY, "o", "-", "full", BASELINE)}


def _pick_other(place: int, label: str) -> Look:
    colour, marker, fill, line = OTHERS[place]
    return Look(_shade(colour, SHADES[fill]), marker, line, fill, label)


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
    return Look(_shade(PALETTE[place], SHADES[fill]), MARKERS[place], line, fill, label)


def _shade(colour: str, share: float) -> str:
    """Return a light colour that is darker by this share, or a dark one that is lighter; hue and saturation stay."""
    hue, lightness, saturation = rgb_to_hls(*to_rgb(colour))
    shaded = lightness * (1 - share) if _compute_luminance(colour) > 0.2 else 1 - (1 - lightness) * (1 - share)
    return to_hex(hls_to_rgb(hue, shaded, saturation))


def _compute_luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2, from 0 to 1."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def lighten(colour: str) -> str:
    """Return a colour that contrasts with a dark page as WCAG 2 asks of graphics: the same one, or a lighter one."""
    hue, lightness, saturation = rgb_to_hls(*to_rgb(colour))
    lighter = (to_hex(hls_to_rgb(hue, lightness + (1 - lightness) * step / 20, saturation)) for step in range(21))
    return next(one for one in lighter if _compute_luminance(one) > DIMMEST)


def list_colours() -> dict[str, str]:
    """Return, for every colour of a method on a white page, the one on a dark page."""
    shades = {_shade(colour, share) for colour in PALETTE for share in SHADES.values()}
    return {colour: lighten(colour) for colour in sorted({GREY} | shades)}
