from itertools import pairwise
from xml.etree import ElementTree

import pytest

from rmcl_hub.evaluation.charts import bar_chart, line_chart

LEFT_EDGE, RIGHT_EDGE, TOP_EDGE, BOTTOM_EDGE = 52, 468, 10, 228  # of the plotting area, in SVG units


def polylines(svg):
    lines = ElementTree.fromstring(svg).iter("polyline")
    return [[tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in lines]


def curve(**series):
    return {"title": "Loss <&>", "x_label": "step", "y_label": "nats", "series": series}


class TestLineChart:
    def test_points_fall_where_the_axes_say(self):
        (line,) = polylines(line_chart(curve(a=[[0, 0], [50, 5], [100, 10]])))
        middle = ((LEFT_EDGE + RIGHT_EDGE) / 2, (TOP_EDGE + BOTTOM_EDGE) / 2)
        assert line == [(LEFT_EDGE, BOTTOM_EDGE), middle, (RIGHT_EDGE, TOP_EDGE)]

    def test_series_share_the_axes_and_the_legend_names_them(self):
        svg = line_chart(curve(a=[[0, 0], [10, 1]], b=[[0, 1], [10, 2]]))
        first, second = polylines(svg)
        assert first[-1][1] == pytest.approx(second[0][1])
        assert ">a</text>" in svg
        assert ">b</text>" in svg

    def test_a_band_spans_its_interval_and_stretches_the_axis(self):
        """From 0 to 10 at x = 0 and from 5 to 10 at x = 1, around a line at 5."""
        svg = line_chart(curve(a=[[0, 5], [1, 5]]), {"a": [(0, 0, 10), (1, 5, 10)]})
        (band,) = ElementTree.fromstring(svg).iter("polygon")
        corners = [tuple(map(float, corner.split(","))) for corner in band.get("points").split()]
        middle = (TOP_EDGE + BOTTOM_EDGE) / 2
        assert corners == [
            (LEFT_EDGE, BOTTOM_EDGE),
            (RIGHT_EDGE, middle),
            (RIGHT_EDGE, TOP_EDGE),
            (LEFT_EDGE, TOP_EDGE),
        ]
        assert band.get("fill") == next(ElementTree.fromstring(svg).iter("polyline")).get("stroke")

    def test_the_legend_keeps_clear_of_the_axis_title(self):
        texts = list(ElementTree.fromstring(line_chart(curve(a=[[0, 0], [1, 1]]))).iter("text"))
        places = {text.text: float(text.get("y")) for text in texts}
        ticks, title, legend = places["0.4"], places["step"], places["a"]
        assert legend - title >= 12
        assert title > ticks

    def test_constant_and_single_values_are_drawn(self):
        (line,) = polylines(line_chart(curve(a=[[3, 7]])))
        assert all(LEFT_EDGE <= x <= RIGHT_EDGE and TOP_EDGE <= y <= BOTTOM_EDGE for x, y in line)

    def test_undefined_values_are_left_out(self):
        (line,) = polylines(line_chart(curve(a=[[0, 0], [1, float("nan")], [2, float("inf")], [3, 1]])))
        assert len(line) == 2

    def test_long_series_are_thinned(self):
        (line,) = polylines(line_chart(curve(a=[[step, step] for step in range(10_000)])))
        assert 200 < len(line) < 300

    def test_no_points(self):
        assert "no points were logged" in line_chart(curve(a=[]))

    def test_names_are_escaped(self):
        svg = line_chart(curve(**{"<script>": [[0, 0], [1, 1]]}))
        assert "<script>" not in svg
        assert "Loss &lt;&amp;&gt;" in svg


class TestBarChart:
    def test_bars_and_whiskers_have_the_height_of_their_numbers(self):
        svg = bar_chart({"clean": [(0.5, 0.25, 1.0)]}, ["control"], "accuracy")
        root = ElementTree.fromstring(svg)
        bar = next(rect for rect in root.iter("rect") if float(rect.get("height")) > 20)
        height = BOTTOM_EDGE - TOP_EDGE
        assert float(bar.get("height")) == pytest.approx(height / 2)
        assert float(bar.get("y")) == pytest.approx(TOP_EDGE + height / 2)
        whisker = next(path for path in root.iter("path") if path.get("class") == "whisker").get("d")
        low = BOTTOM_EDGE - 0.25 * height
        assert f" {low:.1f}V{TOP_EDGE:.1f}M" in whisker

    def test_bars_do_not_overlap(self):
        svg = bar_chart({name: [(0.5, 0.4, 0.6)] * 3 for name in "ab"}, ["x", "y", "z"], "accuracy")
        bars = [rect for rect in ElementTree.fromstring(svg).iter("rect") if float(rect.get("height")) > 20]
        spans = [(float(bar.get("x")), float(bar.get("x")) + float(bar.get("width"))) for bar in bars]
        assert len(spans) == 6
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert spans[0][0] >= LEFT_EDGE
        assert spans[-1][1] <= RIGHT_EDGE

    def test_crowded_labels_are_slanted_and_get_room(self):
        def draw(names):
            svg = bar_chart({name: [(0.5, 0.4, 0.6)] for name in names}, ["x"], "accuracy")
            return svg, float(ElementTree.fromstring(svg).get("viewBox").split()[3])

        short, short_height = draw(["a", "b"])
        crowded, crowded_height = draw([f"joint-{index}-combined" for index in range(7)])
        assert "rotate" not in short
        assert crowded.count("rotate(-35") == 7
        assert crowded_height > short_height + 40
