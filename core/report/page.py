"""The report of a run: one self-contained HTML page, made from the files in the run's folder."""

import json
import math
import shlex
import sys
import traceback
import uuid
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from cycler import cycler
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import font_manager, style
from matplotlib.figure import Figure

from retinakit.contracts.errors import UserError, describe
from retinakit.contracts.netcdf import read_netcdf
from retinakit.contracts.recording import SPIKES_PER_BIN, SPLITS, space_sizes
from retinakit.registry.find import Registry

T = TypeVar("T")
Step = Mapping[str, Any]

KINDS = ("dataset", "model", "analysis")
DONE = ("done", "stored")
PIXELS_PER_INCH = 100
SHARPNESS = 2
NUMBERS = (int, float, np.integer, np.floating)
READ_AT_ONCE = 2**16
LEGEND_LINES = 8
LISTED = 10
"""Largest number of recordings of a sweep that the page describes."""
OPENED = 5
"""Largest number of files of a step whose arrays the page lists."""
WARNED = 5
"""Largest number of cells and points that a warning lists."""
# The colour-blind safe palette of Okabe and Ito, without the pale yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
INK, FAINT = "#33332f", "#77776f"
STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True, "figure.facecolor": "white", "text.color": INK,
    "axes.prop_cycle": cycler(color=COLOURS), "axes.axisbelow": True,
    "axes.spines.right": False, "axes.spines.top": False, "axes.linewidth": 0.8,
    "axes.edgecolor": FAINT, "axes.labelcolor": INK, "axes.titlesize": 10.5,
    "xtick.color": FAINT, "xtick.labelcolor": INK, "xtick.labelsize": 9,
    "ytick.color": FAINT, "ytick.labelcolor": INK, "ytick.labelsize": 9,
    "font.size": 10, "legend.fontsize": 9, "legend.frameon": False, "lines.linewidth": 1.6,
}  # fmt: skip
SANS_SERIF = ("Helvetica Neue", "Arial", "Liberation Sans")


class Report(NamedTuple):
    """A written report.

    Attributes:
        path: path of the HTML page.
        troubles: a sentence for each part that could not be drawn, with the name of its step.
        warnings: a sentence for each warning in the results (see `Analysis`).
    """

    path: Path
    troubles: list[str]
    warnings: list[str]


def write_report(folder: Path, registry: Registry) -> Report:
    """Writes `report.html` in the folder of a run.

    If a result cannot be drawn, the page says so in its place, with the reason.

    Args:
        folder: as written by `retinakit.pipeline.run`, with `provenance.json`.
        registry: has the plugins that draw the results.

    Returns:
        The path of the page, and the problems that occurred.

    Raises:
        UserError: if `provenance.json` does not describe a run.

    Example:
        >>> import tempfile
        >>> run = {"name": "empty", "description": "", "steps": [], "seed": 0, "git": None}
        >>> run |= {"started": "2024-01-01T12:00", "seconds": 1.0, "command": ["retina-run"]}
        >>> run |= {"platform": "Linux", "processors": 2, "versions": {}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "provenance.json").write_text(json.dumps(run))
        ...     write_report(Path(folder), Registry()).path.name
        'report.html'
    """
    source = folder / "provenance.json"
    try:
        run = json.loads(source.read_text(encoding="utf-8"))
        page, troubles, warnings = _render(folder, run, registry)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{source} does not describe a run ({describe(error)}); it may be damaged, so "
            "run the pipeline again"
        ) from error
    path = folder / "report.html"
    unfinished = folder / f".report-{uuid.uuid4().hex}.html"
    try:
        # File names and error messages may contain bytes that are not valid text.
        unfinished.write_text(page, encoding="utf-8", errors="backslashreplace")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return Report(path, troubles, [str(warning) for warning in warnings])


