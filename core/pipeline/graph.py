"""The graph of a pipeline: its steps, the tasks of each step, and the key of each task.

A step has a name in the file. A task is one point of a step's sweep: one recording, one fit, or one
run of an analysis on one model. A task's key is a hash of the plugin, its version and its code, the
resolved options, the seed, the contents of input files, and the keys of its inputs.
"""

import hashlib
import inspect
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retinakit.contracts.config import Config
from retinakit.contracts.errors import UserError, describe, nearest
from retinakit.contracts.plugin import Plugin
from retinakit.pipeline.document import (
    LONGEST_NAME,
    SECTIONS,
    Location,
    PipelineDocument,
    Source,
    StepDocument,
    validation_error,
)
from retinakit.pipeline.hashes import code_hash, file_hash
from retinakit.registry.find import Entry, Registry, load_entry

Coords = tuple[tuple[str, Any], ...]
GIVEN = {
    "dataset": {"data"},
    "model": {"data"},
    "analysis": {"data", "model", "recordings", "models", "results", "progress"},
}
"""The parameters that the method of a plugin may have, by kind of plugin."""

MOST_POINTS = 100_000
"""Most points of a sweep. Checking more would take minutes."""


@dataclass(frozen=True)
class Task:
    """One point of a step, ready to be run anywhere.

    Attributes:
        key: identifies the result.
        about: for an analysis, the step that it analyses ("" if it analyses several at once).
        inputs: the keys of the inputs, by parameter of `load`, `fit` or `run`.
        members: where a parameter takes several inputs, the step and coordinates of each.
        place: position of the step in the file, as file:line:column.
        files: for a dataset, the names of its input files and the hashes of their contents.
        options: the swept options, if the sweep is a list of points.
        recording: for an analysis of a model of several recordings, the name of one of them.
        pipeline: the name of the pipeline.
        extended: for a fit, a hash of everything except the option by which a finished fit can be
            extended, such as the number of steps.
    """

    key: str
    kind: str
    step: str
    about: str
    coords: Coords
    plugin: str
    config: str
    seed: int
    inputs: Mapping[str, tuple[str, ...]]
    members: Mapping[str, tuple[tuple[str, Coords], ...]]
    place: str
    volatile: bool = False
    files: tuple[tuple[str, str], ...] = ()
    options: Coords = ()
    recording: str = ""
    pipeline: str = ""
    extended: str = ""

    @property
    def label(self) -> str:
        """A readable name, such as `cnn[filters=4, seed=0]`."""
        listed = [coord for coord in self.coords if coord[0] != "point"]
        point = ", ".join(f"{name}={value}" for name, value in (*listed, *self.options))
        about = f" of {self.about}" if self.about else ""
        return self.step + (f"[{point}]" if point else "") + about

    @property
    def dependencies(self) -> list[str]:
        """The keys of all inputs, once each."""
        return list(dict.fromkeys(key for keys in self.inputs.values() for key in keys))


@dataclass
class Step:
    """A step of the file, with its tasks."""

    kind: str
    name: str
    document: StepDocument
    entry: Entry
    cls: type[Plugin]
    code: str
    tasks: list[Task] = field(default_factory=list)
    dims: tuple[str, ...] = ()


@dataclass
class Graph:
    """A pipeline that is ready to run: steps in order, and every task by its key."""

    document: PipelineDocument
    steps: list[Step]
    tasks: dict[str, Task]

    def following(self, names: Iterable[str]) -> list[Task]:
        """The tasks of some steps, and all tasks that depend on them."""
        found: dict[str, Task] = {}
        wanted = set(names)
        for step in self.steps:  # after the steps that they depend on
            for task in step.tasks:
                if step.name in wanted or any(key in found for key in task.dependencies):
                    found[task.key] = task
        return list(found.values())

    def in_order(self) -> Iterator[Task]:
        """Tasks in depth-first order, each after its inputs, while a recording is cached."""
        done: set[str] = set()

        def visit(task: Task) -> Iterator[Task]:
            if task.key not in done:
                done.add(task.key)
                for key in task.dependencies:
                    yield from visit(self.tasks[key])
                yield task

        by_point: dict[str, list[Task]] = {}
        for step in self.steps:
            for task in step.tasks:
                by_point.setdefault(json.dumps(task.coords[:1]), []).append(task)
        for tasks in by_point.values():
            for task in tasks:
                yield from visit(task)


