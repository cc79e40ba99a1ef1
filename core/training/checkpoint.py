"""Checkpoints: the state of an unfinished fit in a file, which says what fit it belongs to."""

import logging
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("retinakit")


def read(path: Path | None, digest: str, device: torch.device) -> dict[str, Any] | None:
    """A checkpoint, or None where there is none of this fit.

    A file that cannot be read, or that belongs to another fit, is renamed to `*.unfit`.
    """
    if path is None or not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        reason = "" if saved["digest"] == digest else "it belongs to another fit"
    except Exception as error:  # whatever torch raises for a file that is none of its own
        reason = f"it cannot be read: {type(error).__name__}"
    if not reason:
        return saved
    set_aside(path, reason)
    return None


def set_aside(path: Path, reason: str) -> None:
    """Renames a checkpoint that does not fit, with a warning."""
    aside = path.with_name(path.name + ".unfit")
    logger.warning("%s is set aside as %s (%s); the fit begins anew", path, aside.name, reason)
    path.replace(aside)


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint; where that fails, the fit goes on without, with a warning."""
    unfinished = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save(content, file)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
        logger.warning("no checkpoint could be written (%s); the fit goes on without", error)
        unfinished.unlink(missing_ok=True)
