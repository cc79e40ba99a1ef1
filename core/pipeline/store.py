"""The content-addressed store of results, which any number of runs may share.

A result is a folder named by its key, with `result.nc` and `meta.json`. It is written under a
temporary name and renamed when it is whole, so that a reader never sees a part of one.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from retinakit.contracts.errors import UserError

RESULT, META = "result.nc", "meta.json"
MARGIN = 16 * 2**20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

logger = logging.getLogger("retinakit")


class Store:
    """Results by key, in a folder.

    Args:
        create: make the folder and see that it can be written to.

    Raises:
        UserError: if it cannot.
    """

    def __init__(self, root: Path, *, create: bool = True):
        self.root = root
        if not create:
            return
        with writing_to(root):
            for folder in (root, root / "locks", root / "unfinished"):
                folder.mkdir(parents=True, exist_ok=True)
            probe = root / "unfinished" / uuid.uuid4().hex
            probe.touch()
            probe.unlink()

    def folder(self, key: str) -> Path:
        """Where a result is, or would be."""
        return self.root / key[:2] / key

    def path(self, key: str) -> Path:
        """The file of a result."""
        return self.folder(key) / RESULT

    def meta(self, key: str) -> dict[str, Any] | None:
        """What is known of a result, or None if it is not there."""
        try:
            meta: dict[str, Any] = json.loads((self.folder(key) / META).read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        return meta

    def verifies(self, key: str) -> bool:
        """Whether a result is there and is what was written."""
        meta, path = self.meta(key), self.path(key)
        return meta is not None and path.exists() and meta.get("sha256") == _digest(path)

    def has(self, key: str) -> bool:
        """Whether a result is there and verifies; one that does not is removed, with a warning."""
        folder = self.folder(key)
        if not folder.exists():
            return False
        if self.verifies(key):
            return True
        logger.warning("the stored result %s does not verify; it is computed again", folder)
        shutil.rmtree(folder, ignore_errors=True)
        return False

    def forget(self, key: str) -> None:
        """Removes a result and the state of an unfinished fit, if they are there."""
        shutil.rmtree(self.folder(key), ignore_errors=True)
        shutil.rmtree(self.checkpoint(key).parent, ignore_errors=True)

    def lock(self, key: str) -> FileLock:
        """Held while a result is made, so that two runs do not make it twice."""
        return FileLock(self.root / "locks" / f"{key}.lock")

    def checkpoint(self, key: str) -> Path:
        """Where an unfinished fit keeps its state."""
        return self.root / "unfinished" / key / "checkpoint"

    def finished(self, extended: str) -> int | None:
        """How far the longest finished fit is whose state is kept, such as its number of steps.

        Args:
            extended: a hash of all that fits of several lengths have in common.
        """
        folders = (self.root / "finished" / extended).glob("*")
        return max(
            (int(folder.name) for folder in folders if folder.name.isdecimal()), default=None
        )

    def extend(self, key: str, extended: str, amount: int) -> bool:
        """Lets an unfinished fit go on from a finished one; returns whether it can."""
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
            state: whether there is one to go on from; else only the length is kept.
        """
        folder = self.root / "finished" / extended
        with writing_to(self.root), self.lock(extended):
            longest = self.finished(extended)
            if longest is not None and longest >= amount:
                return
            shutil.rmtree(folder, ignore_errors=True)
            (folder / str(amount)).mkdir(parents=True)
            if state:
                shutil.copytree(
                    self.checkpoint(key).parent,
                    folder / str(amount),
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.unfit"),
                )

    def write(
        self, key: str, write: Callable[[Path], None], meta: dict[str, Any], size: int = 0
    ) -> None:
        """Stores a result. Whoever calls this holds the lock of its key.

        Args:
            write: writes the result to the path it is given.
            meta: whatever JSON holds.
            size: bytes that the result may take, if it is large.

        Raises:
            UserError: if there is no room, or no permission; nothing is kept then.
        """
        for left in (self.root / "unfinished").glob(f"{key}-*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        work = self.root / "unfinished" / f"{key}-{uuid.uuid4().hex}"
        try:
            with writing_to(self.root):
                work.mkdir(parents=True)
                reserve(work, size)
                write(work / RESULT)
                meta = {**meta, "sha256": _digest(work / RESULT)}
                (work / META).write_text(json.dumps(meta, indent=1))
                (work / RESULT).chmod(0o444)  # it may be hard-linked into run folders
                self.folder(key).parent.mkdir(exist_ok=True)
                work.rename(self.folder(key))
        finally:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(self.checkpoint(key).parent, ignore_errors=True)


def reserve(folder: Path, size: int = 0) -> None:
    """Sees that there is room for an HDF5 file: HDF5 crashes the process where there is none.

    Raises:
        OSError: if the disk, or a quota, has no room for `size` bytes and some more.
    """
    size += MARGIN
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
    elif shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Turns an operating system's refusal to write into a sentence."""
    try:
        yield
    except OSError as error:
        # HDF5 reports a refused write as an OSError whose errno may stand in its text alone.
        text = str(error)
        if error.errno in _FULL or any(f"errno = {code}," in text for code in _FULL):
            raise UserError(
                f"{place}: the disk is full; free some space and run again, which goes on from here"
            ) from error
        if isinstance(error, (PermissionError, FileExistsError, NotADirectoryError)) or (
            error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)
        ):
            raise UserError(
                f"{place}: cannot be written to ({error.strerror or text}); "
                "choose another folder with --store or --out"
            ) from error
        raise


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