def build(source: Source, document: PipelineDocument, registry: Registry) -> Graph:
    """Checks plugins, options, references and sweeps, and makes the graph.

    Raises:
        UserError: with file, line and column, for the first thing that is wrong.
    """
    documents: dict[str, tuple[str, StepDocument]] = {}
    for kind, section in SECTIONS.items():
        for name, step in getattr(document, section).items():
            if name in documents:
                raise source.error(
                    (section, name), f"'{name}' is already a {documents[name][0]}; rename one"
                )
            if not name.replace("_", "").replace("-", "").isalnum():
                raise source.error(
                    (section, name), "a step's name is made of letters, digits, '-' and '_'"
                )
            if len(name.encode()) > LONGEST_NAME:
                raise source.error((section, name), f"the name is longer than {LONGEST_NAME} bytes")
            documents[name] = (kind, step)
    if Path(document.name).name != document.name or document.name[:1] in ("", "."):
        raise source.error(
            ("name",),
            "it is also the name of a folder: it must not be empty, contain '/' or begin with '.' "
            f"(got {document.name!r})",
        )
    if document.name == "store":
        raise source.error(
            ("name",), "'store' is the folder of stored results; give the pipeline another name"
        )
    if len(document.name.encode()) > LONGEST_NAME:
        raise source.error(("name",), f"the name is longer than {LONGEST_NAME} bytes")
    if not documents:
        raise source.error((), "there is nothing to do; add datasets, models and analyses")

    builder = _Builder(source, document, registry, documents)
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for name in documents:
        sorter.add(name, *builder.references(name))
    try:
        order = list(sorter.static_order())
    except CycleError as error:
        cycle = " → ".join(reversed(error.args[1]))
        first = error.args[1][0]
        raise source.error(
            (SECTIONS[documents[first][0]], first), f"the steps refer in a circle: {cycle}"
        ) from None
    # Keep the order of the file where references leave a choice.
    names = list(documents)
    depth: dict[str, int] = {}
    for name in order:
        depth[name] = 1 + max((depth[other] for other in builder.references(name)), default=0)
    for name in sorted(names, key=lambda n: (list(SECTIONS).index(documents[n][0]), depth[n])):
        builder.add(name)
    return Graph(document, list(builder.steps.values()), builder.tasks)


def check_option(
    source: Source, document: StepDocument, config: type[Config], where: Location, option: str
) -> None:
    """Checks that a step's plugin has an option to vary.

    Raises:
        UserError: with file, line and column.
    """
    fields = config.model_fields
    if option not in fields and option != "seed":
        raise source.error(
            where,
            f"{document.plugin} has no option of that name; " + nearest(option, [*fields, "seed"]),
        )
    if option in document.with_:
        raise source.error(
            where,
            "the option is also given under 'with' (in the file, a profile or --set); keep one",
        )


