from __future__ import annotations

import random

import numpy as np
from scipy import ndimage

from data.drawings import CAPTIONS, COLOURS, COUNTS, PLACES, Drawings, draw
from data.images import decoded
from data.pairs import Pairs
from data.pairs_spec import PairsSpec


def test_captions_are_all_different_and_say_what_is_drawn() -> None:
    assert len(set(CAPTIONS)) == len(CAPTIONS) == 720
    for number in range(0, 720, 7):
        caption = CAPTIONS[number]
        image = np.asarray(draw(number, random.Random(number)), int)
        colour = next(value for name, value in COLOURS.items() if f" {name} " in caption)
        drawn = np.abs(image - np.array(colour)).sum(-1) < 10
        _, found = ndimage.label(drawn, structure=np.ones((3, 3)))  # a thin point may step aside
        assert found == COUNTS[caption.split()[0]], caption
        y, x = (axis.mean() / 96 for axis in np.nonzero(drawn))
        place = next(value for name, value in PLACES.items() if caption.endswith(name))
        assert abs(x - place[0]) < 0.1, caption
        assert abs(y - place[1]) < 0.1, caption


def test_a_drawing_is_a_function_of_its_number_and_seed() -> None:
    one, same, other = Drawings(800, 1), Drawings(800, 1), Drawings(800, 2)
    assert one.read(5) == same.read(5)
    assert one.read(5) != other.read(5)
    assert one.read(5) != one.read(725)  # the same caption, another drawing
    assert decoded(one.read(5)).size == (96, 96)


def test_held_out_drawings_are_combinations_never_trained_on() -> None:
    pairs = Pairs(PairsSpec(generator="drawings", count=1500, held_out=0.2))
    unseen = set(pairs.captions(pairs.held_out))
    assert 80 < len(unseen) < 220
    assert not unseen & set(pairs.captions(pairs.train))