def _render(
    folder: Path, run: Mapping[str, Any], registry: Registry
) -> tuple[str, list[str], list["Warned"]]:
    steps = run["steps"]
    # The caller's matplotlib style does not affect the page and is restored afterwards.
    with style.context(["default", STYLE, {"font.family": _fonts()}]):
        sections = [_section(folder, step, registry) for step in steps]
    by_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for section in sections:
        by_kind[section["step"]["kind"]].append(section)
    files = [
        _file(folder, step, path, opened=number < OPENED)
        for step in steps
        for number, path in enumerate(step["files"])
    ]
    tasks = [task for step in steps for task in step["tasks"]]
    warnings = [warning for step in steps for warning in _warnings(folder, step)]
    resolved = folder / "resolved.yaml"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    page = environment.get_template("page.html.j2").render(
        run=run,
        started=datetime.fromisoformat(run["started"]),
        command=shlex.join(run["command"]),
        sections=by_kind,
        failures=_failures(steps),
        warnings=warnings,
        lost=Counter(task["status"] for task in tasks if task["status"] not in DONE),
        graph=_graph(steps),
        tasks=tasks,
        files=files,
        example=_example(files),
        model=next((file["path"] for file in files if file["what"] == "model"), None),
        resolved=resolved.read_text("utf-8", "replace") if resolved.is_file() else "",
    )
    troubles = [f"{s['step']['name']}: {t.sentence}" for s in sections for t in s["troubles"]]
    return page, troubles, warnings


@dataclass(frozen=True)
class Trouble:
    """An error: a sentence, and for an unexpected error its traceback."""

    sentence: str
    traceback: str = ""


def _attempt(function: Callable[..., T], *args: Any) -> tuple[T | None, Trouble | None]:
    try:
        with chdir("."):  # restores the working folder if a plugin changes it
            return function(*args), None
    except UserError as error:
        return None, Trouble(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything
        return None, Trouble(describe(error), traceback.format_exc())


# The section of each step


def _section(folder: Path, step: Step, registry: Registry) -> dict[str, Any]:
    """The section of a step: the parts common to all steps, and those of its kind."""
    plugin, unknown = _attempt(registry.load, step["kind"], step["plugin"])
    draw = {"dataset": _dataset, "model": _model, "analysis": _analysis}[step["kind"]]
    content, trouble = _attempt(draw, folder, step, plugin)
    section = {"image": None, "caption": "", "table": None, "truth": "", **(content or {})}
    troubles = [*section.get("troubles", []), unknown, trouble]
    return section | {
        "step": step,
        "status": _status(step),
        "references": _references(step),
        "options": _options(step, plugin),
        "troubles": [trouble for trouble in troubles if trouble],
    }


def _references(step: Step) -> list[str]:
    names: list[str] = []
    for value in step["references"].values():
        names += [value] if isinstance(value, str) else value
    return names


def _status(step: Step) -> str:
    states = [task["status"] for task in step["tasks"]]
    if all(state in DONE for state in states):
        return "failed" if step["problem"] else "ok"
    if all(state in (*DONE, "skipped") for state in states):
        return "skipped"
    return "partly" if any(state in DONE for state in states) else "failed"


def _options(step: Step, plugin: Any) -> list[dict[str, Any]]:
    """Every option with its value, its description, and whether the pipeline file sets it."""
    if not step["tasks"]:
        return []
    fields = plugin.Config.model_fields if plugin else {}
    first, sweep = step["tasks"][0], step["sweep"]
    if isinstance(sweep, list):  # of points
        sweep = {name: [point[name] for point in sweep] for name in sweep[0]}
    return [
        {
            "name": name,
            "value": _plain(sweep.get(name, value)),
            "swept": name in sweep,
            "given": name in sweep or name in step["options"],
            "about": (fields[name].description or "") if name in fields else "",
        }
        for name, value in {**first["config"], "seed": first["seed"]}.items()
    ]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value)


def _analysis(folder: Path, step: Step, plugin_class: Any) -> dict[str, Any]:
    """The figure, its caption and the table of a result; an error in one does not affect others."""
    if not step["files"] or plugin_class is None:
        return {}
    result = read_netcdf(folder / next(iter(step["files"])), load=True)
    first = step["tasks"][0]
    plugin = plugin_class(first["config"], seed=first["seed"])
    section: dict[str, Any] = {"troubles": []}
    for name, make in (
        ("image", lambda: picture(plugin.plot(result))),
        ("caption", lambda: str(plugin.caption(result))),
        ("table", lambda: tabulate(plugin.table(result))),
    ):
        section[name], trouble = _attempt(make)
        if trouble:
            what = "figure" if name == "image" else name
            sentence = f"The {what} could not be made ({trouble.sentence})"
            section["troubles"].append(Trouble(sentence, trouble.traceback))
    return section


