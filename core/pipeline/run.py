"""A run: it makes a folder with the report, the arrays and their provenance."""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xarray as xr
from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from retinakit.contracts.errors import UserError, describe
from retinakit.contracts.netcdf import read_netcdf, write_netcdf
from retinakit.pipeline.combine import at_point, combine, joined_key
from retinakit.pipeline.execute import (
    Outcome,
    Watcher,
    combined_result,
    default_threads,
    run_here,
    run_on_dask,
)
from retinakit.pipeline.graph import Graph, Step, Task
from retinakit.pipeline.search import Searches
from retinakit.pipeline.store import Store, StoreError, blame, reserve, writing_to
from retinakit.registry.find import Registry

logger = logging.getLogger("retinakit")
LIBRARIES = ("retinakit", "torch", "numpy", "scipy", "xarray", "h5py", "numba", "lightning-fabric")
ALIVE = ".alive"
"""A file in the unfinished folder of a run, on which the run holds a lock."""

BEGINNING = 60
"""Seconds within which a run has created that file."""

FOLDERS = {"dataset": "datasets", "model": "models", "analysis": "analyses"}


class Log:
    """Forwards the events of a run, and writes them to `log.jsonl`, one event a line."""

    def __init__(self, path: Path, watcher: Watcher):
        self.path = path
        self.file = path.open("a", encoding="utf-8")
        self.watcher = watcher

    def write(self, event: str, **details: Any) -> None:
        line = {"time": datetime.now().astimezone().isoformat(), "event": event, **details}
        with writing_to(self.path.parent):
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()

    def close(self) -> None:
        with suppress(OSError):  # what is left in the buffer of a full disk
            self.file.close()

    def started(self, task: Task) -> None:
        self.write("started", task=task.label, key=task.key)
        self.watcher.started(task)

    def progressed(self, key: str, done: float, total: float, message: str) -> None:
        self.watcher.progressed(key, done, total, message)

    def ended(self, task: Task, outcome: Outcome) -> None:
        self.write("ended", **{k: v for k, v in asdict(outcome).items() if v})
        self.watcher.ended(task, outcome)


@dataclass(frozen=True)
class Run:
    """How a run ended.

    Attributes:
        folder: of the run.
        outcomes: of its tasks.
        problems: sentences on results that could not be joined or drawn.
        warnings: sentences on results that are doubtful, such as those of a useless model.
    """

    folder: Path
    outcomes: list[Outcome]
    problems: list[str]
    warnings: list[str]

    @property
    def lost(self) -> int:
        """Tasks that failed or were skipped."""
        return sum(not outcome.ok for outcome in self.outcomes)

    @property
    def mistake(self) -> str:
        """The user's mistake because of which no task has a result, or ""."""
        if any(o.ok or o.status == "failed" for o in self.outcomes):
            return ""
        return next((o.message for o in self.outcomes if o.status == "invalid"), "")


def run_pipeline(
    graph: Graph,
    *,
    store: Store,
    out: Path,
    registry: Registry,
    watcher: Watcher,
    workers: int = 1,
    scheduler: str | None = None,
    threads: int | None = None,
    searches: Searches | None = None,
) -> Run:
    """Runs a pipeline and writes its folder.

    Args:
        out: the folder of runs; this one is `out/name/date-time`.
        workers: processes; 1 runs everything in this one.
        scheduler: the address of a dask cluster to run on instead.
        threads: of the arithmetic in a task; `default_threads` by default.
        searches: to run first; they make a larger graph of this one.

    Returns:
        The folder of the run, and how the run ended.

    Raises:
        UserError: if a folder cannot be written to, or the cluster does not serve.
    """
    started = datetime.now().astimezone()
    begun = time.monotonic()
    with writing_to(out):
        sweep_dead(out / graph.document.name)
        folder, partial = _new_folder(out / graph.document.name, started)
        alive = FileLock(partial / ALIVE)
        alive.acquire()
    log = None
    try:
        with writing_to(out):
            log = Log(partial / "log.jsonl", watcher)
        log.write("run", name=graph.document.name, tasks=len(graph.tasks))
        threads = threads or default_threads()

        def execute(part: Graph, known: Mapping[str, Outcome]) -> dict[str, Outcome]:
            if part.tasks.keys() <= known.keys():
                return dict(known)  # a search was all there was to do
            if workers > 1 or scheduler:
                return run_on_dask(
                    part,
                    store,
                    registry,
                    log,
                    workers=workers,
                    scheduler=scheduler,
                    threads=threads,
                    known=known,
                )
            return run_here(part, store, registry, log, threads, known)

        known: dict[str, Outcome] = {}
        ended_early: list[str] = []
        if searches is not None:
            graph, known, ended_early = searches.run(execute, store)
        outcomes = execute(graph, known)
        with writing_to(out):
            problems = write_folder(
                partial, graph, outcomes, store, started, time.monotonic() - begun
            )
            troubles, warnings = _report(partial, registry)
            problems += ended_early + troubles
            run = Run(folder, list(outcomes.values()), problems, warnings)
            log.write(
                "finished",
                seconds=time.monotonic() - begun,
                failed=run.lost,
                problems=problems,
                warnings=warnings,
            )
            log.close()
            (partial / ALIVE).unlink(missing_ok=True)
            partial.rename(folder)
    except BaseException:
        if log is not None:
            log.close()
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        alive.release()
    return run


