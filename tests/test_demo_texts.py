from collections.abc import Callable
from pathlib import Path

import pytest

from data import demo
from data.corpus import Corpus, CorpusSpec
from data.demo import prose, python_docstrings

LONG_WORDS = "The quick brown fox is said to jump over the lazy dog in the garden."

Install = Callable[[dict[str, str]], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make modules, by path and docstring, the only ones there are."""

    def write(modules: dict[str, str]) -> None:
        for name, docstring in modules.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'"""{docstring}"""\n')
        monkeypatch.setattr(demo, "_packages", lambda: iter([tmp_path]))

    return write


def test_prose_is_what_stands_at_the_margin_in_sentences() -> None:
    docstring = """Compute the weighted average of all the numbers in a list.

    The weights are first made to sum to one, so that their scale
    does not matter; a weight may also be zero.

    Parameters
    ----------
    numbers : list of float
        The numbers that the average is taken of, in any order at all.

    Notes
    -----
    The result is computed in one pass over the list, from the left to the right.

    Args:
        numbers: The numbers that the average is taken of, in any order at all.

    .. note:: The order of the numbers is of no importance to the result of it.

    :param numbers: The numbers that the average is taken of, in any order at all.

    - The first of the points that are made in a list that is not prose.

    >>> average([1, 2, 3])  # The example that is shown to the readers of this.
    2.0

    | The | table | that is | drawn with | characters | is | not | prose. |
    """
    assert list(prose(docstring)) == [
        "Compute the weighted average of all the numbers in a list.",
        "The weights are first made to sum to one, so that their scale does not matter; a weight "
        "may also be zero.",
        "The result is computed in one pass over the list, from the left to the right.",
    ]


def test_markup_is_taken_off_the_words_it_marks() -> None:
    docstring = (
        "The :class:`~pkg.Thing` has *one* ``name``, **two** `parts`, and a "
        "`long story <https://x.org>`_ in [the guide](https://y.org)."
    )
    assert list(prose(docstring)) == [
        "The pkg.Thing has one name, two parts, and a long story in the guide."
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Too short to be of any use.",
        "A sentence that is cut off before it has come to its end and",
        "lower case is what the rest of a sentence or an identifier begins with.",
        "The value of x = f(y) is what is returned by the function that is called.",
        "The fields are a_b, c_d, e_f, g_h, i_j, k_l, m_n, o_p and q_r.",
        "Smith, J. and Doe, A., The Art of the Index, pp. 12-34 of the Journal.",
        "Alpha Beta Gamma Delta Epsilon Zeta Eta Theta Iota Kappa Lambda.",
        "As it is shown in [1]_ the series converges for all of the numbers.",
        f"{'The words go on and on and on. ' * 40}",
    ],
)
def test_what_does_not_read_as_a_sentence_is_left_out(text: str) -> None:
    assert list(prose(text)) == []


def test_docstrings_of_modules_classes_and_functions_are_found(
    install: Install, tmp_path: Path
) -> None:
    install({"m.py": LONG_WORDS})
    (tmp_path / "n.py").write_text('''
class A:
    """A class that stands for something that is not further explained."""
    if True:
        async def f(self):
            """Do something that is of importance to whoever waits for it."""
            def g():
                """Help the outer function with what it cannot do by itself."""
    text = """This is not documentation but a text in the middle of the code."""
''')
    assert {text.split()[0] for text in python_docstrings()} == {"The", "A", "Do", "Help"}


def test_modules_are_parsed_and_never_run(install: Install, tmp_path: Path) -> None:
    install({"m.py": LONG_WORDS})
    with (tmp_path / "m.py").open("a") as module:
        module.write("raise SystemExit('this was run')\n")
    (tmp_path / "broken.py").write_text('"""Not Python at all, though it has a docstring."""\n)(\n')
    (tmp_path / "old.py").write_text('"""A stray escape \\d is a warning where it is parsed."""\n')
    assert list(python_docstrings()) == [LONG_WORDS]


def test_tests_and_copies_of_other_packages_are_left_out(install: Install) -> None:
    install({f"p/{folder}/m.py": LONG_WORDS for folder in demo.SKIPPED_FOLDERS})
    assert list(python_docstrings()) == []


def test_one_template_filled_in_twice_counts_once(install: Install) -> None:
    sentence = "Return the {} of the given array along the axis that was {} by the caller."
    ways = [("sum", "chosen"), ("mean", "chosen"), ("sum", "named")]
    install({f"m{i}.py": sentence.format(*way) for i, way in enumerate(ways)})
    assert list(python_docstrings()) == [sentence.format("sum", "chosen")]


def test_the_order_does_not_follow_the_files(install: Install) -> None:
    names = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota")
    sentences = [
        f"{name.title()} is the {name} of all letters, and it is {name}." for name in names
    ]
    install({f"{name}.py": text for name, text in zip(names, sentences, strict=True)})
    shuffled = list(python_docstrings())
    assert sorted(shuffled) == sorted(sentences)
    assert shuffled != sentences
    kept = [text for text in shuffled if text != sentences[0]]
    install({f"{names[0]}.py": ""})
    assert list(python_docstrings()) == kept


def test_this_python_has_thousands_of_paragraphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGES", ("absent_package", "joblib", "pydantic/v1"))
    spec = CorpusSpec.model_validate(
        {"sources": [{"name": "docs", "generator": "python-docstrings"}], "held_out": 0.05}
    )
    corpus = Corpus(spec)
    texts = [text.text for text in corpus]
    assert len(texts) > 3000
    assert all(40 <= len(text) <= 1000 for text in texts)
    assert corpus.counts.sources["docs"].duplicates == 0


@pytest.mark.slow
def test_the_demo_has_between_fifteen_and_forty_thousand_paragraphs() -> None:
    texts = list(python_docstrings())
    assert 15_000 < len(texts) < 40_000
    assert len(set(texts)) == len(texts)