def _model(folder: Path, step: Step, plugin_class: Any) -> dict[str, Any]:
    """The training curves of a step, and a table of its fits."""
    if not step["files"]:
        return {}
    tree = read_netcdf(folder / next(iter(step["files"])))
    curves = tree["curves"].to_dataset() if "curves" in tree.children else None
    image = None
    if curves is not None and "check" in curves.dims and "validation_loss" in curves:
        image = picture(_plot_curves(curves))
    rows = [_fit(path, task) for path, task in _by_task(folder, step)]
    return {"image": image, "table": tabulate(pd.DataFrame(rows))}


def _by_task(folder: Path, step: Step) -> list[tuple[Path | None, Mapping[str, Any]]]:
    """Every task of a step with the file of its result, or None if it has no result."""
    return [
        (folder / task["result"] if task["result"] in step["files"] else None, task)
        for task in step["tasks"]
    ]


def _fit(path: Path | None, task: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: _plain(value) if isinstance(value, list) else value
        for name, value in task["coords"].items()
    }
    if path is not None:
        tree = read_netcdf(path)
        if "state" in tree.children:
            state = tree["state"].data_vars.values()
            row["parameters"] = sum(array.size for array in state if array.dtype.kind == "f")
        curves = tree["curves"].to_dataset() if "curves" in tree.children else xr.Dataset()
        if curves.get("best_validation_loss", xr.DataArray([])).size:
            best = curves["best_validation_loss"].values.ravel()
            row["best validation loss"] = best.min()
            row["at step"] = curves["best_step"].values.ravel()[best.argmin()]
    row["fitted in"] = duration(task["seconds"]) if task["status"] == "done" else task["status"]
    return row


def _plot_curves(curves: xr.Dataset) -> Figure:
    """Training and validation loss over steps, one line for each point of the sweep and start."""
    loss = curves["validation_loss"]
    dims = [str(dim) for dim in loss.dims if dim != "check" and loss.sizes[dim] > 1]
    points = curves.isel({dim: 0 for dim in curves.dims if dim not in ("check", *dims)})
    lines = points.stack(line=dims) if dims else points.expand_dims("line")
    # If there are many lines, the colour shows the first swept option only.
    named = dims if lines.sizes["line"] <= LEGEND_LINES else dims[:1]
    labels = [
        ", ".join(f"{dim} = {lines[dim].values[i]}" for dim in named)
        for i in range(lines.sizes["line"])
    ]
    distinct = list(dict.fromkeys(labels))
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(distinct)))
    colours = COLOURS if len(distinct) <= len(COLOURS) else shades
    figure = Figure(figsize=(8.6, 2.9))
    names = [name for name in ("train_loss", "validation_loss") if name in lines]
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    # A model that is not trained in steps has the options that were tried, such as penalties.
    tried = [str(key) for key, of in curves.coords.items() if of.dims == ("check",)]
    marker = "." if "step" not in lines or curves.sizes["check"] == 1 else None
    place = "step" if "step" in lines else next((key for key in tried if key != "check"), "check")
    for ax, name in zip(axes, names, strict=True):
        for i, label in enumerate(labels):
            line = lines.isel(line=i)
            ax.plot(line[place], line[name], lw=1.3, alpha=0.9,
                    color=colours[distinct.index(label)], label=label,
                    marker=marker)  # fmt: skip
        xlabel = "step" if place == "check" else place.replace("_", " ")
        ax.set(title=name.replace("_", " ").replace("train ", "training "), xlabel=xlabel)
    axes[0].set_ylabel("loss")
    if 1 < len(distinct) <= LEGEND_LINES:
        handles = [axes[0].lines[labels.index(label)] for label in distinct]
        figure.legend(handles=handles, loc="outside right center")
    return figure