class _Builder:
    def __init__(
        self,
        source: Source,
        document: PipelineDocument,
        registry: Registry,
        documents: dict[str, tuple[str, StepDocument]],
    ):
        self.source, self.document = source, document
        self.registry, self.documents = registry, documents
        self.steps: dict[str, Step] = {}
        self.tasks: dict[str, Task] = {}
        self.context = {"folder": str(source.path.resolve().parent)}

    def references(self, name: str) -> list[str]:
        """The steps that a step refers to. Each must exist and be of the right kind."""
        kind, step = self.documents[name]
        found = []
        for role, wanted in (("data", "dataset"), ("models", "model"), ("results", "analysis")):
            value = getattr(step, role, None)
            if not value:
                continue
            place: Location = (SECTIONS[kind], name, role)
            others = [value] if isinstance(value, str) else value
            for index, other in enumerate(others):
                where = place if isinstance(value, str) else (*place, index)
                if other in others[:index]:
                    raise self.source.error(where, f"'{other}' is already in the list")
                if other not in self.documents:
                    known = [n for n, (k, _) in self.documents.items() if k == wanted]
                    raise self.source.error(
                        where, f"there is no step '{other}'; {nearest(other, known)}"
                    )
                if self.documents[other][0] != wanted:
                    raise self.source.error(
                        where, f"'{other}' is a {self.documents[other][0]}, not a {wanted}"
                    )
                found.append(other)
        return found

    def add(self, name: str) -> None:
        kind, document = self.documents[name]
        place: Location = (SECTIONS[kind], name)
        if not document.plugin:
            raise self.source.error(place, "no plugin is named; add plugin: …")
        try:
            entry = self.registry.find(kind, document.plugin)
            cls = load_entry(entry)
        except UserError as error:
            raise self.source.error((*place, "plugin"), str(error)) from None
        config: Any = getattr(cls, "Config", None)
        if not (isinstance(config, type) and issubclass(config, Config)):
            raise self.source.error(
                (*place, "plugin"),
                f"the options of '{document.plugin}' are not a retinakit.Config; report it to its "
                "author",
            )
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
            raise self.source.error(
                (*place, "plugin"),
                f"'{document.plugin}' does not define {missing}, which every {kind} needs; "
                "report it to its author",
            )
        assert entry.spec is not None
        code = code_hash(entry.spec.target.partition(":")[0], entry.distribution)
        step = Step(kind, name, document, entry, cls, code)
        try:
            wants = _parameters(cls, kind)
        except (TypeError, ValueError) as error:  # it is no function
            raise self._of_plugin(step, place, error) from error
        strange = wants - GIVEN[kind]
        if strange:
            raise self.source.error(
                (*place, "plugin"),
                f"'{document.plugin}' has the parameter '{min(strange)}', which a pipeline "
                f"cannot supply (a {kind} may have {', '.join(sorted(GIVEN[kind]))}); report it to "
                "its author",
            )
        where = self.source.position(place)
        for point in self._points(step, place, wants):
            step.tasks.append(self._task(step, place, point, where))
        if not step.tasks:
            raise self.source.error(
                (*place, "data"),
                "the sweeps of this dataset and of the models have no point in common",
            )
        self.steps[name] = step
        self.tasks |= {task.key: task for task in step.tasks}
        step.dims = tuple(dict.fromkeys(d for task in step.tasks for d, _ in task.coords))

    def _points(self, step: Step, place: Location, wants: set[str]) -> Iterator["_Point"]:
        """The points of the step's own sweep, for each of its inputs."""
        own = self._sweep(step, place)
        for inputs in self._inputs(step, place, wants):
            taken = {dim for dim, _ in inputs.coords}
            for dim, _ in own[0][0]:
                if dim in taken:
                    raise self.source.error(
                        (*place, "sweep", dim),
                        f"the inputs of '{step.name}' are already swept over '{dim}'",
                    )
            for coords, options in own:
                yield _Point((*inputs.coords, *coords), options, inputs)

    def _sweep(self, step: Step, place: Location) -> list[tuple[Coords, dict[str, Any]]]:
        """The points of a step's own sweep: coordinates, and options."""
        sweep = step.document.sweep
        if isinstance(sweep, list):
            return self._listed_points(step, (*place, "sweep"), sweep)
        for option, values in sweep.items():
            where = (*place, "sweep", option)
            check_option(self.source, step.document, step.cls.Config, where, option)
            if not values:
                raise self.source.error(where, "the list of values is empty")
            seen = set()
            for index, value in enumerate(values):
                text = _comparable(value)
                if text in seen:
                    raise self.source.error(
                        (*where, index),
                        f"the value {json.dumps(value, default=str)} is already in the list",
                    )
                seen.add(text)
                self._check_seed(option, value, (*where, index))
        number = math.prod(map(len, sweep.values()))
        self._check_number(number, (*place, "sweep"))
        points = itertools.product(*([(dim, v) for v in vs] for dim, vs in sweep.items()))
        return [(point, dict(point)) for point in points]

    def _listed_points(
        self, step: Step, place: Location, points: list[dict[str, Any]]
    ) -> list[tuple[Coords, dict[str, Any]]]:
        """A list of points as one dimension `point`."""
        if not points or not points[0]:
            raise self.source.error(place, "the list of points is empty; give mappings of options")
        self._check_number(len(points), place)
        for option in points[0]:
            where = (*place, 0, option)
            check_option(self.source, step.document, step.cls.Config, where, option)
        seen = set()
        for index, point in enumerate(points):
            if point.keys() != points[0].keys():
                raise self.source.error(
                    (*place, index),
                    f"the point has the options {', '.join(point) or 'none'} and the first has "
                    f"{', '.join(points[0])}; give every point the same options",
                )
            text = _comparable(point)
            if text in seen:
                raise self.source.error((*place, index), "the point is already in the list")
            seen.add(text)
            if "seed" in point:
                self._check_seed("seed", point["seed"], (*place, index, "seed"))
        return [((("point", index),), point) for index, point in enumerate(points)]

    def _check_seed(self, option: str, value: Any, where: Location) -> None:
        if option == "seed" and (type(value) is not int or not 0 <= value < 2**32):
            raise self.source.error(
                where, f"it must be an integer from 0 to 2^32 - 1 (got {json.dumps(value)})"
            )

    def _check_number(self, points: int, where: Location) -> None:
        if points > MOST_POINTS:
            raise self.source.error(
                where, f"the sweep has {points} points; make it {MOST_POINTS} or fewer"
            )

    def _inputs(self, step: Step, place: Location, wants: set[str]) -> Iterator["_Inputs"]:
        document = step.document
        data = getattr(document, "data", None)
        datasets = [data] if isinstance(data, str) and data else data or []
        models: list[str] = getattr(document, "models", [])
        results: list[str] = getattr(document, "results", [])
        for role, given, wanted in (
            ("data", datasets, bool(wants & {"data", "recordings"})),
            ("models", models, bool(wants & {"model", "models"})),
            ("results", results, "results" in wants),
        ):
            # A model's own recording serves where an analysis wants `data` beside a model.
            needed = wanted and not (role == "data" and ("model" in wants or _optional(step)))
            if needed and not given:
                raise self.source.error(
                    place, f"'{document.plugin}' needs {role}; add {role}: and the name of a step"
                )
            if given and not wanted:
                raise self.source.error(
                    (*place, role), f"'{document.plugin}' takes no {role}; leave it out"
                )
        shared = _Inputs()
        if "results" in wants:
            shared = shared.with_members(
                "results", self._members(t for n in results for t in self.steps[n].tasks)
            )
        if "models" in wants:
            members = self._members(t for n in models for t in self.steps[n].tasks)
            shared = shared.with_members("models", members)
        if "recordings" in wants and datasets:
            members = self._members(t for n in datasets for t in self.steps[n].tasks)
            shared = shared.with_members("recordings", members)
        if step.kind == "model" and isinstance(data, list):
            yield from self._several(step, place, datasets)
            return
        if "model" in wants:
            for model in (t for n in models for t in self.steps[n].tasks):
                base = _Inputs(
                    {**shared.keys, "model": (model.key,)},
                    shared.members,
                    model.coords,
                    model.step,
                    model.options,
                )
                if "data" in model.members:
                    for name, data_task in self._of_recordings(model):
                        if not datasets or data_task.step in datasets:
                            yield base.with_recording(name, data_task, "data" in wants)
                    continue
                if "data" not in wants:
                    yield base
                    continue
                if not datasets:
                    yield base.with_data(self.tasks[model.inputs["data"][0]], model.coords)
                    continue
                matching = [
                    task
                    for n in datasets
                    for task in self.steps[n].tasks
                    if all(dict(model.coords).get(d, v) == v for d, v in task.coords)
                ]
                for task in matching:
                    extra = tuple(c for c in task.coords if c[0] not in dict(model.coords))
                    yield base.with_data(task, (*model.coords, *extra))
        elif "data" in wants and datasets:
            for task in (t for n in datasets for t in self.steps[n].tasks):
                about = task.step if step.kind == "analysis" else ""
                yield _Inputs(
                    {**shared.keys, "data": (task.key,)},
                    shared.members,
                    task.coords,
                    about,
                    task.options,
                )
        else:
            yield shared

    def _several(self, step: Step, place: Location, datasets: list[str]) -> Iterator["_Inputs"]:
        """The recordings of a model of several recordings, at each common point of their sweeps."""
        if not getattr(step.cls, "several", False):
            raise self.source.error(
                (*place, "data"),
                f"'{step.document.plugin}' is fitted to one recording; name one dataset, or take a "
                "model that shares parts between recordings, such as what_where",
            )
        together: list[tuple[list[Task], dict[str, Any]]] = [([], {})]
        for name in datasets:
            together = [
                ([*tasks, task], coords | dict(task.coords))
                for tasks, coords in together
                for task in self.steps[name].tasks
                if all(coords.get(dim, value) == value for dim, value in task.coords)
            ]
        for tasks, coords in together:
            options = {name: value for task in tasks for name, value in task.options}
            members = {"data": tuple((task.step, task.coords) for task in tasks)}
            keys = {"data": tuple(task.key for task in tasks)}
            yield _Inputs(keys, members, tuple(coords.items()), "", tuple(options.items()))

    def _of_recordings(self, model: Task) -> Iterator[tuple[str, Task]]:
        """The names of a model's recordings, and their tasks."""
        for key, (name, _) in zip(model.inputs["data"], model.members["data"], strict=True):
            yield name, self.tasks[key]

    def _members(self, tasks: Iterable[Task]) -> list["_Member"]:
        """The inputs of an analysis of many; a model of several recordings counts once for each."""
        found = []
        for task in tasks:
            if task.kind == "model" and "data" in task.members:
                for name, _ in self._of_recordings(task):
                    coords = (*task.coords, ("recording", name))
                    found.append(_Member(task.key, task.step, coords))
            else:
                found.append(_Member(task.key, task.step, task.coords))
        return found

    def _of_plugin(self, step: Step, place: Location, error: Exception) -> UserError:
        """The error for an exception that a plugin raises before anything runs."""
        return self.source.error(
            (*place, "plugin"),
            f"'{step.document.plugin}' cannot be used with these options ({describe(error)}); "
            "change them, or report it to its author",
        )

    def _task(self, step: Step, place: Location, point: "_Point", position: str) -> Task:
        inputs, own = point.inputs, dict(point.options)
        listed = isinstance(step.document.sweep, list)
        options_here = tuple(own.items()) if listed else ()
        seed: int | None = own.pop("seed", step.document.seed)
        seed = self.document.seed if seed is None else seed
        options = {**step.document.with_, **own}
        try:
            config = step.cls.Config.model_validate(options, context=self.context)
        except ValidationError as error:
            first = error.errors()[0]["loc"]
            sweep, swept = step.document.sweep, {n for n in own if n in first[:1]}
            if isinstance(sweep, list) and swept:
                section, index = (*place, "sweep", dict(point.coords)["point"]), {}
            else:
                section = (*place, "sweep" if swept else "with")
                index = {n: sweep[n].index(own[n]) for n in swept}  # type: ignore[call-overload]
            raise validation_error(self.source, section, error, step.cls.Config, index) from None
        except Exception as error:
            raise self._of_plugin(step, place, error) from error
        contents = []
        try:
            plugin = step.cls(config, seed=seed)
            resolved = config.model_dump_json()
            identified = json.loads(resolved)
            paths = [Path(file) for file in plugin.files()]
        except UserError as error:
            raise self.source.error(place, str(error)) from None
        except Exception as error:
            raise self._of_plugin(step, place, error) from error
        for path in paths:
            option = next((n for n, value in identified.items() if value == str(path)), None)
            try:
                contents.append((path.name, file_hash(path)))
            except UserError as error:
                where = (
                    *place,
                    "sweep" if option in own else "with",
                    *([option] if option else []),
                )
                raise self.source.error(where, str(error)) from None
            if option:  # the contents of a file count, not its path
                identified[option] = contents[-1]
        identity = {
            "plugin": [step.kind, step.entry.full_name, step.entry.version, step.code],
            "config": identified,
            "seed": seed,
            "files": contents,
            "inputs": {role: list(keys) for role, keys in inputs.keys.items()},
            "recording": inputs.recording,
            # A family's result is labelled with the names and points of its members.
            "members": {
                role: [list(map(str, m)) for m in ms] for role, ms in inputs.members.items()
            },
        }
        extended, extends = "", getattr(step.cls, "extends", "")
        if extends:
            others = {name: value for name, value in identified.items() if name != extends}
            extended = _hash(identity | {"config": others})
        return Task(
            key=_hash(identity),
            kind=step.kind,
            step=step.name,
            about=inputs.about,
            coords=point.coords,
            plugin=step.entry.full_name,
            config=resolved,
            seed=seed,
            inputs=inputs.keys,
            members=inputs.members,
            place=position,
            volatile=bool(getattr(step.cls, "volatile", False)),
            files=tuple(contents),
            options=(*inputs.options, *options_here),
            recording=inputs.recording,
            pipeline=self.document.name,
            extended=extended,
        )