def sweep_dead(parent: Path) -> None:
    """Removes the unfinished folders of killed runs, whose locks are free."""
    for partial in parent.glob("*.partial"):
        with suppress(OSError, Timeout):
            begins = time.time() - partial.stat().st_mtime < BEGINNING
            if begins and not (partial / ALIVE).exists():
                continue
            with FileLock(partial / ALIVE, timeout=0):
                shutil.rmtree(partial, ignore_errors=True)


def _report(folder: Path, registry: Registry) -> tuple[list[str], list[str]]:
    """Draws the report, and returns sentences on what could not be drawn, and the warnings.

    The arrays of the run are kept even if the report itself goes wrong.
    """
    from retinakit.report.page import write_report

    try:
        report = write_report(folder, registry)
        return report.troubles, report.warnings
    except Exception as error:
        if isinstance(error, OSError):
            blame(error, folder)
        reason = describe(error)
        return [f"the report could not be drawn ({reason}); `retina-run report` tries again"], []


def _new_folder(parent: Path, started: datetime) -> tuple[Path, Path]:
    """The final folder of a run, and the unfinished one, which belongs to this run alone."""
    parent.mkdir(parents=True, exist_ok=True)
    name = started.strftime("%Y-%m-%dT%H-%M-%S")
    while True:
        folder, partial = parent / name, parent / f"{name}.partial"
        with suppress(FileExistsError):
            partial.mkdir()
            if not folder.exists():
                return folder, partial
            partial.rmdir()
        name += "x"