def _dataset(folder: Path, step: Step, plugin_class: Any) -> dict[str, Any]:
    """A table of the splits of the first recordings, and the variables of the ground truth."""
    rows: list[dict[str, Any]] = []
    truth = ""
    made = [(path, task) for path, task in _by_task(folder, step) if path is not None]
    for path, task in made[:LISTED]:
        tree = read_netcdf(path)
        rows += [
            {**task["coords"], **_split(name, tree[name].to_dataset())}
            for name in SPLITS
            if name in tree.children
        ]
        if "truth" in tree.children:
            truth = ", ".join(map(str, tree["truth"].data_vars))
    more = f"The first {LISTED} of {len(made)} recordings are listed." if len(made) > LISTED else ""
    return {"table": tabulate(pd.DataFrame(rows)), "caption": more, "truth": truth}


def _split(name: str, split: xr.Dataset) -> dict[str, Any]:
    """A table row of a split. The stimulus is not read, and the response is read in blocks."""
    response, interval = split["response"], float(split.attrs["frame_interval"])
    blocks = (
        response.isel(frame=slice(start, start + READ_AT_ONCE)).values
        for start in range(0, split.sizes["frame"], READ_AT_ONCE)
    )
    sums = [(np.nansum(block, dtype=float), np.isfinite(block).sum()) for block in blocks]
    total, known = sum(s for s, _ in sums), sum(int(n) for _, n in sums)
    row = {
        "split": name,
        "frames": split.sizes["frame"],
        "duration (s)": split.sizes["frame"] * interval,
        "cells": split.sizes["cell"],
        "repeats": split.sizes.get("repeat", 1),
        "field": _field(split),
    }
    mean = total / known if known else math.nan
    if response.attrs.get("units") == SPIKES_PER_BIN:
        per_cell = total / split.sizes["cell"]
        return row | {"spikes per cell": per_cell, "mean rate (Hz)": mean / interval}
    return row | {f"mean response ({response.attrs.get('units', 'no units')})": mean}


def _field(split: xr.Dataset) -> str:
    if "x" not in split.sizes:
        return "–"
    sizes = " × ".join(map(str, space_sizes(split).values()))
    if split["x"].attrs.get("units") == "µm" and split.sizes["x"] > 1:
        return f"{sizes} of {abs(float(split['x'][1] - split['x'][0])):.3g} µm"
    return f"{sizes} checks"


# The overview of the run


