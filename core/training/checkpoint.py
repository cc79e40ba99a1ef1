"""Checkpoints: files with the state of an unfinished fit and a digest that identifies the fit."""

import logging
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("retinakit")


def read(path: Path | None, digest: str, device: torch.device) -> dict[str, Any] | None:
    """Reads the checkpoint of a fit.

    A file that cannot be read, or that belongs to another fit, is renamed to `*.unfit`.

    Returns:
        The content, or None if there is no checkpoint of this fit.
    """
    if path is None or not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        reason = "" if saved["digest"] == digest else "it belongs to another fit"
    except Exception as error:  # torch may raise anything for another kind of file
        reason = f"it cannot be read: {type(error).__name__}"
    if not reason:
        return saved
    set_aside(path, reason)
    return None


def set_aside(path: Path, reason: str) -> None:
    """Renames a checkpoint that cannot be used, with a warning."""
    aside = path.with_name(path.name + ".unfit")
    logger.warning(
        "%s cannot be used (%s) and is renamed to %s; the fit starts from the beginning",
        path,
        reason,
        aside.name,
    )
    path.replace(aside)


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint. If this fails, there is a warning and the fit continues."""
    unfinished = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save(content, file)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # the latter by the writer of torch
        logger.warning("the checkpoint could not be written (%s); the fit continues", error)
        unfinished.unlink(missing_ok=True)
