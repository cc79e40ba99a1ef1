"""Reads a pipeline file, and reports mistakes with their line and column."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from retinakit.contracts.config import Config
from retinakit.contracts.errors import UserError, nearest
from retinakit.pipeline.yaml_positions import Location, Positions, parse_yaml, read_yaml

MOST_TRIALS = 10_000
"""Most trials of a search: each proposal of optuna takes longer than the one before."""

LONGEST_NAME = 100
"""Most bytes in the name of a pipeline or a step, which is a part of file names."""


LONGEST_CHANGE = 100
"""Characters up to which an error message repeats a --set in full."""


class StepDocument(Config):
    """The fields of every step."""

    plugin: str = Field("", description="Name of the plugin, or distribution:name.")
    with_: dict[str, Any] = Field({}, alias="with", description="Options of the plugin.")
    seed: int | None = Field(
        None, ge=0, lt=2**32, description="The step's own seed; the pipeline's by default."
    )
    sweep: dict[str, list[Any]] | list[dict[str, Any]] = Field(
        {},
        description="Options (or seed) to vary. Lists of values: each option becomes a dimension "
        "of the results. A list of points, each a mapping with the same options: one dimension "
        "`point`, with the options as coordinates.",
    )

    @property
    def swept(self) -> list[str]:
        """The options that are swept."""
        return list(self.sweep if isinstance(self.sweep, dict) else self.sweep[0])


class DatasetDocument(StepDocument):
    """A step that makes a recording."""

    data: str | None = Field(None, description="The dataset that this one is made from.")


class Range(Config):
    """A range of values of an option."""

    low: float = Field(..., description="The smallest value.")
    high: float = Field(..., description="The largest value.")
    log: bool = Field(False, description="Whether values are drawn evenly on a logarithmic scale.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be less than high (got {self.low:g} and {self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be more than 0 where log is true (got {self.low:g})")
        return self


class SearchDocument(Config):
    """A search for good options with optuna."""

    trials: int = Field(40, ge=1, le=MOST_TRIALS, description="Number of points to propose.")
    over: dict[str, Range | list[Any]] = Field(
        {}, description="Options (or seed) to vary: a range of numbers, or a list of values."
    )
    by: str = Field(
        "validation_loss",
        description="The variable of the training curves to minimise, measured on the validation "
        "frames. Its smallest value over the fit counts.",
    )
    batch: int = Field(
        8,
        ge=1,
        description="Number of points that are proposed at a time, and can be fitted in parallel.",
    )

    @field_validator("by")
    @classmethod
    def _on_validation(cls, by: str) -> str:
        if by.startswith(("train", "test")):
            raise ValueError("a search selects by the validation frames; use validation_loss")
        return by


class ModelDocument(StepDocument):
    """A step that fits a model."""

    data: str | list[str] = Field(
        "",
        description="The dataset to fit, or several for a model that shares parts between them.",
    )
    search: SearchDocument | None = Field(
        None,
        description="Selects options by the validation loss. The points that were tried become the "
        "dimension `point` of the results, as with a sweep over a list of points.",
    )


class AnalysisDocument(StepDocument):
    """A step that analyses recordings, models or other results."""

    data: str | list[str] | None = Field(None, description="The dataset or datasets to analyse.")
    models: list[str] = Field([], description="The models to analyse.")
    results: list[str] = Field([], description="The analyses whose results are used.")


class PipelineDocument(Config):
    """A pipeline file."""

    name: str = Field("pipeline", description="Name of the run's folder and of the report.")
    description: str = Field("", description="A few sentences for the report.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="The seed of every step that has none of its own."
    )
    datasets: dict[str, DatasetDocument] = Field({}, description="Steps that make recordings.")
    models: dict[str, ModelDocument] = Field({}, description="Steps that fit models.")
    analyses: dict[str, AnalysisDocument] = Field(
        {}, description="Steps that analyse recordings, models or results."
    )
    profiles: dict[str, dict[str, Any]] = Field(
        {},
        description="Variants by name, each with new values by their path, such as "
        "datasets.cell.with.frames; chosen with --profile.",
    )


SECTIONS = {"dataset": "datasets", "model": "models", "analysis": "analyses"}


class Source:
    """A pipeline file with the positions of everything in it."""

    def __init__(self, path: Path, content: dict[str, Any], positions: Positions):
        self.path = path
        self.content = content
        self._positions = positions
        self._moved: dict[Location, Location] = {}  # positions of values that a profile sets
        self._given: dict[Location, str] = {}  # values that the command line sets

    @classmethod
    def read(cls, path: Path) -> "Source":
        """Reads a file.

        Raises:
            UserError: if it cannot be read or is not YAML.
        """
        content, positions = read_yaml(path)
        if not isinstance(content, dict):
            raise UserError(f"{path}:1:1: a pipeline is a mapping with datasets, models, analyses")
        return cls(path, content, positions)

    def at(self, location: Location) -> Any:
        """The value at a location, or None."""
        node: Any = self.content
        for part in location:
            if not _holds(node, part):
                return None
            node = node[part]
        return node

    def apply(self, profile: str) -> None:
        """Sets the values of a profile. The form of the file has been checked.

        Raises:
            UserError: if there is no such profile, or a path leads nowhere.
        """
        known = self.at(("profiles",)) or {}
        if profile not in known:
            raise UserError(
                f"--profile {profile}: {self.path} has no such profile; {nearest(profile, known)}"
            )
        for path, value in known[profile].items():
            stands = ("profiles", profile, path)
            self._set(path, value, partial(self.error, stands))
            self._moved[tuple(path.split("."))] = stands

    def change(self, change: str) -> None:
        """Sets a value that the command line gives, such as "models.cnn.with.filters=8".

        Raises:
            UserError: if it is of another form, or its path leads nowhere.
        """
        path, equals, text = change.partition("=")
        given = f"--set {change}" if len(change) <= LONGEST_CHANGE else f"--set {path}=..."
        if not equals:
            raise UserError(f"{given}: give a path and a value, PATH=VALUE")
        value, _ = parse_yaml(text, f"{given}: the value")
        self._set(path, value, lambda message: UserError(f"{given}: {message}"))
        self._given[tuple(path.split("."))] = given

    def _set(self, path: str, value: Any, error: Callable[[str], UserError]) -> None:
        """Sets the value at a path of names and dots."""
        *parents, last = location = tuple(path.split("."))
        node = self.content
        for depth, part in enumerate(parents):
            if part not in node and depth < 2:  # a section and a step must be there
                raise error(_nowhere(depth, part, node))
            child = node.get(part, {})
            if not isinstance(child, dict):
                whole = ".".join(location[: depth + 1])
                raise error(f"'{whole}' is not a mapping; set it as a whole")
            node[part] = dict(child)  # another profile may have set the same one
            node = node[part]
        node[last] = value

    def position(self, location: Location) -> str:
        """`file:line:column` of the value at a location, or of its nearest known parent."""
        for end in range(len(location), 0, -1):
            if location[:end] in self._given:
                return self._given[location[:end]]
            if location[:end] in self._moved:
                location = self._moved[location[:end]] + location[end:]
                break
        while location and location not in self._positions:
            location = location[:-1]
        line, column = self._positions.get(location, (0, 0))
        return f"{self.path}:{line + 1}:{column + 1}"

    def error(self, location: Location, message: str) -> UserError:
        """An error that begins with `file:line:column: path:`."""
        path = ".".join(map(str, location))
        return UserError(f"{self.position(location)}: {path + ': ' if path else ''}{message}")


def _holds(node: Any, part: str | int) -> bool:
    """Whether a mapping has a key, or a list an index."""
    if isinstance(node, list):
        return isinstance(part, int) and part < len(node)
    return isinstance(node, dict) and part in node


def _nowhere(depth: int, part: str, known: Mapping[str, Any]) -> str:
    """The error for the section or the step at the beginning of a profile's path."""
    if depth == 1:
        return f"there is no step '{part}'; {nearest(part, known)}"
    if part in SECTIONS.values():
        return f"the file has no {part}; write them under {part}:, not in a profile"
    return f"there is no section '{part}'; {nearest(part, SECTIONS.values())}"


