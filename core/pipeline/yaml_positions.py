"""Reads a YAML file into dictionaries, lists, text and numbers, with the position of each.

ruamel makes the tree of nodes. The values are made here, so that everything other than plain data
(dates, custom tags, keys that are not text, recursive aliases) is refused in one place, with its
line and column.
"""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from retinakit.contracts.errors import UserError

Location = tuple[str | int, ...]
Positions = dict[Location, tuple[int, int]]
"""Line and column, counted from 0: of the key in a mapping, of the value in a list."""

LONGEST = 10 * 2**20
"""Characters of a file."""
DEEPEST = 50
"""Lists and mappings within each other."""
REPEATED = 20_000
"""Most values that aliases may repeat: a few lines of aliases can stand for billions of values."""

TAG = "tag:yaml.org,2002:"
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read_yaml(path: Path) -> tuple[Any, Positions]:
    """Reads a file, as `parse_yaml` does.

    Raises:
        UserError: if it cannot be read, is not YAML, or contains anything but plain data.
    """
    return parse_yaml(_text(path), str(path))


def parse_yaml(text: str, source: str) -> tuple[Any, Positions]:
    """Reads a text.

    Args:
        source: the origin of the text, with which error messages begin.

    Returns:
        Its content, and the position of everything in it.

    Raises:
        UserError: if it is not YAML, or contains anything but plain data.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _Composer
    yaml.composer.warn_double_anchors = False  # they are allowed
    yaml.max_depth = DEEPEST
    try:
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else f"{source}:1:1"
        problem = " ".join(str(error.problem or error.context).split())
        if isinstance(error, MaxDepthExceededError):
            problem = f"nested more than {DEEPEST} deep"
        raise UserError(f"{place}: not valid YAML: {problem}") from None
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        raise UserError(
            f"{source}:{line}:{column}: not valid YAML: there is an unprintable character"
        ) from None
    values = _Values(source, yaml)
    return None if node is None else values.value(node, ()), values.positions


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot be read; save it as text in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a path with a null character
        raise UserError(f"{path}: cannot be read ({error})") from None
    if len(text) > LONGEST:
        raise UserError(f"{path}: it has more than {LONGEST:,} characters, too many for a pipeline")
    return text


class _Composer(Composer):
    """ruamel's composer, with a position for every exception."""

    def get_single_node(self) -> Any:
        try:
            return super().get_single_node()
        except YAMLError:
            raise
        except Exception as error:  # such as an OverflowError for \UFFFFFFFF
            mark = self.loader.reader.get_mark()
            raise MarkedYAMLError(problem=str(error), problem_mark=mark) from error


class _Values:
    """Converts nodes to values."""

    def __init__(self, source: str, yaml: YAML):
        self.source, self.constructor = source, yaml.constructor
        self.positions: Positions = {}
        self.seen: set[int] = set()
        self.within: list[Node] = []
        self.repeated = 0

    def error(self, node: Node, message: str) -> UserError:
        mark = node.start_mark
        return UserError(f"{self.source}:{mark.line + 1}:{mark.column + 1}: {message}")

    def strange_tag(self, node: Node) -> UserError:
        tag = str(node.tag).replace(TAG, "!!")
        return self.error(node, f"the tag {tag} is not known here; leave it out")

    def value(self, node: Node, location: Location) -> Any:
        """The value of a node. Records the positions of its parts."""
        if any(node is outer for outer in self.within):
            raise self.error(node, f"the alias *{node.anchor} is inside the value that it repeats")
        self.repeated += id(node) in self.seen
        self.seen.add(id(node))
        if self.repeated > REPEATED:
            line, column = self.positions[location]
            raise UserError(
                f"{self.source}:{line + 1}:{column + 1}: the aliases of this file repeat more than "
                f"{REPEATED:,} values; write the values out"
            )
        if isinstance(node, ScalarNode):
            return self.scalar(node)
        self.within.append(node)
        value: Any
        if isinstance(node, MappingNode) and node.tag == TAG + "map":
            value = self.mapping(node, location)
        elif isinstance(node, SequenceNode) and node.tag == TAG + "seq":
            value = self.sequence(node, location)
        else:
            raise self.strange_tag(node)
        self.within.pop()
        return value

    def sequence(self, node: SequenceNode, location: Location) -> list[Any]:
        values = []
        for index, item in enumerate(node.value):
            self.positions[*location, index] = (item.start_mark.line, item.start_mark.column)
            values.append(self.value(item, (*location, index)))
        return values

    def mapping(self, node: MappingNode, location: Location) -> dict[str, Any]:
        """A mapping, with the keys that `<<` merges into it. Its own keys take precedence."""
        own: dict[str, tuple[Node, Node]] = {}
        for key_node, value_node in node.value:
            if key_node.tag == TAG + "merge":
                continue
            key = self.key(key_node)
            if key in own:
                raise self.error(key_node, f"the key '{key}' is given twice")
            own[key] = (key_node, value_node)
        values = {}
        for key, (key_node, value_node) in (self.merged(node) | own).items():
            self.positions[*location, key] = (key_node.start_mark.line, key_node.start_mark.column)
            values[key] = self.value(value_node, (*location, key))
        return values

    def merged(self, node: MappingNode) -> dict[str, tuple[Node, Node]]:
        """The key and value nodes that `<<` merges into a mapping; the first of a key counts."""
        found: dict[str, tuple[Node, Node]] = {}
        for key_node, value_node in node.value:
            if key_node.tag != TAG + "merge":
                continue
            several = isinstance(value_node, SequenceNode)
            for source in value_node.value if several else [value_node]:
                if not isinstance(source, MappingNode):
                    raise self.error(key_node, "<< merges a mapping, or a list of mappings")
                if any(source is outer for outer in self.within):
                    raise self.error(key_node, "<< merges a mapping into itself")
                self.within.append(source)
                theirs = self.merged(source) | {
                    self.key(key): (key, value)
                    for key, value in source.value
                    if key.tag != TAG + "merge"
                }
                self.within.pop()
                found = theirs | found
        return found

    def key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self.error(node, "a key is text, not a list or a mapping")
        value = self.scalar(node)
        if not isinstance(value, str):
            raise self.error(
                node, f"a key is text, and {node.value or 'nothing'} is not; put it in quotes"
            )
        return value

    def scalar(self, node: ScalarNode) -> str | int | float | bool | None:
        tag = str(node.tag).removeprefix(TAG)
        if wrong := UNPRINTABLE.search(node.value):
            raise self.error(node, f"there is an unprintable character (U+{ord(wrong[0]):04X})")
        if tag in ("value", "merge"):
            return str(node.value)
        if tag == "timestamp":
            raise self.error(node, f"{node.value} is a date; put it in quotes if it is text")
        if tag not in ("str", "int", "float", "bool", "null"):
            raise self.strange_tag(node)
        try:
            value: str | int | float | bool | None = self.constructor.construct_object(node)
        except (ValueError, KeyError, IndexError, YAMLError):  # such as !!int x
            what = {"int": "integer", "float": "number", "bool": "boolean"}.get(tag, tag)
            text = node.value if len(node.value) <= 60 else node.value[:57] + "..."
            raise self.error(node, f"'{text}' cannot be read as {what}") from None
        return value
