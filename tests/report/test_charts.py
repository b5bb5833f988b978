"""Charts: valid SVG in the colors of the page, and what their lines, dots and labels show."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.report import charts
from pipeline.report.charts import dot_chart, histogram_chart, line_chart, reliability_chart, scatter_chart
from pipeline.report.curves import curve_of

BINS = {"num_images": [5, 0, 5], "confidence": [0.2, None, 0.9], "top1": [0.5, None, 0.8]}


def curve(values, label=""):
    return curve_of([{"step": step, "loss": value} for step, value in enumerate(values)], "loss", label)


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def heights(svg: str, variable: str) -> list[list[float]]:
    """The y coordinates of the lines of a color, from the top."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*stroke: var\({variable}\)', svg)
    return [[float(y) for y in re.findall(r"[ML] [\d.-]+ ([\d.-]+)", path)] for path in paths]


CHARTS = {
    "lines": lambda: line_chart("name", [curve([3.0, 2.0, 1.0], "a"), curve([3.0, 1.0, 2.0], "b")], "step", "text"),
    "histogram": lambda: histogram_chart("name", {"teacher": [0.1, 0.9, 1.0]}, ("probability", "%"), "text"),
    "dots": lambda: dot_chart("name", ["x", "y"], {"student": [50.0, None], "teacher": [60.0, 70.0]}, "%", "text"),
    "scatter": lambda: scatter_chart("name", np.array([50.0, 100.0]), np.array([40.0, 90.0]), ("x", "y"), "text"),
    "reliability": lambda: reliability_chart("name", {"student": BINS, "teacher": BINS}, "text"),
}


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_chart_is_an_image_with_a_description_in_the_colors_of_the_page(chart):
    svg = chart()
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert (root.tag, root.get("role"), root.get("aria-label")) == ("svg", "img", "text")
    assert "var(--series-0)" in svg
    assert not re.search(r"#(?!\w+[\")])\w{6}|rgb\(|font-family|<style", svg.replace("#000000", ""))
    assert chart() == svg


def test_ids_of_two_charts_differ():
    first, second = (line_chart(name, [curve([1.0, 2.0])], "step", "") for name in ("first", "second"))
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])


def test_description_is_escaped():
    assert 'aria-label="a &#34;b&#34; &lt;c&gt;"' in line_chart("name", [curve([1.0])], "step", 'a "b" <c>')


def test_line_falls_as_its_values_do():
    raw, smooth = heights(line_chart("name", [curve([3.0, 2.0, 1.0])], "step", ""), "--series-0")
    assert raw == smooth
    assert raw[0] < raw[1] < raw[2]  # SVG counts from the top
    assert raw[1] - raw[0] == pytest.approx(raw[2] - raw[1], abs=0.1)


def test_values_over_decades_have_a_log_axis():
    raw, _ = heights(line_chart("name", [curve([100.0, 10.0, 1.0])], "step", ""), "--series-0")
    assert raw[1] - raw[0] == pytest.approx(raw[2] - raw[1], abs=0.1)
    assert {"100", "10", "1"} <= set(texts(line_chart("name", [curve([100.0, 10.0, 1.0])], "step", "")))


def test_labels_stand_apart_at_the_ends_of_equal_lines():
    svg = line_chart("name", [curve([2.0, 1.0], label) for label in ("a", "b", "c")], "step", "")
    places = dict(re.findall(r'<text[^>]*y="([\d.]+)"[^>]*>([abc])</text>', svg))
    ys = sorted(map(float, places))
    assert len(ys) == 3
    assert min(b - a for a, b in pairwise(ys)) > 8
    assert "1" in texts(line_chart("name", [curve([2.0, 1.0])], "step", ""))  # a single line ends in its value


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [1e-9, 1e9], [-1.0, 1.0], [5.0, 5.0]])
def test_any_values_have_a_chart(values):
    svg = line_chart("name", [curve(values)], "step", "")
    ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert "nan" not in svg


def test_equal_dots_of_two_networks_are_both_drawn():
    svg = dot_chart("name", ["x"], {"student": [50.0], "teacher": [50.0]}, "%", "")
    assert {"● student", "○ teacher", "x"} <= set(texts(svg))
    assert "fill: var(--series-0)" in svg
    assert "fill-opacity: 0; stroke: var(--series-1)" in svg


@pytest.mark.parametrize(
    ("values", "at_most"), [([98.0, 100.0], 100), ([0.0, 100.0], 100), ([60.0, 70.0], 100), ([50.0, 115.0], 130)]
)
def test_axis_ends_at_100_percent_unless_a_value_is_higher(monkeypatch, values, at_most):
    limits, end_at_100 = [], charts._end_at_100
    monkeypatch.setattr(charts, "_end_at_100", lambda axes: end_at_100(axes) or limits.extend(axes.get_xlim()))
    dot_chart("name", ["x", "y", "z"], {"student": [*values, None]}, "%", "")
    low, high = limits
    assert 0 <= low <= values[0]
    assert values[1] <= high <= at_most


def test_empty_bins_have_no_dot():
    svg = reliability_chart("name", {"student": BINS}, "")
    (line,) = heights(svg, "--series-0")
    assert len(line) == 2


def test_titles_of_any_characters_are_drawn_as_they_are():
    title, long = "a $x_1$ <b> & 猫", "a title that is too long for a chart"
    svg = dot_chart("name", [title, long], {"student": [50.0, 60.0]}, "%", "")
    assert {"a $x_1$ &lt;b&gt; &amp; 猫", "a title tha…for a chart"} <= set(texts(svg))


def test_more_lines_than_colors_are_told_apart():
    svg = line_chart("name", [curve([3.0 + i, 2.0 + i], f"run {i}") for i in range(8)], "step", "")
    assert {"run 0", "run 5", "╌ run 6", "╌ run 7"} <= set(texts(svg))
    assert svg.count("stroke-dasharray") == 2


def test_histogram_holds_values_above_one():
    shown = texts(histogram_chart("name", {"distance": [0.5, 1.1, 1.2]}, ("distance", "% of classes"), ""))
    assert {"1.2", "distance", "% of classes"} <= set(shown)


def test_labels_of_many_steps_stay_apart():
    """Seven characters of 11 units take 40 of the 300 that an axis has."""
    svg = line_chart("name", [curve_of([{"step": step, "loss": 1.0} for step in (0, 1_800_000)], "loss")], "step", "")
    labels = [text for text in texts(svg) if "," in text]
    assert labels == ["400,000", "800,000", "1,200,000", "1,600,000"]


def test_steps_are_whole_numbers():
    labels = texts(line_chart("name", [curve([3.0, 2.0])], "step", ""))
    assert [text for text in labels if text in ("0", "1")] == ["0", "1"]
