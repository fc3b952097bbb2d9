"""How figures are named and written for people: measures, vectors, durations, sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable

TITLES = {
    "cosine": "Cosine",
    "spearman": "Spearman",
    "pair_order": "Pair order",
    "recall@1": "Recall@1",
    "recall@10": "Recall@10",
}


def ordered(found: Iterable[str]) -> list[str]:
    """Measures in the order of this module, unknown ones last."""
    places = {name: place for place, name in enumerate(TITLES)}
    return sorted(dict.fromkeys(found), key=lambda name: (places.get(name, len(places)), name))


def title(measure: str) -> str:
    """A measure's name for people: `asymmetric recall@1` is Asymmetric recall@1."""
    use, _, plain = measure.rpartition(" ")
    return (
        f"{use.capitalize()} {TITLES.get(plain, plain).lower()}"
        if use
        else TITLES.get(measure, measure)
    )


def figure(value: float | None) -> str:
    """A value with three decimals, and none as a dash."""
    return "–" if value is None else f"{value:.3f}"


def head_title(vector: str) -> str:
    """A vector's name for people: `fc1[:256]` is FC1[:256], `init` the untrained student."""
    if vector == "init":
        return "untrained"
    return vector.upper() if vector.startswith("fc") else vector


def duration(seconds: float) -> str:
    """How long something took, as people say it."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def file_name(measure: str) -> str:
    """A measure as part of a file's name: `recall@10` is recall-10."""
    return re.sub("[^a-z0-9]+", "-", measure.lower())
