"""The leaderboard of robust vision-and-language models: a Gradio app over a dataset repository of rows."""

from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from board import (
    BY_THREAT,
    HEADERS,
    ORDERS,
    ROW,
    VERDICTS,
    Board,
    choose_rows,
    default_source,
    load_board,
    protocols_of,
    table_of,
    tasks_of,
    threats_of,
)
from plots import CLEAN, MODEL, RADIUS, ROBUST, THREAT, accuracy_points, colours_of, curve_points, legend_html
from row_details import details_html, refused_html

HERE = Path(__file__).parent
TITLE = "Robust vision-and-language models"
# Fonts of the visitor's own system: the page asks no other server for any.
FONTS = {
    "font": ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
    "font_mono": ("ui-monospace", "Menlo", "Consolas", "monospace"),
}
DATATYPES = ["str", "str", *["number"] * 5, "str", "number", "str"]


def build_app(source: str) -> gr.Blocks:
    """The app over the rows of a folder or dataset repository, see `board.load_board`."""
    board = load_board(source)

    def read_again() -> str:
        nonlocal board
        board = load_board(source)
        return summary_of(board)

    def show(identity: str | None) -> str:
        row = next((row for row in board.rows if row["id"] == identity), None)
        return details_html(row) if row else ""

    with gr.Blocks(title=TITLE, analytics_enabled=False) as app:
        summary = gr.Markdown(f"# {TITLE}")
        filters = _filters(board)
        with gr.Tab("Table"):
            table, opened, details = _table()
        with gr.Tab("Plots"):
            plots = _plots()
        with gr.Tab("Refused"):
            refused = gr.HTML()
        with gr.Tab("About"):
            gr.Markdown(about_text())
        outputs = [*filters, table, opened, *plots, refused]
        update = lambda *chosen: update_of(board, *chosen)  # noqa: E731 - the board is the one read last
        app.load(read_again, None, summary).then(update, filters, outputs)
        gr.on([entry.input for entry in filters], update, filters, outputs, api_name="update")
        table.select(_identity, None, opened)
        opened.change(show, opened, details, api_name="show")
    return app


def summary_of(board: Board) -> str:
    """The lines at the top."""
    refused = f"; {len(board.refused)} are refused" if board.refused else ""
    return (
        f"# {TITLE}\nAccuracy before and under attack, and how far each number can be trusted. "
        f"{len(board.rows)} rows{refused}. Read from {board.source} when this page was opened."
    )


def about_text() -> str:
    """The card of this Space below its metadata."""
    return (HERE / "README.md").read_text(encoding="utf-8").split("\n---\n", 1)[1]


def update_of(
    board: Board,
    task: str | None,
    protocol: str | None,
    threats: list[str] | None,
    verdicts: list[str],
    order: str,
) -> list[Any]:
    """Choices that go with each other, and the table and plots of the rows that they name."""
    task, tasks = _kept(task, tasks_of(board))
    protocol, protocols = _kept(protocol, protocols_of(board, task))
    names = threats_of(board, task, protocol)
    threats = [name for name in threats or [] if name in names]
    rows = choose_rows(board, task, protocol, threats, verdicts, order)
    labels = [
        (f"{row['model']['name']}, {row['threat']['name']}, row {row['id']}", row["id"]) for row in rows
    ]
    return [
        gr.update(choices=tasks, value=task or None),
        gr.update(choices=protocols, value=protocol or None),
        gr.update(choices=names, value=threats),
        verdicts,
        order,
        table_of(rows).style.format(precision=1, na_rep="undefined"),
        gr.update(choices=labels, value=None),
        *_drawn(accuracy_points(rows), THREAT),
        *(part for norm in RADIUS for part in _drawn(curve_points(rows, norm), MODEL)),
        refused_html(board.refused),
    ]


def _drawn(points: pd.DataFrame, label: str) -> list[Any]:
    """A diagram and its legend; neither is there without points."""
    colours, visible = colours_of(points[label]), len(points) > 0
    return [
        gr.update(value=points, color_map=colours, visible=visible),
        gr.update(value=legend_html(colours), visible=visible),
    ]


def _kept(value: str | None, choices: list[str]) -> tuple[str, list[str]]:
    """The value if it is among the choices, else the first of them."""
    return (value if value in choices else next(iter(choices), "")), choices


def _identity(event: gr.SelectData) -> str:
    return event.row_value[HEADERS.index(ROW)]


def _filters(board: Board) -> list[gr.components.Component]:
    tasks = tasks_of(board)
    pairs = [(task, protocol) for task in tasks for protocol in protocols_of(board, task)]
    names = sorted({name for pair in pairs for name in threats_of(board, *pair)})
    with gr.Row():
        task = gr.Dropdown(tasks, label="Task", interactive=True, elem_id="task")
        protocol = gr.Dropdown(
            sorted({protocol for _, protocol in pairs}),
            label="Protocol, never mixed with another in one table",
            interactive=True,
            elem_id="protocol",
        )
    with gr.Row():
        threats = gr.Dropdown(
            names,
            label="Threat models, all if none is chosen",
            multiselect=True,
            interactive=True,
            elem_id="threats",
        )
        verdicts = gr.CheckboxGroup(list(VERDICTS), value=list(VERDICTS), label="Verdict", elem_id="verdicts")
        order = gr.Dropdown(
            list(ORDERS), value=BY_THREAT, label="Sorted by", interactive=True, elem_id="order"
        )
    return [task, protocol, threats, verdicts, order]


def _table() -> tuple[gr.Dataframe, gr.Dropdown, gr.HTML]:
    table = gr.Dataframe(
        headers=HEADERS,
        datatype=DATATYPES,
        interactive=False,
        label="Rows: a click opens one, the menu of a heading sorts and filters",
        elem_id="rows",
    )
    opened = gr.Dropdown(label="Opened row", interactive=True, elem_id="opened")
    return table, opened, gr.HTML(elem_id="details")


def _plots() -> list[gr.components.Component]:
    """Each diagram and its legend."""
    shown: dict[str, Any] = {"y": ROBUST, "y_lim": [0, 100], "tooltip": "all"}
    accuracies = {"label": "Accuracy before and under attack", "elem_id": "scatter"}
    parts = [gr.ScatterPlot(x=CLEAN, x_lim=[0, 100], color=THREAT, **accuracies, **shown), gr.HTML()]
    for norm, title in RADIUS.items():
        label = f"Robust accuracy over the radius, {norm}: of the first six rows, as they are sorted"
        parts += [gr.LinePlot(x=title, color=MODEL, label=label, elem_id=f"curve-{norm}", **shown), gr.HTML()]
    return parts


if __name__ == "__main__":
    build_app(default_source()).launch(
        theme=gr.themes.Base(**FONTS), css_paths=HERE / "style.css", footer_links=[]
    )