def _comparable(value: Any) -> str:
    """A swept value as text, in which 1 and 1.0 are the same."""

    def number(text: str) -> float:
        return int(float(text)) if float(text).is_integer() else float(text)

    plain = json.loads(json.dumps(value, default=str), parse_float=number)
    return json.dumps(plain, sort_keys=True)


def _hash(identity: Mapping[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class _Inputs:
    """The inputs of one task, and their coordinates in the sweeps."""

    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    members: Mapping[str, tuple[tuple[str, Coords], ...]] = field(default_factory=dict)
    coords: Coords = ()
    about: str = ""
    options: Coords = ()
    recording: str = ""

    def with_members(self, role: str, members: list["_Member"]) -> "_Inputs":
        keys = {**self.keys, role: tuple(member.key for member in members)}
        found = {**self.members, role: tuple((m.step, m.coords) for m in members)}
        return replace(self, keys=keys, members=found)

    def with_data(self, task: Task, coords: Coords) -> "_Inputs":
        return replace(self, keys={**self.keys, "data": (task.key,)}, coords=coords)

    def with_recording(self, name: str, task: Task, wants_data: bool) -> "_Inputs":
        coords = (*self.coords, ("recording", name))
        inputs = self.with_data(task, coords) if wants_data else replace(self, coords=coords)
        return replace(inputs, recording=name)


@dataclass(frozen=True)
class _Member:
    """One of the inputs of an analysis of many."""

    key: str
    step: str
    coords: Coords


@dataclass(frozen=True)
class _Point:
    """A point of a step's sweep: its coordinates, its swept options, and its inputs."""

    coords: Coords
    options: Mapping[str, Any]
    inputs: _Inputs


def _optional(step: Step) -> bool:
    """Whether a dataset can be made without another one: `load` has a default for `data`."""
    if step.kind != "dataset":
        return False
    load = getattr(step.cls, "load")  # noqa: B009 (the class is known as a Plugin only)
    parameter = inspect.signature(load).parameters["data"]
    return parameter.default is not parameter.empty


def _parameters(cls: type[Plugin], kind: str) -> set[str]:
    """The parameters of a plugin's method, which say what it needs."""
    if kind == "model":
        return {"data"}
    method = {"dataset": "load", "analysis": "run"}[kind]
    return set(inspect.signature(getattr(cls, method)).parameters) - {"self"}
