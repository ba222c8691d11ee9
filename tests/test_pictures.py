"""Pictures are files of their kind with everything inside; the page holds all it shows."""

import re
import sys

import numpy as np
import pytest
from test_validation import path  # noqa: F401, a fixture

from headroute import pictures, plots
from headroute.cli import main
from headroute.pictures import PICTURES, page, plot, read_subject
from headroute.validation import validate

PNG = b"\x89PNG\r\n\x1a\n"


def inside(figure):
    """Whether nothing reaches over the edge of the figure, by more than half a pixel."""
    figure.canvas.draw()
    box, slack = figure.get_tightbbox(), 0.5 / figure.dpi
    width, height = figure.get_size_inches()
    low, high = min(box.x0, box.y0), max(box.x1 - width, box.y1 - height)
    return low >= -slack and high <= slack


@pytest.mark.parametrize("kind", PICTURES)
def test_every_kind(path, tmp_path, kind):  # noqa: F811
    subject = read_subject(path, None, None, None)
    for name in ("a.png", "b.SVG"):
        report = plot(subject, kind, tmp_path / name)
        assert (report.pictures, report.questions, report.heads) == ([kind], 25, 5)
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    assert b"<svg" in (tmp_path / "b.SVG").read_bytes()
    assert sorted(p.name for p in tmp_path.glob("*.*") if p.suffix != ".db") == ["a.png", "b.SVG"]


def names(n):
    return [f"a name that is longer than any label may be, number {i}" for i in range(n)]


def test_nothing_is_cut_off(rng):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    groups = np.arange(500) % 40
    weights = rng.dirichlet(np.ones(40), 500)
    curve = [(0.01, -3.0), (0.1, -0.5), (1.0, -900.0)]
    for figure in (
        plots.weights_figure(weights, groups, names(40), 0.1),
        plots.map_figure(
            rng.standard_normal((500, 9)), groups, np.eye(40, 9) + 0.1, groups[:40], names(40)
        ),
        plots.temperature_figure(0.05, curve, [(0.01, 0.2), (0.1, 1.0)], "500 held-out questions"),
        plots.temperature_figure(0.05, (), [(0.01, 0.0)], "1 question"),
    ):
        FigureCanvasAgg(figure)
        assert inside(figure)


def test_many_groups_and_few_dimensions(rng):
    """Without names from 41 groups on; one dimension has no second component."""
    groups = np.arange(90) % 45
    plots.weights_figure(rng.dirichlet(np.ones(45), 90), groups, names(45), 0.1)
    figure = plots.map_figure(
        rng.random((90, 1)) + 1, groups, np.ones((45, 1)), groups[:45], names(45)
    )
    assert not figure.legends


def test_the_page_is_self_contained_and_safe(path):  # noqa: F811
    report = validate(path, folds=3)
    html = page("<script>alert(1)</script>.db", report, {"map": PNG})
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    assert "routing helps: +" in html
    assert "nearest question" in html


def test_commands(path, tmp_path, capsys):  # noqa: F811
    assert main(["plot", "weights", "--db", str(path), "-o", str(tmp_path / "w.png")]) == 0
    arguments = ["report", "--db", str(path), "--cross-validate", "3"]
    assert main([*arguments, "-o", str(tmp_path / "r.html")]) == 0
    html = (tmp_path / "r.html").read_text()
    assert html.count("data:image/png;base64,") == 3
    capsys.readouterr()
    assert main(["plot", "map", "--db", str(path), "-o", str(tmp_path / "w.jpg")]) == 2
    assert "a picture's name ends in .png or .svg" in capsys.readouterr().err


def test_without_matplotlib(path, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    subject = read_subject(path, None, None, None)
    with pytest.raises(ValueError, match=r"matplotlib.*pip install 'headroute\[plot\]'"):
        pictures.plot(subject, "weights", tmp_path / "a.png")
