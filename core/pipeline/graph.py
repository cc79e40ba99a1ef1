"""The graph of a pipeline: steps, the tasks that a sweep makes of them, and what identifies each.

A step is what the file names. A task is one point of its sweep: one recording, one fit, one run of
an analysis on one model. A task's key is a hash of the plugin and its version, the resolved
options, the seed, the contents of input files, and the keys of its inputs.
"""

import hashlib
import inspect
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retinakit.contracts.dataset import Dataset
from retinakit.contracts.errors import UserError, nearest
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
from retinakit.registry.find import Entry, Registry, load_entry

Coords = tuple[tuple[str, Any], ...]
GIVEN = {
    "dataset": {"data"},
    "model": {"data"},
    "analysis": {"data", "model", "recordings", "models", "results", "progress"},
}
"""What a plugin of each kind may ask for, by the names of parameters."""


@dataclass(frozen=True)
class Task:
    """One point of a step, ready to be run anywhere.

    Attributes:
        key: identifies the result.
        about: for an analysis, the step that it is about ("" when it is about a whole family).
        inputs: by parameter of `load`, `fit` or `run`, the keys of what it is given.
        members: for a family, the step and coordinates of each of its inputs.
        place: where the step stands in its file.
        files: of a dataset, the names of its input files and hashes of their contents.
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

    @property
    def label(self) -> str:
        """A name for people, such as `cnn[filters=4, seed=0]`."""
        point = ", ".join(f"{name}={value}" for name, value in self.coords)
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
    tasks: list[Task] = field(default_factory=list)
    dims: tuple[str, ...] = ()


@dataclass
class Graph:
    """A pipeline that is ready to run: steps in order, and every task by its key."""

    document: PipelineDocument
    steps: list[Step]
    tasks: dict[str, Task]

    def in_order(self) -> Iterator[Task]:
        """Tasks after their inputs, going deep first, so that a recording is used while at hand."""
        done: set[str] = set()

        def visit(task: Task) -> Iterator[Task]:
            if task.key not in done:
                done.add(task.key)
                for key in task.dependencies:
                    yield from visit(self.tasks[key])
                yield task

        by_point: dict[Coords, list[Task]] = {}
        for step in self.steps:
            for task in step.tasks:
                by_point.setdefault(task.coords[:1], []).append(task)
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
            "it names a folder, so it is not empty, has no '/' and begins with no '.' "
            f"(got {document.name!r})",
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

    def references(self, name: str) -> list[str]:
        """The steps that a step names, checked to exist and to be of the right kind."""
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
        step = Step(kind, name, document, entry, cls)
        wants = _parameters(cls, kind)
        strange = wants - GIVEN[kind]
        if strange:
            raise self.source.error(
                (*place, "plugin"),
                f"'{document.plugin}' asks for '{min(strange)}', which no pipeline gives "
                f"(a {kind} is given {', '.join(sorted(GIVEN[kind]))}); tell its author",
            )
        for point, inputs in self._points(step, place, wants):
            step.tasks.append(self._task(step, place, dict(point), inputs))
        if not step.tasks:
            raise self.source.error(
                (*place, "data"),
                "no point of this dataset's sweep goes with a point of the models'",
            )
        self.steps[name] = step
        self.tasks |= {task.key: task for task in step.tasks}
        step.dims = tuple(dict.fromkeys(d for task in step.tasks for d, _ in task.coords))

    def _points(
        self, step: Step, place: Location, wants: set[str]
    ) -> Iterator[tuple[Coords, "_Inputs"]]:
        """The points of the step's own sweep, for each of its inputs."""
        fields = step.cls.Config.model_fields
        for option, values in step.document.sweep.items():
            if option not in fields and option != "seed":
                raise self.source.error(
                    (*place, "sweep", option),
                    f"{step.document.plugin} has no option to sweep of that name; "
                    + nearest(option, [*fields, "seed"]),
                )
            if not values:
                raise self.source.error((*place, "sweep", option), "the list of values is empty")
            texts = [json.dumps(value, default=str) for value in values]
            for index, text in enumerate(texts):
                if text in texts[:index]:
                    raise self.source.error(
                        (*place, "sweep", option, index), f"the value {text} is already in the list"
                    )
                seed = values[index] if option == "seed" else 0
                if type(seed) is not int or not 0 <= seed < 2**32:
                    raise self.source.error(
                        (*place, "sweep", option, index),
                        f"it must be an integer from 0 to 2^32 - 1 (got {text})",
                    )
            if option in step.document.with_:
                raise self.source.error(
                    (*place, "sweep", option), "the option is also given under 'with'; keep one"
                )
        own = [[(dim, v) for v in values] for dim, values in step.document.sweep.items()]
        for inputs in self._inputs(step, place, wants):
            taken = {dim for dim, _ in inputs.coords}
            for dim in step.document.sweep:
                if dim in taken:
                    raise self.source.error(
                        (*place, "sweep", dim),
                        f"what '{step.name}' is given is already swept over '{dim}'",
                    )
            for point in itertools.product(*own):
                yield (*inputs.coords, *point), inputs

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
            needed = wanted and not (role == "data" and "model" in wants)
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
                "results", [t for n in results for t in self.steps[n].tasks]
            )
        if "models" in wants:
            members = [t for n in models for t in self.steps[n].tasks]
            shared = shared.with_members("models", members)
        if "recordings" in wants and datasets:
            members = [t for n in datasets for t in self.steps[n].tasks]
            shared = shared.with_members("recordings", members)
        if "model" in wants:
            for model in (t for n in models for t in self.steps[n].tasks):
                base = _Inputs(
                    {**shared.keys, "model": (model.key,)}, shared.members, model.coords, model.step
                )
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
        elif "data" in wants:
            for task in (t for n in datasets for t in self.steps[n].tasks):
                about = task.step if step.kind == "analysis" else ""
                yield _Inputs(
                    {**shared.keys, "data": (task.key,)}, shared.members, task.coords, about
                )
        else:
            yield shared

    def _task(self, step: Step, place: Location, point: dict[str, Any], inputs: "_Inputs") -> Task:
        own = {dim: point[dim] for dim in step.document.sweep}
        seed: int | None = own.pop("seed", step.document.seed)
        seed = self.document.seed if seed is None else seed
        options = {**step.document.with_, **own}
        context = {"folder": str(self.source.path.resolve().parent)}
        try:
            config = step.cls.Config.model_validate(options, context=context)
        except ValidationError as error:
            first = error.errors()[0]["loc"]
            swept = {n: step.document.sweep[n].index(v) for n, v in own.items() if n in first[:1]}
            section = (*place, "sweep" if swept else "with")
            raise validation_error(self.source, section, error, step.cls.Config, swept) from None
        plugin = step.cls(config, seed=seed)
        resolved = config.model_dump_json()
        identified = json.loads(resolved)
        contents = []
        try:
            paths = plugin.files() if isinstance(plugin, Dataset) else []
        except UserError as error:
            raise self.source.error(place, str(error)) from None
        for path in paths:
            option = next((n for n, value in identified.items() if value == str(path)), None)
            try:
                contents.append((path.name, content_hash(path)))
            except UserError as error:
                where = (
                    *place,
                    "sweep" if option in own else "with",
                    *([option] if option else []),
                )
                raise self.source.error(where, str(error)) from None
            if option:  # what a file holds counts, not where it is
                identified[option] = contents[-1]
        identity = {
            "plugin": [step.kind, step.entry.full_name, step.entry.version],
            "config": identified,
            "seed": seed,
            "files": contents,
            "inputs": {role: list(keys) for role, keys in inputs.keys.items()},
            # A family's result is labelled with the names and points of its members.
            "members": {
                role: [list(map(str, m)) for m in ms] for role, ms in inputs.members.items()
            },
        }
        text = json.dumps(identity, sort_keys=True)
        return Task(
            key=hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
            kind=step.kind,
            step=step.name,
            about=inputs.about,
            coords=tuple(point.items()),
            plugin=step.entry.full_name,
            config=resolved,
            seed=seed,
            inputs=inputs.keys,
            members=inputs.members,
            place=self.source.position(place),
            volatile=bool(getattr(step.cls, "volatile", False)),
            files=tuple(contents),
        )


@dataclass(frozen=True)
class _Inputs:
    """What one task is given, and where in the sweeps that stands."""

    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    members: Mapping[str, tuple[tuple[str, Coords], ...]] = field(default_factory=dict)
    coords: Coords = ()
    about: str = ""

    def with_members(self, role: str, tasks: list[Task]) -> "_Inputs":
        keys = {**self.keys, role: tuple(t.key for t in tasks)}
        members = {**self.members, role: tuple((t.step, t.coords) for t in tasks)}
        return _Inputs(keys, members, self.coords, self.about)

    def with_data(self, task: Task, coords: Coords) -> "_Inputs":
        return _Inputs({**self.keys, "data": (task.key,)}, self.members, coords, self.about)


def _parameters(cls: type[Plugin], kind: str) -> set[str]:
    """What a plugin wants to be given, from the signature of its method."""
    if kind == "model":
        return {"data"}
    method = {"dataset": "load", "analysis": "run"}[kind]
    return set(inspect.signature(getattr(cls, method)).parameters) - {"self"}


def content_hash(path: Path) -> str:
    """A hash of a file's contents.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the path") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    return _content_hash(path, status.st_size, status.st_mtime_ns)


@lru_cache
def _content_hash(path: Path, size: int, changed: int) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
