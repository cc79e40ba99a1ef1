"""Mutated pipelines and recordings: a sentence or a result, never a traceback or a long wait."""

import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from retinakit.contracts import UserError
from retinakit_plugins.analyses.sta import STA
from retinakit_plugins.datasets.hdf5 import HDF5

SECONDS = 10
PIPELINE = """
name: cells
seed: 3
datasets:
  cell: {plugin: subunit_rgc, with: &small {frames: 400, threshold: 0.0, cells: 2}}
  one: {plugin: fraction, data: cell, with: {fraction: 0.5}}
  mine: {plugin: hdf5, with: {path: mine.h5, response: spikes, cells: [0, 1], frame_rate: 60}}
models:
  ln: {plugin: ln, data: cell, with: {lags: 5, rank: 1}, sweep: {seed: [0, 1], side: [4, 8]}}
  cnn: &cnn {plugin: cnn, data: one, seed: 1, with: {filters: 2, kernel: 3}}
  other: {<<: *cnn, data: mine}
analyses:
  sta: {plugin: sta, data: [cell, mine], with: {lags: 20}}
  score: {plugin: score, models: [ln, cnn]}
profiles:
  quick: {datasets.cell.with: *small, models.ln.with.side: 2}
"""
VALUES = ["null", "~", "true", "-1", "0", "0.5", ".nan", "-.inf", "1e999", "9" * 30, "0x", "''"]
VALUES += ["{}", "[]", "[1, [2]]", "{a: 1}", "2001-99-99", "!!int x", "!!python/none 1", "&a [*a]"]
VALUES += ["*small", "{<<: [*cnn, *small]}", '"\\ud800"', '"\\UFFFFFFFF"', "x" * 300, "[" * 60]
VALUES += ["/dev/null", "/dev/zero", "~nobody/x", ".", "é" * 99, "cell.with"]
PIECES = [*"{}[]:,-*&!|>'\"%@`#?~\n\t \0\x7fé\ud7ff", "<<", ": ", "- ", "? ", "\n  ", "<<: *cnn"]
PIECES += ["%YAML 9.9\n---\n", "---", "...", *VALUES]


def mutated_text(text: str, draw: random.Random) -> str:
    """A pipeline with a few words exchanged, or pieces left out, doubled or put in."""
    for _ in range(draw.choice([1, 1, 2, 4])):
        words = list(re.finditer(r"[\w.*&<]+", text))
        if words and draw.random() < 0.7:
            word = draw.choice(words)
            new = draw.choice([draw.choice(VALUES), draw.choice(words)[0]])
            text = text[: word.start()] + new + text[word.end() :]
        else:
            start = draw.randrange(len(text) + 1)
            end = min(len(text), start + draw.choice([0, 1, 1, 3, 10, 40]))
            new = draw.choice([draw.choice(PIECES), "", 2 * text[start:end]])
            text = text[:start] + new + text[end:]
    return text


def ended_well(ended: Any, codes: set[int], seconds: float) -> bool:
    """Whether a command said what is wrong in a sentence, or went through."""
    lines = ended.err.splitlines()
    said = ended.code != 2 or sum(line.startswith("retina-run: ") for line in lines) == 1
    return ended.code in codes and said and "Traceback" not in ended.err and seconds < SECONDS


def test_mutated_pipelines_are_checked_without_a_traceback(
    command: Callable[..., Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write_recording(tmp_path / "mine.h5")
    draw = random.Random(0)
    for index in range(request.config.getoption("--fuzz-yaml")):
        text = mutated_text(PIPELINE, draw)
        (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
        begun = time.monotonic()
        ended = command("check", "p.yaml", "--no-plugins")
        assert ended_well(ended, {0, 2}, time.monotonic() - begun), (index, text, ended)


def write_recording(path: Path, draw: random.Random | None = None) -> None:
    """A small recording, in one of the forms that HDF5 has for an array."""
    numbers = np.random.default_rng(0)
    layout = draw.choice([{}, {"chunks": True}, {"chunks": True, "compression": 4}]) if draw else {}
    with h5py.File(path, "w", libver=draw.choice(["earliest", "latest"]) if draw else None) as file:
        movie = numbers.choice(np.array([-1, 1], np.int8), (400, 4, 4))
        file.create_dataset("stimulus", data=movie, **layout)
        file.create_dataset("group/spikes", data=numbers.poisson(1.0, (400, 2)), **layout)
        file["spikes"] = h5py.SoftLink("/group/spikes")


def mutated_bytes(content: bytes, draw: random.Random) -> bytes:
    """A file with some bytes changed, mostly where its structure is described, or cut off."""
    changed = bytearray(content)
    structure = [i for i in range(0, len(changed) - 8) if any(changed[i : i + 8])]
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        at = draw.choice(structure) if draw.random() < 0.5 else draw.randrange(len(changed))
        value = draw.choice([0, 1, 0xFF, 0x7F, draw.randrange(256)])
        size = draw.choice([1, 1, 1, 2, 4, 8])
        changed[at : at + size] = bytes([value]) * min(size, len(changed) - at)
    return bytes(changed[: draw.randrange(len(changed))] if draw.random() < 0.05 else changed)


def test_mutated_recordings_are_read_without_a_traceback(
    command: Callable[..., Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    read = "datasets: {mine: {plugin: hdf5, with: {path: mine.h5, response: spikes}}}\n"
    analysed = "analyses: {sta: {plugin: sta, data: mine, with: {lags: 3}}}\n"
    draw = random.Random(1)
    for index in range(request.config.getoption("--fuzz-hdf5")):
        write_recording(tmp_path / "mine.h5", draw)
        content = mutated_bytes((tmp_path / "mine.h5").read_bytes(), draw)
        (tmp_path / "mine.h5").write_bytes(content)
        (tmp_path / "p.yaml").write_text(read + analysed * (index % 4 == 0))  # figures take long
        begun = time.monotonic()
        ended = command("p.yaml", "--no-plugins", "--out", f"runs{index}")
        assert ended_well(ended, {0, 1, 2}, time.monotonic() - begun), (index, ended)
        if ended.code == 0 and index % 4:
            with suppress(UserError):
                recording = HDF5({"path": tmp_path / "mine.h5", "response": "spikes"}).load()
                STA({"lags": 3}).run(recording)
