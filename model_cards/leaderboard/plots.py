"""What the two diagrams show: clean against robust accuracy, and robust accuracy over the radius."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import pandas as pd
from board import percent
from row_checks import Row

CLEAN, ROBUST, INTERVAL = "clean accuracy, %", "robust accuracy, %", "95 % interval"
MODEL, THREAT = "model", "threat model"
RADIUS = {"linf": "radius, 1/255", "l2": "radius, of pixels in [0, 1]"}
"""Norm to the title of its axis."""
# Okabe and Ito's, which everyone can tell apart, without the two that a light or dark page swallows
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def accuracy_points(rows: Sequence[Row]) -> pd.DataFrame:
    """One point per row."""
    points = [
        {
            CLEAN: percent(row["numbers"]["clean_accuracy"]["value"]),
            ROBUST: percent(row["numbers"]["robust_accuracy"]["value"]),
            INTERVAL: _interval(*(row["numbers"]["robust_accuracy"][end] for end in ("low", "high"))),
            MODEL: row["model"]["name"],
            THREAT: row["threat"]["name"],
        }
        for row in rows
    ]
    return pd.DataFrame(points, columns=[CLEAN, ROBUST, INTERVAL, MODEL, THREAT])


def curve_points(rows: Sequence[Row], norm: str) -> pd.DataFrame:
    """One point per row and radius, of the first six rows whose curve is measured in this norm.

    More lines than colours could not be told apart; sorting and filtering bring others to the front.
    A model that was evaluated under several threat models of the norm has one line for each.
    """
    scale = 255 if norm == "linf" else 1
    measured = [row for row in rows if "curve" in row and row["curve"]["norm"] == norm]
    points = [
        {
            RADIUS[norm]: round(scale * epsilon, 3),
            ROBUST: percent(robust),
            INTERVAL: _interval(low, high),
            MODEL: f"{row['model']['name']}, {row['threat']['name']}",
        }
        for row in measured[: len(COLOURS)]
        for epsilon, robust, low, high in zip(
            *(row["curve"][key] for key in ("epsilons", "robust_accuracy", "low", "high")), strict=True
        )
    ]
    return pd.DataFrame(points, columns=[RADIUS[norm], ROBUST, INTERVAL, MODEL])


def colours_of(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label, in the order of the labels; beyond six they come again."""
    return {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(sorted(set(labels)))}


def legend_html(colours: Mapping[str, str]) -> str:
    """Labels beside their colours; the diagram's own legend is cut off on a phone."""
    items = "".join(
        f'<li><span style="background: {colour}"></span>{escape(label)}</li>'
        for label, colour in colours.items()
    )
    return f'<ul class="legend">{items}</ul>'


def _interval(low: float, high: float) -> str:
    return f"{percent(low)} to {percent(high)}"
