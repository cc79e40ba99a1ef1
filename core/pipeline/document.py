"""Reads a pipeline file, and says of every mistake in it where it stands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError

from retinakit.config import Config
from retinakit.errors import UserError, nearest

Location = tuple[str | int, ...]


class StepDocument(Config):
    """What every step has."""

    plugin: str = Field("", description="Name of the plugin, or distribution:name.")
    with_: dict[str, Any] = Field({}, alias="with", description="Options of the plugin.")
    seed: int | None = Field(None, description="The step's own seed; the pipeline's by default.")
    sweep: dict[str, list[Any]] = Field(
        {}, description="Options (or seed) to vary; each becomes a dimension of the results."
    )


class DatasetDocument(StepDocument):
    """A step that makes a recording."""

    data: str | None = Field(None, description="The dataset that this one is made from.")


class ModelDocument(StepDocument):
    """A step that fits a model."""

    data: str = Field("", description="The dataset to fit.")


class AnalysisDocument(StepDocument):
    """A step that analyses recordings, models or other results."""

    data: str | list[str] | None = Field(None, description="The dataset or datasets to analyse.")
    models: list[str] = Field([], description="The models to analyse.")
    results: list[str] = Field([], description="The analyses whose results are wanted.")


class PipelineDocument(Config):
    """A pipeline file."""

    name: str = Field("pipeline", description="Name of the run's folder and of the report.")
    description: str = Field("", description="A few sentences for the report.")
    seed: int = Field(0, description="The seed of every step that has none of its own.")
    datasets: dict[str, DatasetDocument] = Field({}, description="Steps that make recordings.")
    models: dict[str, ModelDocument] = Field({}, description="Steps that fit models.")
    analyses: dict[str, AnalysisDocument] = Field({}, description="Steps that analyse.")


SECTIONS = {"dataset": "datasets", "model": "models", "analysis": "analyses"}


class Source:
    """A pipeline file with the positions of everything in it."""

    def __init__(self, path: Path, content: Any):
        self.path = path
        self.content = content

    @classmethod
    def read(cls, path: Path) -> "Source":
        """Reads a file.

        Raises:
            UserError: if it cannot be read or is not YAML.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{path}: there is no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None
        try:
            content = YAML(typ="rt").load(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            problem = " ".join(str(error.problem or error.context).split())
            raise UserError(f"{path}{place}: not valid YAML: {problem}") from None
        if not isinstance(content, CommentedMap):
            raise UserError(f"{path}:1:1: a pipeline is a mapping with datasets, models, analyses")
        return cls(path, content)

    def position(self, location: Location) -> str:
        """`file:line:column` of the value at a location, or of its nearest known parent."""
        node, line, column = self.content, 0, 0
        for part in location:
            if isinstance(node, CommentedMap) and part in node:
                line, column = node.lc.key(part)
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                line, column = node.lc.item(part)
            else:
                break
            node = node[part]
        return f"{self.path}:{line + 1}:{column + 1}"

    def error(self, location: Location, message: str) -> UserError:
        """The sentence `file:line:column: path: what is wrong`."""
        path = ".".join(map(str, location))
        return UserError(f"{self.position(location)}: {path + ': ' if path else ''}{message}")

    def plain(self) -> dict[str, Any]:
        """The content as plain dictionaries, lists and scalars."""
        plain: dict[str, Any] = _plain(self.content)
        return plain


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def read_pipeline(path: Path) -> tuple[Source, PipelineDocument]:
    """Reads a pipeline file and checks its form (not yet plugins, options or references).

    Raises:
        UserError: with file, line and column.
    """
    source = Source.read(path)
    try:
        return source, PipelineDocument.model_validate(source.plain())
    except ValidationError as error:
        raise validation_error(source, (), error, PipelineDocument) from None


def validation_error(
    source: Source, prefix: Location, error: ValidationError, schema: type[Config]
) -> UserError:
    """One sentence for the first thing that a pydantic validation found."""
    first = error.errors()[0]
    inside: Location = tuple(part for part in first["loc"] if _is_in(source, prefix, part, first))
    location = (*prefix, *inside)
    if first["type"] == "extra_forbidden":
        known = _known_fields(schema, inside[:-1])
        return source.error(location, f"there is no such option; {nearest(str(inside[-1]), known)}")
    got = repr(first["input"])
    got = got if len(got) <= 60 else got[:57] + "..."
    message = first["msg"][0].lower() + first["msg"][1:]
    return source.error(location, f"{message} (got {got})")


def _is_in(source: Source, prefix: Location, part: str | int, error: Any) -> bool:
    # pydantic names the branch of a union in the location; such a part is in no document.
    return not (isinstance(part, str) and ("[" in part or part in ("str", "int", "float", "bool")))


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
