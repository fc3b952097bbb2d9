"""Pictures that are drawn, with captions that follow from the drawing. Nothing is downloaded.

A caption names a count, a size, a colour, a shape and a place: 720 captions in all, of which a
share may be held out, so that a student is measured on combinations it has never seen. Every
drawing is a function of its number and a seed: background, exact place and exact size vary.
"""

from __future__ import annotations

import math
import random
from io import BytesIO
from itertools import product

import pyarrow as pa
from PIL import Image, ImageDraw

from data.captions import Skipped

COUNTS = {"one": 1, "two": 2, "three": 3}
COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 150, 60),
    "blue": (40, 80, 214),
    "yellow": (240, 200, 30),
    "purple": (140, 50, 170),
    "black": (25, 25, 25),
}
CORNERS = {"circle": 0, "triangle": 3, "square": 4, "star": 5}
PLACES = {
    "at the top left": (0.28, 0.28),
    "at the top right": (0.72, 0.28),
    "in the middle": (0.5, 0.5),
    "at the bottom left": (0.28, 0.72),
    "at the bottom right": (0.72, 0.72),
}
SIZES = {"small": 0.09, "large": 0.15}

CAPTIONS = [
    f"{count} {size} {colour} {shape}{'' if count == 'one' else 's'} {place}"
    for count, size, colour, shape, place in product(COUNTS, SIZES, COLOURS, CORNERS, PLACES)
]

_SIDE = 96
_KINDS = [
    *product(COUNTS.values(), SIZES.values(), COLOURS.values(), CORNERS.values(), PLACES.values())
]


class Drawings:
    """`count` drawings: the captions in turn, each drawing different from all others."""

    def __init__(self, count: int, seed: int) -> None:
        self._seed = seed
        self.skipped = Skipped()
        texts = [CAPTIONS[row % len(CAPTIONS)] for row in range(count)]
        self.captions = pa.chunked_array([pa.array(texts, pa.string())])

    def name(self, row: int) -> str:
        """What errors call a drawing."""
        return f"drawing {self._seed}-{row}"

    def read(self, row: int) -> bytes:
        """A drawing as the bytes of a PNG."""
        stream = BytesIO()
        draw(row % len(CAPTIONS), random.Random(f"{self._seed}-{row}")).save(stream, "PNG")
        return stream.getvalue()


def draw(caption: int, chance: random.Random) -> Image.Image:
    """A picture of what `CAPTIONS[caption]` says, 96 pixels a side."""
    count, size, colour, corners, (x, y) = _KINDS[caption]
    shade = chance.randint(215, 255)
    image = Image.new("RGB", (_SIDE, _SIDE), (shade, shade, chance.randint(205, 255)))
    pen = ImageDraw.Draw(image)
    radius = size * _SIDE / (1 if count == 1 else 1.7) * chance.uniform(0.9, 1.1)
    turn = chance.uniform(0, 2 * math.pi)
    centre = [part * _SIDE + chance.uniform(-3, 3) for part in (x, y)]
    for number in range(count):
        away = (0.0, 1.45, 1.7)[count - 1] * radius
        angle = turn + 2 * math.pi * number / count
        place = (centre[0] + away * math.cos(angle), centre[1] + away * math.sin(angle))
        _shape(pen, corners, place, radius, colour)
    return image


def _shape(
    pen: ImageDraw.ImageDraw,
    corners: int,
    centre: tuple[float, float],
    radius: float,
    colour: tuple[int, int, int],
) -> None:
    x, y = centre
    if corners == 0:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        return
    star = corners == 5
    points = 2 * corners if star else corners
    start = -math.pi / 2 + (math.pi / 4 if corners == 4 else 0)
    outline = []
    for number in range(points):
        reach = radius * (0.45 if star and number % 2 else 1.15)
        angle = start + 2 * math.pi * number / points
        outline.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    pen.polygon(outline, fill=colour)
