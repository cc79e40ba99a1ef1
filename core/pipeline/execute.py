"""Runs the tasks of a graph: here one after another, or on dask."""

import gc
import inspect
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import xarray as xr
from threadpoolctl import threadpool_limits

from retinakit.contracts.analysis import FittedModel
from retinakit.contracts.errors import UserError, describe
from retinakit.contracts.model import Model
from retinakit.contracts.netcdf import read_netcdf, write_netcdf
from retinakit.contracts.progress import Progress, silent
from retinakit.contracts.recording import validate
from retinakit.pipeline.combine import at_point, combine
from retinakit.pipeline.document import SECTIONS
from retinakit.pipeline.graph import Coords, Graph, Task
from retinakit.pipeline.store import Store, StoreError
from retinakit.registry.find import Registry

RECORDINGS_AT_HAND = 2
UNCOLLECTED = 256 * 2**20
"""Bytes of recordings that may wait for Python's garbage collection."""

logger = logging.getLogger("retinakit")


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    `status`: "done", "stored" (it was there already), "failed" (the plugin raised), "invalid" (a
    mistake of the user's that was met in the run), "skipped" (an input is missing), or "stopped"
    (the store cannot be written to, which ends the run). `message` explains the last four, and says
    what a finished fit continued from, if anything.
    """

    key: str
    label: str
    status: str
    seconds: float = 0.0
    message: str = ""
    traceback: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.status in ("done", "stored")


class Watcher(Protocol):
    """Receives the events of a run."""

    def started(self, task: Task) -> None: ...
    def progressed(self, key: str, done: float, total: float, message: str) -> None: ...
    def ended(self, task: Task, outcome: Outcome) -> None: ...


class Workbench:
    """Makes and reads the results of tasks in one process.

    Args:
        tasks: by key, the tasks to run and everything they depend on.
        threads: of the arithmetic in a task. Sums over another number of threads differ in their
            last bits, so it does not depend on the number of processes.
    """

    def __init__(
        self, store: Store, tasks: Mapping[str, Task], registry: Registry, threads: int = 1
    ):
        self.store, self.tasks, self.registry = store, dict(tasks), registry
        self.threads = threads
        self._at_hand: OrderedDict[str, xr.DataTree] = OrderedDict()
        self._uncollected = 0

    def run(self, task: Task, progress: Progress = silent) -> Outcome:
        """Makes the result of a task, unless the store has it. Raises only KeyboardInterrupt."""
        begun = time.monotonic()

        def ended(status: str, message: str = "", trace: str = "") -> Outcome:
            seconds = time.monotonic() - begun
            return Outcome(task.key, task.label, status, seconds, message, trace)

        make = {"dataset": self._load, "model": self._fit, "analysis": self._analyse}[task.kind]
        try:
            if self.store.has(task.key):
                return Outcome(task.key, task.label, "stored")
            with self.store.making(task.key):
                if self.store.has(task.key):
                    return Outcome(task.key, task.label, "stored")
                beginning = self._goes_on(task)
                with _limited_threads(self.threads):
                    make(task, progress)
            return ended("done", beginning)
        except UserError as error:
            status = "stopped" if isinstance(error, StoreError) else "invalid"
            section = SECTIONS[task.kind]
            return ended(status, f"{task.place}: {section}.{task.label}: {error}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything
            return ended("failed", describe(error), traceback.format_exc())

    def recording(self, key: str) -> xr.DataTree:
        """The recording of a dataset task: cached, from the store, or made again if volatile."""
        if key not in self._at_hand:
            task = self.tasks[key]
            self._keep(
                key,
                self._make_recording(task) if task.volatile else read_netcdf(self.store.path(key)),
            )
        self._at_hand.move_to_end(key)
        return self._at_hand[key].copy()

    def _keep(self, key: str, recording: xr.DataTree) -> None:
        self._at_hand[key] = recording
        while len(self._at_hand) > RECORDINGS_AT_HAND:
            self._uncollected += _bytes(self._at_hand.popitem(last=False)[1])
        if self._uncollected > UNCOLLECTED:
            gc.collect()  # parents and children of a DataTree hold each other
            self._uncollected = 0

    def model(self, key: str, recording: str = "") -> Model:
        """The fitted model of a model task, for one of its recordings if it has several."""
        model: Model = self._plugin_class(self.tasks[key]).load(self.store.path(key))
        return model.of(recording) if recording else model

    def _plugin_class(self, task: Task) -> Any:
        return self.registry.load(task.kind, task.plugin)

    def _plugin(self, task: Task) -> Any:
        return self._plugin_class(task)(json.loads(task.config), seed=task.seed)

    def _make_recording(self, task: Task) -> xr.DataTree:
        inputs = {role: self.recording(keys[0]) for role, keys in task.inputs.items()}
        recording: xr.DataTree = _call(self._plugin(task).load, **inputs)
        validate(recording)
        return recording

    def _load(self, task: Task, progress: Progress) -> None:
        recording = self._make_recording(task)
        self._keep(task.key, recording)
        stored = without_stimulus(recording) if task.volatile else recording
        self._write(task, lambda path: write_netcdf(stored, path), _bytes(stored))

    def _fit(self, task: Task, progress: Progress) -> None:
        model: Any = self._plugin(task)
        recording: Any = self.recording(task.inputs["data"][0])
        if "data" in task.members:
            names = [name for name, _ in task.members["data"]]
            keys = task.inputs["data"]
            recording = {n: self.recording(key) for n, key in zip(names, keys, strict=True)}
        for one in [recording] if "data" not in task.members else recording.values():
            model.check_field(one)
        checkpoint = self.store.checkpoint(task.key)
        amount = getattr(model.config, model.extends) if task.extended else 0
        try:
            curves = _call(model.fit, recording, checkpoint=checkpoint, progress=progress)
        except UserError:  # another attempt would end in the same way
            self.store.forget(task.key)
            raise

        _check_returned(curves, task, "fit")

        def write(path: Path) -> None:
            model.save(path, curves)
            with h5py.File(path, "a") as file:
                file.attrs["retinakit_plugin"] = task.plugin

        if task.extended:
            self.store.keep_finished(task.key, task.extended, amount, state=not model.begins_anew())
        self._write(task, write)

    def _goes_on(self, task: Task) -> str:
        """Prepares the state from which a fit continues, and describes it; "" if there is none."""
        if any(self.store.checkpoint(task.key).parent.glob("*")):
            return "continued from a checkpoint"
        finished = self.store.finished(task.extended) if task.extended else None
        if finished is None:
            return ""
        model: Any = self._plugin(task)
        if finished == (amount := getattr(model.config, model.extends)):
            return ""
        if reason := model.begins_anew():
            return f"started from scratch, not from the fit of {finished} {model.extends}: {reason}"
        if finished > amount or not self.store.extend(task.key, task.extended, finished):
            return ""
        return f"continued from the fit of {finished} {model.extends}"

    def _analyse(self, task: Task, progress: Progress) -> None:
        analysis = self._plugin(task)
        arguments: dict[str, Any] = {}
        if "progress" in inspect.signature(analysis.run).parameters:
            arguments["progress"] = progress
        for role, keys in task.inputs.items():
            if role == "data":
                arguments[role] = self.recording(keys[0])
            elif role == "model":
                arguments[role] = self.model(keys[0], task.recording)
            elif role == "results":
                arguments[role] = self._results(keys)
            else:
                arguments[role] = [
                    self._member(key, step, coords)
                    for key, (step, coords) in zip(keys, task.members[role], strict=True)
                ]
        result: Any = _call(analysis.run, **arguments)
        _check_returned(result, task, "run")
        self._write(task, lambda path: write_netcdf(result, path), result.nbytes)

    def _member(self, key: str, step: str, coords: Coords) -> FittedModel:
        source = _Member(self, key, str(dict(coords).get("recording", "")))
        return FittedModel(step, dict(coords), source, dict(self.tasks[source.data_key].coords))

    def _results(self, keys: Sequence[str]) -> dict[str, xr.DataTree]:
        by_step: dict[str, list[Task]] = {}
        for key in keys:
            by_step.setdefault(self.tasks[key].step, []).append(self.tasks[key])
        return {step: combined_result(tasks, self.store) for step, tasks in by_step.items()}

    def _write(self, task: Task, write: Callable[[Path], None], size: int = 0) -> None:
        meta = {
            "pipeline": task.pipeline,
            "step": task.step,
            "label": task.label,
            "plugin": task.plugin,
            "config": json.loads(task.config),
            "seed": task.seed,
        }
        self.store.write(task.key, write, meta, size)


@dataclass(frozen=True)
class _Member:
    """Reads one of the inputs of an analysis of many, on demand."""

    bench: Workbench
    key: str
    name: str
    """Name of the recording, if the model has several."""

    def model(self) -> Model:
        return self.bench.model(self.key, self.name)

    @property
    def data_key(self) -> str:
        task = self.bench.tasks[self.key]
        if task.kind != "model":
            return self.key
        names = [name for name, _ in task.members.get("data", ())]
        return task.inputs["data"][names.index(self.name) if self.name else 0]

    def recording(self) -> xr.DataTree:
        return self.bench.recording(self.data_key)


def combined_result(tasks: Sequence[Task], store: Store) -> xr.DataTree:
    """The result of an analysis step as one DataTree, with a group for each step it analyses."""
    by_about: dict[str, list[tuple[Coords, xr.Dataset]]] = {}
    for task in tasks:
        result = read_netcdf(store.path(task.key), load=True).to_dataset()
        by_about.setdefault(task.about, []).append((task.coords, at_point(task, result)))
    return xr.DataTree.from_dict(
        {f"/{about}": combine(points) for about, points in by_about.items()}
    )


def without_stimulus(recording: xr.DataTree) -> xr.DataTree:
    """The part of a volatile recording that the store keeps."""
    kept: xr.DataTree = recording.map_over_datasets(
        lambda split: split.drop_vars("stimulus", errors="ignore")
    )
    kept.attrs = {**recording.attrs, "stimulus": "left out; made again from its source when needed"}
    return kept


def _call(method: Callable[..., Any], *args: Any, **arguments: Any) -> Any:
    """Calls a method of a plugin, and restores the working folder if the plugin changes it."""
    with chdir("."):
        return method(*args, **arguments)


def _check_returned(returned: Any, task: Task, method: str) -> None:
    if not isinstance(returned, xr.Dataset):
        raise UserError(
            f"{method} of '{task.plugin}' returned a {type(returned).__name__}; it must return an "
            "xarray.Dataset"
        )


def _bytes(recording: xr.DataTree) -> int:
    return sum(v.nbytes for node in recording.subtree for v in node.variables.values())


def default_threads() -> int:
    """Threads of a task: OMP_NUM_THREADS, or a quarter of the processors."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else max(1, (os.cpu_count() or 1) // 4)


@contextmanager
def _limited_threads(threads: int) -> Iterator[None]:
    """Limits the threads of the arithmetic, including that of torch.

    torch is imported for this: imported later, it would take the number of its process, which is
    another in dask's workers.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


def run_here(
    graph: Graph,
    store: Store,
    registry: Registry,
    watcher: Watcher,
    threads: int = 1,
    known: Mapping[str, Outcome] | None = None,
) -> dict[str, Outcome]:
    """Runs everything in this process. A failure stops only the tasks that depend on it.

    Args:
        known: by key, the outcomes of tasks that were run before.
    """
    bench = Workbench(store, graph.tasks, registry, threads)
    outcomes = dict(known or {})
    for task in graph.in_order():
        if task.key in outcomes:
            continue
        outcome = _missing_input(task, [outcomes[key] for key in task.dependencies])
        if outcome is None:
            watcher.started(task)

            def progress(done: float, total: float, message: str = "", key: str = task.key) -> None:
                watcher.progressed(key, done, total, message)

            outcome = bench.run(task, progress)
        if outcome.status == "stopped":
            raise StoreError(outcome.message)
        outcomes[task.key] = outcome
        watcher.ended(task, outcome)
    return outcomes


def _missing_input(task: Task, inputs: Sequence[Outcome]) -> Outcome | None:
    lost = [outcome.label for outcome in inputs if not outcome.ok]
    if not lost:
        return None
    return Outcome(task.key, task.label, "skipped", message=f"it needs {', '.join(lost)}")


_BENCHES: dict[Path, Workbench] = {}


def _run_remotely(
    key: str,
    tasks: dict[str, Task],
    root: Path,
    builtin_only: bool,
    threads: int,
    *inputs: Outcome,
) -> Outcome:
    """Runs a task in a worker process, which caches its recordings for the next task."""
    from distributed import get_worker

    outcome = _missing_input(tasks[key], inputs)
    if outcome is not None:
        return outcome
    bench = _BENCHES.setdefault(
        root, Workbench(Store(root), {}, Registry(builtin_only=builtin_only), threads)
    )
    bench.tasks |= tasks
    worker, last = get_worker(), 0.0
    worker.log_event("retinakit", {"key": key, "started": True})

    def progress(done: float, total: float, message: str = "") -> None:
        nonlocal last
        if time.monotonic() - last > 0.5 or done >= total:
            last = time.monotonic()
            event = {"key": key, "done": float(done), "total": float(total), "message": message}
            worker.log_event("retinakit", event)

    return bench.run(tasks[key], progress)


def run_on_dask(
    graph: Graph,
    store: Store,
    registry: Registry,
    watcher: Watcher,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    threads: int = 1,
    known: Mapping[str, Outcome] | None = None,
) -> dict[str, Outcome]:
    """Runs independent tasks in parallel on dask.distributed.

    Args:
        workers: start this many processes here, or
        scheduler: use the cluster at this address; its workers must see the same store.
        known: by key, the outcomes of tasks that were run before.

    Raises:
        UserError: if dask is not installed or the scheduler does not answer.
    """
    try:
        import dask
        from distributed import Client, LocalCluster, as_completed
    except ImportError:
        raise UserError(
            "running in parallel needs dask; install retinakit[distributed], or leave out "
            "--workers and --scheduler"
        ) from None
    run = uuid.uuid4().hex
    outcomes = dict(known or {})
    with dask.config.set({"distributed.worker.daemon": False, "distributed.admin.log-length": 0}):
        cluster = None
        try:
            if scheduler is None:
                with _ignored(signal.SIGINT):  # Ctrl-C ends this process, which ends the workers
                    cluster = LocalCluster(
                        n_workers=workers,
                        threads_per_worker=1,
                        processes=True,
                        memory_limit=0,
                        host="127.0.0.1",
                        dashboard_address=None,
                        silence_logs=logging.CRITICAL,
                    )
            client = Client(cluster if cluster is not None else scheduler, timeout="10s")
        except (OSError, TimeoutError) as error:
            raise UserError(f"the dask scheduler {scheduler} does not answer ({error})") from None
        try:

            def watch(event: tuple[float, dict[str, Any]]) -> None:
                news = event[1]
                if "started" in news:
                    watcher.started(graph.tasks[news["key"]])
                else:
                    watcher.progressed(news["key"], news["done"], news["total"], news["message"])

            client.subscribe_topic("retinakit", watch)
            if cluster is not None:
                client.run(_end_quietly)
            futures: dict[str, Any] = {}
            for task in graph.in_order():
                if task.key in outcomes:
                    continue
                futures[task.key] = client.submit(
                    _run_remotely,
                    task.key,
                    _ancestry(graph, task),
                    store.root.resolve(),
                    registry.builtin_only,
                    threads,
                    *(outcomes.get(key) or futures[key] for key in task.dependencies),
                    key=f"{task.label}-{run}-{task.key}",
                    pure=False,
                    retries=0,
                )
            by_future = {future.key: key for key, future in futures.items()}
            for future in as_completed(list(futures.values()), raise_errors=False):
                key = by_future[future.key]
                if future.status == "finished":
                    outcome = future.result()
                else:
                    reason = future.exception() if future.status == "error" else future.status
                    outcome = Outcome(
                        key,
                        graph.tasks[key].label,
                        "failed",
                        message=f"the worker was lost ({reason})",
                    )
                if outcome.ok and not store.path(key).exists():
                    raise UserError(
                        f"the workers of {scheduler} do not write to {store.root}; choose a folder "
                        "that they see too with --store"
                    )
                if outcome.status == "stopped":
                    raise StoreError(outcome.message)
                outcomes[key] = outcome
                watcher.ended(graph.tasks[key], outcome)
        finally:
            client.close()
            if cluster is not None:
                cluster.close()
    return outcomes


@contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    """Makes the processes that are started here ignore a signal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def _end_quietly() -> None:
    """Silences the errors of destructors in workers that are ended together with their run."""
    sys.unraisablehook = _no_complaint


def _no_complaint(unraisable: object) -> None:
    """Replaces `sys.unraisablehook`."""


def _ancestry(graph: Graph, task: Task) -> dict[str, Task]:
    found = {task.key: task}
    for key in task.dependencies:
        found |= _ancestry(graph, graph.tasks[key])
    return found
