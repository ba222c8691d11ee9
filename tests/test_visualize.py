"""The bars: the chapter's picture, and what it leaves open (order, cut-off, long names, width)."""

import numpy as np
import pytest

from headroute.visualize import bar, shorten, weight_bars


def test_the_chapters_picture() -> None:
    lines = weight_bars([0.82, 0.12, 0.06], ["Head 0 (Auth)", "Head 1 (Data)", "Head 2 (Perf)"])
    assert lines == [
        "  Head 0 (Auth)  0.82 " + "█" * 32,  # int(0.82 * 40)
        "  Head 1 (Data)  0.12 ████",
        "  Head 2 (Perf)  0.06 ██",
    ]


@pytest.mark.parametrize("weight", [0.0, 0.024, 0.025, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("width", [1, 40, 70])
def test_a_bar_is_a_whole_number_of_blocks(weight: float, width: int) -> None:
    assert bar(weight, width) == "█" * int(weight * width)


def test_order() -> None:
    weights, names = [0.2, 0.5, 0.2, 0.1], ["a", "b", "c", "d"]
    assert [line[2] for line in weight_bars(weights, names)] == ["a", "b", "c", "d"]
    assert [line[2] for line in weight_bars(weights, names, by_weight=True)] == ["b", "a", "c", "d"]


@pytest.mark.parametrize("by_weight", [False, True])
def test_the_top_heads_and_what_the_others_add_up_to(by_weight: bool) -> None:
    weights = np.array([0.01, 0.50, 0.01, 0.46, 0.02], np.float32)
    lines = weight_bars(weights, list("abcde"), top=2, by_weight=by_weight)
    assert lines == [
        "  b  0.50 " + "█" * 20,
        "  d  0.46 " + "█" * 18,
        "  and 3 more, together 0.04",
    ]


def test_all_heads_fit_into_top() -> None:
    assert weight_bars([0.6, 0.4], ["a", "b"], top=2) == weight_bars([0.6, 0.4], ["a", "b"])


def test_lines_fit_into_80_columns() -> None:
    lines = weight_bars([1.0, 0.0], ["a name that is longer than any name should be", "b\nc"])
    assert max(map(len, lines)) == 80
    assert lines[1].split() == ["b", "c", "0.00"]


def test_no_heads() -> None:
    assert weight_bars([], []) == []


@pytest.mark.parametrize(
    ("weights", "names", "options", "message"),
    [
        ([0.5, 0.5], ["a"], {}, r"1 names for weights of shape \(2,\)"),
        ([[0.5, 0.5]], ["a"], {}, r"1 names for weights of shape \(1, 2\)"),
        ([1.0], ["a"], {"width": 0}, "width must be at least 1, got 0"),
        ([1.0], ["a"], {"top": 0}, "top must be at least 1, got 0"),
    ],
)
def test_bad_input(weights, names, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        weight_bars(weights, names, **options)


@pytest.mark.parametrize(
    ("text", "short"), [("abc", "abc"), ("abcdef", "abc…"), ("a\n b\tc", "a b…"), ("", "")]
)
def test_shorten(text: str, short: str) -> None:
    assert shorten(text, 4) == short
