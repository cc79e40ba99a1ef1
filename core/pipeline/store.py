"""The content-addressed store of results, which any number of runs may share.

A result is a folder named by its key, with `result.nc` and `meta.json`. It is written under a
temporary name and renamed when it is whole, so that a reader never sees a part of one.
"""

import errno
import itertools
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from retinakit.contracts.errors import UserError
from retinakit.pipeline.hashes import file_hash

RESULT, META = "result.nc", "meta.json"
MARGIN = 16 * 2**20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP}

logger = logging.getLogger("retinakit")


class StoreError(UserError):
    """A folder for results cannot be written to, so the run cannot continue."""


class Store:
    """Results by key, in a folder.

    Args:
        create: create the folder and check that it can be written to.

    Raises:
        UserError: if it cannot.
    """

    def __init__(self, root: Path, *, create: bool = True):
        self.root = root
        if not create:
            return
        try:
            self._prepare()
        except UserError:
            if not root.is_dir():
                raise
            logger.info("%s cannot be written to; what is stored there is read", root)

    def _prepare(self) -> None:
        """Checks that the folder can be written to."""
        with writing_to(self.root):
            for folder in (self.root, self.root / "locks", self.root / "unfinished"):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.root / "unfinished" / uuid.uuid4().hex
            probe.touch()
            probe.unlink()

    def folder(self, key: str) -> Path:
        """The folder of a result, whether it exists or not."""
        return self.root / key[:2] / key

    def path(self, key: str) -> Path:
        """The file of a result."""
        return self.folder(key) / RESULT

    def meta(self, key: str) -> dict[str, Any] | None:
        """The metadata of a result, or None if it is not stored."""
        return _read_meta(self.folder(key) / META)

    def verifies(self, key: str) -> bool:
        """Whether a result is stored and its contents are as they were written."""
        meta, path = self.meta(key), self.path(key)
        return meta is not None and path.is_file() and meta.get("hash") == file_hash(path)

    def has(self, key: str) -> bool:
        """Whether a result is stored and verifies; a damaged one is removed with a warning."""
        folder = self.folder(key)
        if not os.path.lexists(folder):
            return False
        if self.verifies(key):
            with suppress(OSError):  # the time of the last use; a store may be read-only
                os.utime(folder / META)
            return True
        logger.warning("the stored result %s does not verify; it is computed again", folder)
        _remove(folder)
        return False

    def forget(self, key: str, extended: str = "") -> None:
        """Removes a result and the state of its unfinished fit, if they exist.

        Args:
            extended: if given, the states of finished fits that it could continue from, too.
        """
        if extended:
            shutil.rmtree(self.root / "finished" / extended, ignore_errors=True)
        _remove(self.folder(key))
        shutil.rmtree(self.checkpoint(key).parent, ignore_errors=True)

    def lock(self, name: str) -> FileLock:
        """The lock that is held while something of this name is written."""
        return FileLock(self.root / "locks" / f"{name}.lock")

    @contextmanager
    def making(self, key: str) -> Iterator[None]:
        """Holds a lock while a result is made, so that two runs do not make it twice.

        Raises:
            UserError: if the store cannot be written to.
        """
        self._prepare()
        lock = self.lock(key)
        with lock:
            try:
                yield
            finally:
                if self.folder(key).exists():  # whoever still waits for it finds the result
                    Path(lock.lock_file).unlink(missing_ok=True)

    def entries(self) -> Iterator["Entry"]:
        """The results in the store, in no particular order."""
        for meta_path in self.root.glob("[0-9a-f][0-9a-f]/*/" + META):
            meta, folder = _read_meta(meta_path), meta_path.parent
            with suppress(OSError):
                size = sum(path.stat().st_size for path in folder.iterdir())
                made = (folder / RESULT).stat().st_mtime
                used = max(made, meta_path.stat().st_mtime)
                about = meta or {}
                yield Entry(
                    folder.name,
                    str(about.get("pipeline", "")),
                    str(about.get("step", "")),
                    str(about.get("plugin", "")),
                    size,
                    made,
                    used,
                )

    def clear(self, days: float) -> tuple[int, int]:
        """Removes results, unfinished fits and locks that no run has used for a number of days.

        Returns:
            The number of results that were removed, and the bytes that were freed.
        """
        oldest = time.time() - days * 86400
        number, freed = 0, 0
        with writing_to(self.root):
            for entry in self.entries():
                if entry.used < oldest:
                    shutil.rmtree(self.folder(entry.key))
                    number, freed = number + 1, freed + entry.size
            states = itertools.chain(
                *((self.root / n).glob("*") for n in ("unfinished", "finished"))
            )
            for folder in states:
                files = [path for path in folder.rglob("*") if path.is_file()]
                newest = max((path.stat().st_mtime for path in files), default=0.0)
                if max(newest, folder.stat().st_mtime) < oldest:
                    freed += sum(path.stat().st_size for path in files)
                    shutil.rmtree(folder, ignore_errors=True)
            for path in (self.root / "locks").glob("*.lock"):
                if path.stat().st_mtime < oldest:
                    with suppress(Timeout), FileLock(path, timeout=0):
                        path.unlink(missing_ok=True)
        return number, freed

    def checkpoint(self, key: str) -> Path:
        """The path at which an unfinished fit keeps its state."""
        return self.root / "unfinished" / key / "checkpoint"

    def finished(self, extended: str) -> int | None:
        """The length of the longest finished fit whose state is kept, such as its number of steps.

        Args:
            extended: a hash of everything that fits of different lengths have in common.
        """
        folders = (self.root / "finished" / extended).glob("*")
        return max(
            (int(folder.name) for folder in folders if folder.name.isdecimal()), default=None
        )

    def extend(self, key: str, extended: str, amount: int) -> bool:
        """Lets a fit continue from a finished shorter one; returns whether that is possible."""
        source, target = (
            self.root / "finished" / extended / str(amount),
            self.checkpoint(key).parent,
        )
        with writing_to(self.root), self.lock(extended):
            if not source.is_dir() or not any(source.iterdir()):
                return False
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
            return True

    def keep_finished(self, key: str, extended: str, amount: int, *, state: bool) -> None:
        """Keeps the state of a finished fit, in place of that of a shorter one.

        Args:
            state: whether a fit can continue from it; otherwise only the length is kept.
        """
        folder = self.root / "finished" / extended
        with writing_to(self.root), self.lock(extended):
            longest = self.finished(extended)
            if longest is not None and longest >= amount:
                return
            shutil.rmtree(folder, ignore_errors=True)
            (folder / str(amount)).mkdir(parents=True)
            kept = self.checkpoint(key).parent
            if state and kept.is_dir():  # a fit of fewer steps than `check_every` wrote nothing
                shutil.copytree(
                    kept,
                    folder / str(amount),
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.unfit"),
                )

    def write(
        self, key: str, write: Callable[[Path], None], meta: dict[str, Any], size: int = 0
    ) -> None:
        """Stores a result. The caller holds the lock of its key.

        Args:
            write: writes the result to the path it is given.
            meta: metadata that JSON can represent.
            size: the expected bytes of a large result.

        Raises:
            UserError: if there is no room, or no permission; nothing is kept then.
            Exception: what `write` raises.
        """
        for left in (self.root / "unfinished").glob(f"{key}-*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        work = self.root / "unfinished" / f"{key}-{uuid.uuid4().hex}"
        try:
            with writing_to(self.root):
                work.mkdir(parents=True)
                reserve(work, size)
            try:
                write(work / RESULT)
            except OSError as error:
                blame(error, work)
                raise
            with writing_to(self.root):
                meta = {**meta, "hash": file_hash(work / RESULT)}
                (work / META).write_text(json.dumps(meta, indent=1))
                (work / RESULT).chmod(0o444)  # it may be hard-linked into run folders
                self.folder(key).parent.mkdir(exist_ok=True)
                try:
                    work.rename(self.folder(key))
                except OSError:
                    if not self.verifies(key):  # another run was faster
                        raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(self.checkpoint(key).parent, ignore_errors=True)


@dataclass(frozen=True)
class Entry:
    """A result in the store.

    Attributes:
        pipeline, step, plugin: that made it.
        size: in bytes.
        made, used: seconds since 1970, when it was written and when a run last used it.
    """

    key: str
    pipeline: str
    step: str
    plugin: str
    size: int
    made: float
    used: float


def _read_meta(path: Path) -> dict[str, Any] | None:
    """A file of metadata, or None if it is damaged or not there."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return meta if isinstance(meta, dict) else None


def _remove(path: Path) -> None:
    """Removes a folder, or what stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def reserve(folder: Path, size: int = 0) -> None:
    """Checks that there is room for an HDF5 file: HDF5 crashes the process on a full disk.

    Raises:
        OSError: if the disk, or a quota, has no room for `size` bytes and some more.
    """
    size += MARGIN
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
    elif shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def blame(error: OSError, folder: Path) -> None:
    """Returns if an error is not about a folder that was written to, but about a plugin's files.

    Raises:
        UserError: if the folder is full or cannot be written to.
    """
    with writing_to(folder):
        if _is_full(error):
            raise error
        reserve(folder)


def _is_full(error: OSError) -> bool:
    # HDF5 reports a refused write as an OSError whose errno may stand in its text alone.
    return error.errno in _FULL or any(f"errno = {code}," in str(error) for code in _FULL)


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Turns a write error of the operating system into a UserError."""
    try:
        yield
    except OSError as error:
        text = str(error)
        if _is_full(error):
            raise StoreError(
                f"{place}: the disk is full; free some space and run again, which goes on from here"
            ) from error
        if isinstance(error, (PermissionError, FileExistsError, NotADirectoryError)) or (
            error.errno in _REFUSED
        ):
            raise StoreError(
                f"{place}: cannot be written to ({error.strerror or text}); "
                "choose another folder with --store or --out"
            ) from error
        raise
