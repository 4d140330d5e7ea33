"""What a figure says to a reader who points at it: whose each line is, and the value of each point. Kept in the SVG text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import compress
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
HREF = f"{{{XLINK}}}href"
DRAWN = (f"{{{SVG}}}path", f"{{{SVG}}}use")
NUMERIC = {"style", "d", "x", "y", "transform", "points", "width", "height"}
OPACITY = re.compile(r"(^|;)opacity")
FONT = re.compile(r"font-family: [^;]*;? ?")
FRACTION = re.compile(r"\d+\.\d{3,}")
UPRIGHT = re.compile(r"rotate\(-?0 .*")
REFERENCE = re.compile(r"#([\w-]+)")


def name_points(artist: Artist, method: str, values: Iterable[str] = (), tasks: Iterable[str] = ()) -> None:
    """Say whose line or points an artist draws. values, tasks: one per point; none for lines without points."""
    texts = [list(values), list(tasks)]
    if isinstance(artist, Line2D):  # no point is drawn where a number is missing
        drawn = np.isfinite(np.asarray(artist.get_xydata(), float)).all(axis=1)
        texts = [list(compress(one, drawn)) for one in texts]
    artist.set_gid(json.dumps([method, *texts]))


def format_limits(row: Mapping[Any, Any] | pd.Series, name: str = "speedup", places: int = 2) -> str:
    """Return 2.31 [2.20, 2.44], or 2.31 without limits."""
    value, low, high = (row[f"{name}{side}"] for side in ("", "_low", "_high"))
    return f"{value:.{places}f}" + ("" if pd.isna(low) else f" [{low:.{places}f}, {high:.{places}f}]")


def repeat_name(artist: object, others: Iterable[Artist]) -> None:
    """Say of other artists, such as those of a legend, that they are of the same method."""
    if isinstance(artist, Artist) and (gid := artist.get_gid()):
        for other in others:
            name_points(other, json.loads(gid)[0])


def finish_svg(text: str, alternative: str) -> str:
    """Return a figure's SVG with data-method, data-value and data-task where `name_points` was called, at half the size.

    alternative: what the figure shows, for those who cannot see it.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(text)
    root.attrib.update({"role": "img", "aria-label": alternative, "font-family": "system-ui, 'DejaVu Sans', sans-serif"})
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for group in root.iter(f"{{{SVG}}}g"):
        if group.get("id", "").startswith("["):
            _label_points(group, *json.loads(group.attrib.pop("id")))
    used = {name for element in root.iter() for name in _find_references(element)}
    for element in root.iter():
        _shorten(element, used)
        _join_attributes(element)
    return ElementTree.tostring(root, encoding="unicode")


def _label_points(group: Element, method: str, values: list[str], tasks: list[str]) -> None:
    group.set("data-method", method)
    points = list(_list_points(group))
    for name, texts in (("data-value", values), ("data-task", tasks)):
        if len(texts) == len(points):
            for point, text in zip(points, texts, strict=True):
                point.set(name, text)


def _list_points(group: Element) -> Iterator[Element]:
    """Yield the markers of a line, or the shapes of a collection or patch."""
    markers = list(group.iter(f"{{{SVG}}}use"))
    yield from markers or group.iter(f"{{{SVG}}}path")


def _find_references(element: Element) -> list[str]:
    return [name for key, value in element.items() if key in (HREF, "clip-path") for name in REFERENCE.findall(value)]


def _shorten(element: Element, used: set[str]) -> None:
    """Drop names that nothing refers to, fonts, blanks and digits that cannot be seen."""
    if element.get("id") not in used:
        element.attrib.pop("id", None)
    for key in [key for key in element.attrib if key in NUMERIC]:
        value = FRACTION.sub(_round, UPRIGHT.sub("", FONT.sub("", element.attrib.pop(key))))
        if value:
            element.set(key, value.replace("\n", "").replace(": ", ":").replace("; ", ";"))
    for part in ("text", "tail"):
        if not (getattr(element, part) or "").strip():
            setattr(element, part, None)


def _round(found: re.Match[str]) -> str:
    return f"{float(found[0]):.{2 - (len(found[0].partition('.')[0]) > 1)}f}".rstrip("0").rstrip(".")


def _join_attributes(group: Element) -> None:
    """Move what all shapes of a group have in common to the group. Opacity stays: a group's is another thing."""
    if len(group) < 2 or any(shape.tag not in DRAWN for shape in group):
        return
    for key in [key for key in ("style", "clip-path") if key not in group.attrib]:
        values = {shape.get(key, "") for shape in group}
        if len(values) == 1 and (value := values.pop()) and not OPACITY.search(value):
            group.set(key, value)
            for shape in group:
                del shape.attrib[key]


def describe_figure(figure: Figure) -> str:
    """Return the titles and axes of a figure."""
    parts = []
    for axes in figure.axes:
        names = " by ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel())))
        parts.append(axes.get_title("left") + f" ({names})" * bool(names))
    return "Chart: " + "; ".join(parts)