def _failures(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The failures and then the skipped tasks; tasks of a step with one message are one entry."""
    alike: dict[tuple[str, ...], dict[str, Any]] = {}
    for step in steps:
        lost = [task for task in step["tasks"] if task["status"] not in DONE]
        if step["problem"]:
            problem = {"status": "failed", "message": step["problem"], "traceback": ""}
            lost.append({"label": step["name"], **problem})
        for task in lost:
            key = (step["name"], task["status"], task["message"])
            failure = alike.setdefault(key, {**task, "step": step["name"], "labels": []})
            failure["labels"].append(task["label"])
    return sorted(alike.values(), key=lambda failure: failure["status"] == "skipped")


@dataclass(frozen=True)
class Warned:
    """A warning in the result of a step, and the cells and points of the sweep that it concerns."""

    step: str
    about: str
    text: str
    where: list[str]

    def __str__(self) -> str:
        about = f": {self.about}" if self.about else ""
        return f"{self.step}{about}{self.places}: {self.text}"

    @property
    def places(self) -> str:
        """The cells and points in parentheses, or ""."""
        left = len(self.where) - WARNED
        more = f"; and {left} more" if left > 0 else ""
        return f" ({'; '.join(self.where[:WARNED])}{more})" if any(self.where) else ""


def _warnings(folder: Path, step: Step) -> list[Warned]:
    """The warnings in the results of an analysis or in the training curves of a model."""
    path = next(iter(step["files"]), None)
    if path is None or step["kind"] == "dataset":
        return []
    tree, _ = _attempt(read_netcdf, folder / path)  # what cannot be read is reported elsewhere
    found: dict[tuple[str, str], list[str]] = {}
    for node in tree.subtree if tree is not None else ():
        group = node.to_dataset()
        if "warning" not in group:
            continue
        values = group["warning"]
        name = "" if step["kind"] == "model" else node.path.strip("/")
        for place, text in np.ndenumerate(values.values):
            if text:
                at = dict(zip(values.dims, place, strict=True))
                label = ", ".join(f"{dim} {values[dim].values[i]}" for dim, i in at.items())
                found.setdefault((name, str(text)), []).append(label)
    return [Warned(step["name"], name, text, where) for (name, text), where in found.items()]


def _graph(steps: Sequence[Step]) -> dict[str, Any]:
    """Positions of steps and references; one column per kind, or several for chains of a kind."""
    width, height, gap_x, gap_y, top = 176, 46, 72, 14, 30
    columns: dict[tuple[int, int], list[Step]] = {}
    place: dict[str, tuple[int, int]] = {}
    for step in steps:
        kind = KINDS.index(step["kind"])
        before = [place[name] for name in _references(step) if name in place]
        place[step["name"]] = (kind, 1 + max((n for k, n in before if k == kind), default=-1))
        columns.setdefault(place[step["name"]], []).append(step)
    tallest = max(map(len, columns.values()), default=0)
    nodes: dict[str, dict[str, Any]] = {}
    for column, key in enumerate(sorted(columns)):
        # Steps are ordered by the position of their references, so that fewer lines cross.
        members = sorted(
            columns[key],
            key=lambda step: np.mean([nodes[name]["y"] for name in _references(step)] or [0]),
        )
        for row, step in enumerate(members):
            x = 1 + column * (width + gap_x)
            y = top + (row + (tallest - len(members)) / 2) * (height + gap_y)
            nodes[step["name"]] = {
                "x": x, "y": y, "step": step, "status": _status(step), "head": key[1] == row == 0,
                "lost": sum(task["status"] not in DONE for task in step["tasks"]),
            }  # fmt: skip
    edges = []
    for name, node in nodes.items():
        for other in _references(node["step"]):
            x1, y1 = nodes[other]["x"] + width, nodes[other]["y"] + height / 2
            x2, y2 = node["x"], nodes[name]["y"] + height / 2
            stops = []
            between = [n["y"] for n in nodes.values() if x1 < n["x"] < x2]
            if between:  # pass above or below the steps between, whichever is nearer
                lanes = (min(between) - gap_y / 2, max(between) + height + gap_y / 2)
                lane = min(lanes, key=lambda y: abs(y1 - y) + abs(y2 - y))
                stops = [(x1 + gap_x, lane), (x2 - gap_x, lane)]
            edges.append(_curve([(x1, y1), *stops, (x2, y2)]))
    return {"nodes": list(nodes.values()), "edges": edges, "box": (width, height),
            "width": len(columns) * (width + gap_x) - gap_x + 2,
            "height": top + tallest * (height + gap_y)}  # fmt: skip


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """An SVG path through points that is horizontal at each point."""
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for (x1, y1), (x2, y2) in pairwise(points):
        middle = (x1 + x2) / 2
        path += f" C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}"
    return path


# The arrays on disk


def _file(folder: Path, step: Step, path: str, *, opened: bool) -> dict[str, Any]:
    """The contents of a file: its arrays by group, or none if it is not opened."""
    arrays, trouble = _attempt(_arrays, folder / path) if opened else (None, None)
    return {"path": path, "what": step["files"][path], "kind": step["kind"],
            "opened": opened, "groups": arrays or {}, "trouble": trouble}  # fmt: skip


def _arrays(path: Path) -> dict[str, dict[str, str]]:
    """The arrays of a file by group and name, each with its dimensions and their sizes."""
    return {
        node.path.strip("/"): {
            str(name): ", ".join(f"{dim} {size}" for dim, size in array.sizes.items())
            for name, array in node.to_dataset(inherit=False).variables.items()
            if name not in array.dims
        }
        for node in read_netcdf(path).subtree
        if set(node.to_dataset(inherit=False).variables) - set(node.dims)
    }


def _example(files: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    """A file, of an analysis if there is one, and the array of its first group with most dims."""
    for file in sorted(files, key=lambda file: file["kind"] != "analysis"):
        for group, arrays in file["groups"].items():
            name = max(arrays, key=lambda name: arrays[name].count(","))
            return {"path": file["path"], "array": f"{group}/{name}".lstrip("/")}
    return None


# Figures, tables and numbers


@dataclass(frozen=True)
class Picture:
    """A PNG image in base64, and its displayed size in pixels."""

    data: str
    width: int
    height: int


def picture(figure: Figure) -> Picture:
    """A figure as a PNG at twice the displayed resolution.

    Raises:
        TypeError: if it is not a matplotlib Figure.
    """
    if not isinstance(figure, Figure):
        raise TypeError(f"plot returned a {type(figure).__name__}, not a matplotlib Figure")
    buffer = BytesIO()
    try:
        figure.savefig(
            buffer,
            format="png",
            dpi=PIXELS_PER_INCH * SHARPNESS,
            bbox_inches="tight",
            pad_inches=0.04,
            metadata={"Software": None},
        )
    finally:
        figure.clear()
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            pyplot.close(figure)
    png = buffer.getvalue()
    width, height = (int.from_bytes(png[start : start + 4]) for start in (16, 20))
    return Picture(b64encode(png).decode(), width // SHARPNESS, height // SHARPNESS)


def _fonts() -> list[str]:
    installed = set(font_manager.get_font_names())
    return [*(name for name in SANS_SERIF if name in installed), "DejaVu Sans"]


@dataclass(frozen=True)
class Table:
    """A table as text; `numeric` marks the columns of numbers."""

    header: list[str]
    numeric: list[bool]
    rows: list[tuple[str, ...]]


def tabulate(frame: pd.DataFrame | None) -> Table | None:
    """Formats a DataFrame as text; see `column_texts`.

    Args:
        frame: its index is included unless it is a RangeIndex without a name.

    Returns:
        The table, or None if there is no frame or it is empty.

    Example:
        >>> table = tabulate(pd.DataFrame({"cell": ["a", "b"], "fev": [0.51, 0.4567]}))
        >>> table.header, table.rows
        (['cell', 'fev'], [('a', '0.510'), ('b', '0.457')])
    """
    if frame is None or frame.empty:
        return None
    columns: list[tuple[Any, list[Any]]] = []
    if not (isinstance(frame.index, pd.RangeIndex) and frame.index.name is None):
        for level, name in enumerate(frame.index.names):
            columns.append((name or "", frame.index.get_level_values(level).tolist()))
    for position, name in enumerate(frame.columns):
        columns.append((name, frame.iloc[:, position].tolist()))
    return Table(
        [" · ".join(map(str, n)) if isinstance(n, tuple) else str(n) for n, _ in columns],
        [any(isinstance(value, NUMBERS) for value in values) for _, values in columns],
        list(zip(*(column_texts(values) for _, values in columns), strict=True)),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, NUMBERS) and not isinstance(value, bool) and not math.isnan(value)


def column_texts(values: Sequence[Any]) -> list[str]:
    """Formats the entries of a column, numbers with three to four significant digits.

    The numbers of a column have the same number of decimals, unless they differ by more than a
    factor of 1000.

    Args:
        values: numbers, booleans, text or None.

    Returns:
        A text for each value, "–" for a missing one.

    Example:
        >>> column_texts([0.51, 0.4567, None, True])
        ['0.510', '0.457', '–', 'yes']
    """
    numbers = [abs(float(v)) for v in values if _is_number(v) and math.isfinite(v) and v != 0]
    whole = all(number == int(number) for number in numbers)
    alike = not numbers or max(numbers) / min(numbers) < 1e3
    power = math.floor(math.log10(max(numbers))) if numbers else 0
    decimals = 0 if whole else min(max(0, 3 - power if power >= 0 else 2 - power), 7)

    def text(value: Any) -> str:
        if value is None or value is pd.NaT or (np.ndim(value) == 0 and pd.isna(value)):
            return "–"
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        if not _is_number(value):
            return str(value)
        if (whole or abs(value) >= 1e3) and abs(value) < 1e12:
            return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.0f}"
        return f"{value:.{decimals}f}" if alike else f"{value:.3g}"

    return [text(value) for value in values]


def duration(seconds: float) -> str:
    """Formats a duration.

    Args:
        seconds: the duration.

    Example:
        >>> duration(0.5), duration(192), duration(7500)
        ('0.5 s', '3 min 12 s', '2 h 5 min')
    """
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
