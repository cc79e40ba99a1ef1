"""Hashes of input files and of the code of plugins, which are parts of a result's key.

The code of a plugin is its module and everything that the module imports from its own distribution
and from retinakit. Imports are found in the sources, without executing them. Compiled modules count
with their contents.
"""

import ast
import hashlib
import importlib.util
import json
import os
import time
import uuid
from contextlib import suppress
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import platformdirs

from retinakit.contracts.errors import UserError

REMEMBERED = 16 * 2**20
"""Size in bytes from which the hash of a file is remembered."""

SETTLED = 2.0
"""Seconds after which a further change of a file changes its time, on any file system."""


# Contents


def file_hash(path: Path) -> str:
    """A hash of a file's contents.

    That of a large file is remembered while its path, size and time are the same.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the path") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    return _file_hash(path.absolute(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2**16)
def _file_hash(path: Path, size: int, changed: int) -> str:
    identity = [str(path), size, changed]
    memory = _memory(path) if size >= REMEMBERED else None
    if memory is not None:
        with suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(memory.read_text(encoding="utf-8"))
            if known["file"] == identity:
                return str(known["hash"])
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if memory is not None and time.time() - changed / 1e9 > SETTLED:
        _remember(memory, {"file": identity, "hash": found})
    return found


def _memory(path: Path) -> Path:
    """The small file in which the hash of a file is remembered."""
    cache = os.environ.get("RETINAKIT_CACHE") or platformdirs.user_cache_dir("retinakit")
    name = hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()
    return Path(cache) / "hashes" / f"{name}.json"


def _remember(memory: Path, content: dict[str, object]) -> None:
    """Writes a file atomically, or not at all, so that runs do not disturb each other."""
    unfinished = memory.with_name(f".{uuid.uuid4().hex}")
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_text(json.dumps(content), encoding="utf-8")
            unfinished.replace(memory)
        finally:
            unfinished.unlink(missing_ok=True)


# Code


def code_hash(module: str, distribution_name: str) -> str:
    """A hash of a module and everything it imports from its own distribution and from retinakit.

    Args:
        module: the full name of the module.
        distribution_name: of the distribution that it is from.

    Returns:
        The hash. It is the same wherever the code is installed.
    """
    packages = _packages(distribution_name) | {module.partition(".")[0], "retinakit"}
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name.partition(".")[0] not in packages:
            continue
        path = _source(name)
        if path is None:
            continue
        status = path.stat()
        found[name], imported = _read_code(name, path, status.st_size, status.st_mtime_ns)
        for base, attribute in imported:
            waiting += _imported(base, attribute)
    text = json.dumps(sorted(found.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _packages(distribution_name: str) -> set[str]:
    """The top-level modules of a distribution that its metadata lists."""
    try:
        found = distribution(distribution_name)
    except PackageNotFoundError:
        return set()
    names = set((found.read_text("top_level.txt") or "").split())
    for file in found.files or ():
        if file.suffix == ".py":
            names.add(file.parts[0].removesuffix(".py"))
    return names


def _source(name: str) -> Path | None:
    """The file of a module, without importing it or its parents."""
    top, *parts = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not parts and spec.submodule_search_locations is None:
        return Path(spec.origin) if spec.has_location and spec.origin else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder).joinpath(*parts)
        options = [path / "__init__.py"]
        if parts:
            options += [path.with_name(path.name + end) for end in (".py", *EXTENSION_SUFFIXES)]
        for option in options:
            if option.is_file():
                return option
    return None


@lru_cache(maxsize=2**14)
def _read_code(
    name: str, path: Path, size: int, changed: int
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The hash of a module's file, and what it imports as (module, name in it or "")."""
    content = path.read_bytes()
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    if path.suffix != ".py":
        return digest, ()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return digest, ()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return digest, tuple(_imports(tree, package))


def _imports(tree: ast.AST, package: str) -> list[tuple[str, str]]:
    """All imports in a module, except those under TYPE_CHECKING."""
    found: list[tuple[str, str]] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            found += [(base, alias.name) for alias in node.names]
        elif isinstance(node, ast.Call) and (
            getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module"
        ):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.append((argument.value, ""))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in (
            getattr(node.test, "id", ""),
            getattr(node.test, "attr", ""),
        ):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
    return found


def _imported(base: str, attribute: str) -> list[str]:
    """The modules that `from base import attribute` (or `import base`, without one) comes to.

    Of a package whose names are loaded when they are asked for (`__init__.pyi`), it is the module
    that has the name.
    """
    parents = [".".join(base.split(".")[:end]) for end in range(1, base.count(".") + 2)]
    submodule = f"{base}.{attribute}"
    if attribute and _source(submodule) is not None:
        return [*parents, submodule]
    path = _source(base)
    stub = path.with_suffix(".pyi") if path is not None and path.name == "__init__.py" else None
    if stub is None or not stub.is_file():
        return parents
    status = stub.stat()
    homes = _homes(base, stub, status.st_size, status.st_mtime_ns)
    everything = attribute in ("", "*")
    return [*parents, *(home for name, home in homes if everything or name == attribute)]


@lru_cache(maxsize=2**10)
def _homes(package: str, stub: Path, size: int, changed: int) -> tuple[tuple[str, str], ...]:
    """The names of a package by its stub, each with the module that has it."""
    found = []
    for node in ast.parse(stub.read_bytes()).body:
        if isinstance(node, ast.ImportFrom):
            home = ".".join(filter(None, [package if node.level else "", node.module]))
            for alias in node.names:
                inner = home if node.module else f"{home}.{alias.name}"
                found.append((alias.asname or alias.name, inner))
    return tuple(found)