def read_pipeline(
    path: Path, profile: str | None = None, changes: Sequence[str] = ()
) -> tuple[Source, PipelineDocument]:
    """Reads a pipeline file and checks its form (not yet plugins, options or references).

    Args:
        profile: one of the file's profiles; its name is added to that of the pipeline.
        changes: other values, as the command line gives them: "PATH=VALUE".

    Raises:
        UserError: with file, line and column.
    """
    source = Source.read(path)
    document = _checked(source)
    if profile is not None:
        source.apply(profile)
        document = _checked(source)
    for change in changes:
        source.change(change)
    if changes:
        document = _checked(source)
    if profile is not None:
        document = document.model_copy(update={"name": f"{document.name}-{profile}"})
    return source, document


def _checked(source: Source) -> PipelineDocument:
    try:
        return PipelineDocument.model_validate(source.content)
    except ValidationError as error:
        raise validation_error(source, (), error, PipelineDocument) from None


EXPECTED = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "an integer",
    "list": "a list",
    "model": "a mapping",
    "string": "text",
}
"""The expected kind of value, by the first word of pydantic's name of the error."""


def validation_error(
    source: Source,
    prefix: Location,
    error: ValidationError,
    schema: type[Config],
    swept: Mapping[str, int | str] | None = None,
) -> UserError:
    """One sentence for the first error that a pydantic validation found.

    Args:
        prefix: location in the document of the part that was validated.
        swept: for a swept option, the index of the value that was validated, or the end of its
            range.
    """

    def place(location: Location) -> Location:
        values = [swept[str(part)] for part in location[:1] if swept and part in swept]
        return _in_document(source, prefix, (*location[:1], *values, *location[1:]))

    found = [(place(e["loc"]), e) for e in error.errors()]
    start, _ = found[0]
    # Of the branches of a union, the one that got furthest into the value is reported.
    inside, first = max((f for f in found if f[0][: len(start)] == start), key=lambda f: len(f[0]))
    location = (*prefix, *inside)
    kind, limits = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        known = _known_fields(schema, inside[:-1])
        return source.error(location, f"there is no such option; {nearest(str(inside[-1]), known)}")
    got = repr(first["input"]) if first["input"] is not None else "nothing"
    got = got if len(got) <= 60 else got[:57] + "..."
    comparison = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    if (wanted := EXPECTED.get(kind.partition("_")[0])) and kind.endswith(("_type", "_parsing")):
        message = f"it must be {wanted}"
    elif kind == "literal_error":
        message = f"it must be {limits['expected']}"
    elif bound := next((name for name in comparison if name in limits), None):
        message = f"it must be {comparison[bound]} {limits[bound]}"
    elif kind == "finite_number":
        message = "it must be a number that is neither infinite nor NaN"
    else:
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
    remedy = f"; write [{first['input']}]" if kind == "list_type" and _is_name(first) else ""
    return source.error(location, f"{message} (got {got}){remedy}")


def _is_name(error: Any) -> bool:
    return isinstance(error["input"], str) and error["input"].isidentifier()


def _in_document(source: Source, prefix: Location, location: Location) -> Location:
    """A location of pydantic's without the names of union branches, which no document has."""
    node: Any = source.at(prefix)
    found: list[str | int] = []
    for part in location:
        if _holds(node, part):
            node = node[part]
            found.append(part)
    return tuple(found)


def _known_fields(schema: type[Config], location: Location) -> list[str]:
    """The fields of the part of a schema that a location leads to."""
    for part in location:
        field = schema.model_fields.get(str(part))
        for candidate in _models_in(field.annotation if field else None):
            schema = candidate
    return [field.alias or name for name, field in schema.model_fields.items()]


def _models_in(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]