def write_folder(
    folder: Path,
    graph: Graph,
    outcomes: Mapping[str, Outcome],
    store: Store,
    started: datetime,
    seconds: float,
) -> list[str]:
    """Writes the arrays of every step, `resolved.yaml` and `provenance.json`.

    Returns:
        Why results of a step could not be joined, for each such step; single results are stored.
    """
    steps = []
    for step in graph.steps:
        done = [task for task in step.tasks if outcomes[task.key].ok]
        files, problem = {}, ""
        if done:
            try:
                files = _write_step(folder, step, done, store)
            except Exception as error:  # what is joined is from plugins
                if isinstance(error, OSError):
                    blame(error, folder)
                problem = str(error) if isinstance(error, UserError) else describe(error)
                logger.warning("%s could not be written as one file: %s", step.name, problem)
        steps.append(_describe(step, outcomes, files, problem))
    provenance = {
        "name": graph.document.name,
        "description": graph.document.description,
        "started": started.isoformat(),
        "seconds": round(seconds, 2),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "git": _git_commit(),
        "seed": graph.document.seed,
        "steps": steps,
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1), encoding="utf-8")
    with (folder / "resolved.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(resolved(graph), file)
    return [f"{step['name']}: {step['problem']}" for step in steps if step["problem"]]


def _write_step(folder: Path, step: Step, done: list[Task], store: Store) -> dict[str, str]:
    """Writes the files of a step; returns the content of each by its path in the run's folder."""
    section = FOLDERS[step.kind]
    main = folder / section / f"{step.name}.nc"
    main.parent.mkdir(exist_ok=True)
    reserve(folder, sum(store.path(task.key).stat().st_size for task in done))
    files: dict[str, str] = {}
    if step.kind == "analysis":
        _write_joined(main, done, store, lambda: combined_result(done, store))
        return {f"{section}/{main.name}": "result"}
    for task in done:
        path = folder / task_file(step, task)
        path.parent.mkdir(exist_ok=True)
        _link(store.path(task.key), path)
        files[task_file(step, task)] = "recording" if step.kind == "dataset" else "model"
    if step.kind == "model" and len(step.tasks) > 1:
        _write_joined(main, done, store, lambda: _combined_fits(done, store))
        files = {f"{section}/{main.name}": "parameters and curves of all fits", **files}
    return files


def _combined_fits(tasks: Sequence[Task], store: Store) -> xr.DataTree:
    """Parameters and training curves of all fits of a step."""
    parts: dict[str, list[Any]] = {"parameters": [], "curves": []}
    for task in tasks:
        tree = read_netcdf(store.path(task.key), load=True)
        for group, points in parts.items():
            points.append((task.coords, at_point(task, tree[group].to_dataset())))
    combined = {group: combine(points) for group, points in parts.items()}
    return xr.DataTree.from_dict(combined)


def _write_joined(
    main: Path, tasks: Sequence[Task], store: Store, join: Callable[[], xr.DataTree]
) -> None:
    """Writes the joined results of a step, which the store keeps for the next run if they are many.

    If the store cannot be written to, they are only written to the folder of the run.
    """
    if len(tasks) == 1:
        write_netcdf(join(), main)
        return
    key = joined_key(tasks, [str((store.meta(task.key) or {}).get("hash")) for task in tasks])
    if not store.has(key):
        joined, task = join(), tasks[0]
        meta = {"pipeline": task.pipeline, "step": task.step, "plugin": f"{task.plugin} (joined)"}
        try:
            with store.making(key):
                store.write(key, lambda path: write_netcdf(joined, path), meta)
        except StoreError:
            write_netcdf(joined, main)
            return
    _link(store.path(key), main)


def task_file(step: Step, task: Task) -> str:
    """The file of one task of a step, relative to the folder of the run."""
    section = FOLDERS[step.kind]
    if len(step.tasks) == 1 or step.kind == "analysis":
        return f"{section}/{step.name}.nc"
    point = ",".join(f"{name}={value}" for name, value in task.coords)
    safe = "".join(c if c.isalnum() or c in "=,._-" else "-" for c in point)
    if safe != point or len(safe) > 100:  # the key keeps the names of two points apart
        safe = f"{safe[:100]}-{task.key[:8]}"
    return f"{section}/{step.name}/{safe}.nc"


def _link(source: Path, target: Path) -> None:
    """A hard link to a stored file, or a copy if the file system has no hard links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _describe(
    step: Step, outcomes: Mapping[str, Outcome], files: dict[str, str], problem: str
) -> dict[str, Any]:
    document = step.document
    references = {
        role: value
        for role in ("data", "models", "results")
        if (value := getattr(document, role, None))
    }
    tasks = []
    for task in step.tasks:
        outcome = outcomes[task.key]
        tasks.append(
            {
                "label": task.label,
                "key": task.key,
                "coords": dict(task.coords),
                "about": task.about,
                "seed": task.seed,
                "config": json.loads(task.config),
                "files": task.files,
                "result": task_file(step, task) if outcome.ok else None,
                "status": outcome.status,
                "seconds": round(outcome.seconds, 3),
                "message": outcome.message,
                "traceback": outcome.traceback,
            }
        )
    return {
        "name": step.name,
        "kind": step.kind,
        "plugin": step.entry.full_name,
        "version": step.entry.version,
        "summary": step.entry.spec.summary if step.entry.spec else "",
        "options": document.with_,
        "sweep": document.sweep,
        "references": references,
        "dims": list(step.dims),
        "files": files,
        "problem": problem,
        "tasks": tasks,
    }


def resolved(graph: Graph) -> dict[str, Any]:
    """The pipeline with every option written out. It gives the same results.

    The folder of the pipeline file is resolved into the paths.
    """
    sections: dict[str, Any] = {
        "name": graph.document.name,
        "description": graph.document.description,
        "seed": graph.document.seed,
    }
    for step in graph.steps:
        config = json.loads(step.tasks[0].config)
        document = step.document
        entry: dict[str, Any] = {"plugin": step.entry.full_name}
        for role in ("data", "models", "results"):
            if getattr(document, role, None):
                entry[role] = getattr(document, role)
        swept = document.swept if document.sweep else []
        entry["with"] = {k: v for k, v in config.items() if k not in swept}
        if document.seed is not None:
            entry["seed"] = document.seed
        if document.sweep:
            entry["sweep"] = document.sweep
        sections.setdefault(FOLDERS[step.kind], {})[step.name] = entry
    return sections


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    """The git commit of the working folder, if there is one, and whether files were changed."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" (changed)" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
