"""Where the sentences of English prose end: rules and short lists, no model.

A sentence ends behind `.`, `!`, `?` or an ellipsis, together with the quotes and brackets that
close there, where white space follows and then no small letter; and at the end of a paragraph or
of a line that is not merely wrapped. A period is none after an initial ("J. Smith"), a title
("Dr. Who"), an abbreviation ("e.g. Paris", "No. 5", "U.S. Army") or the number of a list
("2. Next").

Not told apart: a line that is wrapped before a capital ends there; a sentence that ends with "Dr.",
"e.g." and the like, or with a single letter other than I ("vitamin C. The …"), goes on; one that
begins with a small letter ("iPhones sell.") is taken for a continuation; after "U.S.", "p.m." or
"Inc." a new sentence is seen only if it begins with one of the words that often begin one. Text
without these marks, tables, and languages that use others stay as long as their lines.
"""

import re
from collections.abc import Iterator


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Before these a sentence hardly ever ends; after them a name, a number or an example follows.
_TITLES = _words(
    """
    adm brig capt cmdr col cpl dr fr gen gov hon lt maj messrs mr mrs ms mt pres prof rep rev sen
    sgt st ste cf e.g eg i.e ie viz vs v ca approx
    """
)
# Abbreviations only where a number follows.
_NUMBERED = _words("no nos fig figs vol vols ch chap p pp eq eqs sec art pt par ed")
# These end a sentence or do not: the next word decides.
_EITHER = _words(
    """
    inc ltd corp co bros jr sr etc al ave blvd rd dept est univ assn
    jan feb mar apr jun jul aug sep sept oct nov dec
    """
)
_STARTERS = _words(
    """
    A After All Although An And Another Any As At Because Before But By During Each Even Every
    Finally First For From Further Furthermore He Her Here His How However I If In Instead It Its
    Later Many Moreover Most My No Nor Not Now Of On Once One Only Or Other Our Over Perhaps She
    Since So Some Soon Still Such Than That The Their Then There These They This Those Though
    Through Thus To Today Under Unlike Until We Were What When Where Whether Which While Who Why
    With Yet You Your
    """
)

_OPENING = "\"'(\\[“\u2018«"
_CLOSING = "\"'”\u2019»)\\]*_"
# The end of a sentence with what closes there, or a line break; and the space up to the next word.
_BREAK = re.compile(
    rf"(?:(?<![.!?…])(?P<mark>[.!?…]++)[{_CLOSING}]*+(?=\s)|(?=\n))\s++"
    rf"(?=(?P<next>[{_OPENING}]*\S))"
)
_WORD_BEFORE = re.compile(r"[^\s(\[\"'“\u2018—–]*\Z")
_WORD_AFTER = re.compile(rf"[{_OPENING}]*(\w*)")
# How far back the word before a mark is looked for: longer ones are no abbreviations.
_REACH = 24


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Give the sentences of a text in order, as (start, end) without the space around them.

    Together they hold every character of the text that is not white space.
    """
    start = len(text) - len(text.lstrip())
    last = len(text.rstrip())
    for match in _BREAK.finditer(text, start, last):
        if _ends_here(text, start, match):
            yield start, start + len(text[start : match.end()].rstrip())
            start = match.end()
    if start < last:
        yield start, last


def _ends_here(text: str, start: int, match: re.Match[str]) -> bool:
    breaks = match[0].count("\n")
    if breaks > 1:
        return True  # a paragraph ends
    if match["next"][-1].islower():
        return False  # a line that is wrapped, or a pause within a sentence
    return breaks == 1 or match["mark"] != "." or _is_full_stop(text, start, match)


def _is_full_stop(text: str, start: int, match: re.Match[str]) -> bool:
    mark = match.start("mark")
    found = _WORD_BEFORE.search(text, max(start, mark - _REACH), mark)
    word = found[0] if found else ""
    lower = word.lower()
    if len(word) == 1 and word.isalpha():
        return word == "I" and _starts(text, match.end())
    if lower in _TITLES:
        return False
    if lower in _NUMBERED:
        return not match["next"][-1].isdigit()
    if lower in _EITHER or (1 < len(word) < _REACH and "." in word and _spells_letters(word)):
        return _starts(text, match.end())
    # The number of a list, at the beginning of its line.
    return not (word.isdecimal() and len(word) < 4 and mark - len(word) == start)


def _starts(text: str, place: int) -> bool:
    match = _WORD_AFTER.match(text, place)
    return match is not None and match[1] in _STARTERS


def _spells_letters(word: str) -> bool:
    """Whether a word with periods inside abbreviates: U.S, p.m, Ph.D, not example.com or 3.5."""
    return all(part.isalpha() and len(part) <= 2 for part in word.split("."))
