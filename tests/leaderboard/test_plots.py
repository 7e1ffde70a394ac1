from plots import (
    COLOURS,
    MODEL,
    RADIUS,
    ROBUST,
    THREAT,
    accuracy_points,
    colours_of,
    curve_points,
    legend_html,
)


def test_one_point_per_row(make_row):
    points = accuracy_points(
        [make_row("A", right=48, held=24), make_row("B", "words-20pct", right=32, held=8)]
    )
    assert points.to_numpy().tolist() == [
        [75.0, 37.5, "27.5 to 47.5", "A", "linf-4"],
        [50.0, 12.5, "2.5 to 22.5", "B", "words-20pct"],
    ]
    assert list(accuracy_points([])) == list(points)


def test_curves_are_of_one_norm(make_row):
    rows = [make_row("A"), make_row("B", "words-20pct"), make_row("C")]
    rows[2]["curve"]["norm"] = "l2"
    points = curve_points(rows, "linf")
    assert points[RADIUS["linf"]].tolist() == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert points[ROBUST].tolist() == [round(100 * share, 1) for share in rows[0]["curve"]["robust_accuracy"]]
    assert set(points[MODEL]) == {"A, linf-4"}
    pixels = curve_points(rows, "l2")
    assert pixels[RADIUS["l2"]].tolist() == [round(epsilon, 3) for epsilon in rows[2]["curve"]["epsilons"]]
    assert set(pixels[MODEL]) == {"C, linf-4"}


def test_no_more_curves_than_colours(make_row):
    rows = [make_row(f"model {letter}") for letter in "abcdefgh"]
    labels = [f"model {letter}, linf-4" for letter in "abcdef"]
    assert curve_points(rows, "linf")[MODEL].unique().tolist() == labels
    assert curve_points(rows[::-1], "linf")[MODEL].unique().tolist()[0] == "model h, linf-4"


def test_labels_keep_their_colours_and_are_escaped(make_row):
    colours = colours_of(accuracy_points([make_row("A"), make_row("B", "words-20pct")])[THREAT])
    assert colours == {"linf-4": COLOURS[0], "words-20pct": COLOURS[1]}
    assert len(colours_of(map(str, range(10)))) == 10
    assert len(set(COLOURS)) == 6
    assert "<b>" not in legend_html({"<b>": COLOURS[0]})
    assert "&lt;b&gt;" in legend_html({"<b>": COLOURS[0]})
