"""The command `retina-run`."""

import io
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from retinakit.contracts.errors import UserError

app = App(
    name="retina-run",
    help="Runs a pipeline of datasets, models and analyses, and writes figures and a report.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # main reports the interruption and sets the exit code
)

NoPlugins = Annotated[
    bool, Parameter(name="--no-plugins", negative="", help="Use the built-in plugins only.")
]
Pipeline = Annotated[Path, Parameter(help="The pipeline file (YAML).")]
Profile = Annotated[str | None, Parameter(help="A profile of the pipeline file, such as quick.")]
Flag = Parameter(negative="")


@app.default
def run(
    pipeline: Pipeline,
    /,
    *,
    profile: Profile = None,
    out: Annotated[Path, Parameter(help="Folder in which run folders are written.")] = Path("runs"),
    store: Annotated[
        Path | None,
        Parameter(help="Folder of stored results; by default $RETINAKIT_STORE, or OUT/store."),
    ] = None,
    workers: Annotated[
        int, Parameter(help="Number of processes that run independent steps in parallel.")
    ] = 1,
    scheduler: Annotated[
        str | None,
        Parameter(help="Address of a dask scheduler whose workers can access the store."),
    ] = None,
    threads: Annotated[
        int | None,
        Parameter(
            help="Number of threads of each step; by default OMP_NUM_THREADS, or a quarter of the "
            "processors. Results for different numbers differ by rounding errors."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            negative="",
            help="Sets a value of the pipeline, such as models.cnn.with.filters=8.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        Flag,
        Parameter(help="List the steps and whether their results are stored, and run nothing."),
    ] = False,
    force: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            help="Name of a step to compute again, with all steps that depend on it.",
        ),
    ] = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Runs a pipeline and writes its report."""
    if workers < 1:
        raise UserError(f"--workers must be 1 or more (got {workers})")
    if threads is not None and threads < 1:
        raise UserError(f"--threads must be 1 or more (got {threads})")
    graph, registry, searches = _build(pipeline, profile, no_plugins, set_ or [])
    from retinakit.pipeline.store import Store

    where = store or Path(os.environ.get("RETINAKIT_STORE") or out / "store")
    if dry_run:
        return _show_graph(graph, searches, where)
    opened = Store(where)
    if force and searches:
        _forget(searches.go_on(opened), opened, force)
        graph, registry, searches = _build(pipeline, profile, no_plugins, set_ or [])
    _forget(graph, opened, force or [])
    from retinakit.pipeline.run import run_pipeline
    from retinakit.pipeline.watch import watcher

    expected = len(graph.tasks) + (searches.trials - searches.proposed if searches else 0)
    with watcher(expected) as watching:
        ended = run_pipeline(
            graph,
            store=opened,
            out=out,
            registry=registry,
            watcher=watching,
            workers=workers,
            scheduler=scheduler,
            threads=threads,
            searches=searches,
        )
    print(f"report: {ended.folder / 'report.html'}")
    if ended.mistake:
        raise UserError(ended.mistake)
    if ended.lost:
        print(
            f"{ended.lost} of {len(graph.tasks)} tasks have no result; the report gives the "
            "reasons",
            file=sys.stderr,
        )
    for warning in ended.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for problem in ended.problems:
        print(problem, file=sys.stderr)
    return 1 if ended.lost or ended.problems else 0


@app.command
def check(pipeline: Pipeline, /, *, profile: Profile = None, no_plugins: NoPlugins = False) -> int:
    """Checks the plugins, options, references and files of a pipeline, and runs nothing.

    Without --profile, the pipeline and all its profiles are checked.
    """
    from retinakit.pipeline.document import read_pipeline

    for name in [profile] if profile else [None, *read_pipeline(pipeline)[1].profiles]:
        graph, _, searches = _build(pipeline, name, no_plugins)
        tasks = f"{len(graph.tasks)} tasks"
        if searches:
            tasks += f" (with the first {searches.proposed} of {searches.trials} trials)"
        found = f"{len(graph.steps)} steps, {tasks}, no mistake found"
        print(f"{pipeline}{f' --profile {name}' if name else ''}: {found}")
    return 0


@app.command
def plugins(
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")] = False,
    check: Annotated[
        bool, Flag, Parameter(help="Also import every plugin, to find those that fail.")
    ] = False,
    no_plugins: NoPlugins = False,
) -> int:
    """Lists the installed plugins with their distribution, version and status."""
    from retinakit.registry.find import Registry, load_entry

    rows = []
    for entry in Registry(builtin_only=no_plugins).entries:
        status, reason = entry.status, entry.reason
        if check and entry.spec and status == "ok":
            try:
                load_entry(entry)
            except UserError as error:
                status, reason = "failed", str(error)
        rows.append(
            {
                "kind": entry.spec.kind if entry.spec else "",
                "name": entry.spec.name if entry.spec else "",
                "distribution": entry.distribution,
                "version": entry.version,
                "status": status,
                "reason": reason,
                "target": entry.spec.target if entry.spec else "",
                "summary": entry.spec.summary if entry.spec else "",
            }
        )
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "name", "distribution", "version", "status", "about", box=None)
    for row in rows:
        about = row["summary"] if row["status"] == "ok" else row["reason"]
        table.add_row(
            *(row[k] for k in ("kind", "name", "distribution", "version", "status")), about
        )
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)
    return 0


@app.command
def schema(*, no_plugins: NoPlugins = False) -> int:
    """Prints the JSON Schema of pipelines with the installed plugins, for use in editors."""
    from retinakit.pipeline.schema import pipeline_schema
    from retinakit.registry.find import Registry

    print(json.dumps(pipeline_schema(Registry(builtin_only=no_plugins)), indent=1))
    return 0


@app.command
def report(
    run: Annotated[Path, Parameter(help="The folder of a run.")],
    /,
    *,
    no_plugins: NoPlugins = False,
) -> int:
    """Draws the report of a run again from the files in its folder."""
    from retinakit.pipeline.store import writing_to
    from retinakit.registry.find import Registry
    from retinakit.report.page import write_report

    if not (run / "provenance.json").is_file():
        raise UserError(
            f"{run}: this is not the folder of a run, because it has no provenance.json"
        )
    with writing_to(run):
        written = write_report(run, Registry(builtin_only=no_plugins))
    print(f"report: {written.path}")
    for trouble in written.troubles:
        print(trouble, file=sys.stderr)
    return 1 if written.troubles else 0


@app.command
def store(
    folder: Annotated[
        Path | None,
        Parameter(help="Folder of the store; by default $RETINAKIT_STORE, or runs/store."),
    ] = None,
    /,
    *,
    clear_unused: Annotated[
        float | None,
        Parameter(help="Delete the results that no run has used in this number of days."),
    ] = None,
) -> int:
    """Lists stored results by pipeline and step with size and age, or deletes unused ones."""
    from retinakit.pipeline.store import Store
    from retinakit.pipeline.stored import listing

    where = folder or Path(os.environ.get("RETINAKIT_STORE") or "runs/store")
    if not where.is_dir():
        raise UserError(f"{where}: there is no store in this place; give the folder of the store")
    opened = Store(where, create=False)
    if clear_unused is not None:
        if not clear_unused >= 0:
            raise UserError(f"--clear-unused must be 0 or more days (got {clear_unused})")
        number, freed = opened.clear(clear_unused)
        print(f"{number} results deleted, {freed / 1e6:.1f} MB freed")
        return 0
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, markup=False)
    console.print(listing(opened.entries()))
    return 0


@app.command
def doctor() -> int:
    """Shows the versions, kernels, devices, plugins and data of this installation."""
    from retinakit.doctor import examine

    for name, finding in examine():
        print(f"{name:18} {finding}")
    return 0


def _build(
    path: Path, profile: str | None, no_plugins: bool, changes: list[str] | None = None
) -> tuple[Any, Any, Any]:
    """The graph, the registry, and the searches whose first trials are in the graph, or None."""
    from retinakit.pipeline.document import read_pipeline
    from retinakit.pipeline.graph import build
    from retinakit.registry.find import Registry

    source, document = read_pipeline(path, profile, changes or [])
    registry = Registry(builtin_only=no_plugins)
    if any(model.search for model in document.models.values()):
        from retinakit.pipeline.search import Searches

        searches = Searches(source, document, registry)
        return searches.graph(), registry, searches
    return build(source, document, registry), registry, None


def _show_graph(graph: Any, searches: Any, where: Path) -> int:
    from retinakit.pipeline.store import Store

    store = Store(where, create=False)
    if searches:
        graph = searches.go_on(store)
    for task in graph.in_order():
        checkpoint = any(store.checkpoint(task.key).parent.glob("*"))
        state = "stored" if store.verifies(task.key) else "to go on" if checkpoint else "to do"
        inputs = ", ".join(graph.tasks[key].label for key in task.dependencies)
        print(f"{state:8} {task.kind:8} {task.label}" + (f"  ← {inputs}" if inputs else ""))
    if searches:
        print(f"{searches.proposed} of {searches.trials} trials are proposed so far")
    return 0


def _forget(graph: Any, opened: Any, names: list[str]) -> None:
    """Removes the stored results of steps, and of all steps that depend on them."""
    from retinakit.contracts.errors import nearest

    steps = [step.name for step in graph.steps]
    for name in names:
        if name not in steps:
            raise UserError(f"--force {name}: there is no such step; {nearest(name, steps)}")
    for task in graph.following(names):
        opened.forget(task.key, task.extended)


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM was received. The argument is the exit code."""


def _stop(number: int, frame: Any) -> None:
    """Ends a run; a second Ctrl-C ends it without waiting for its workers."""
    then = signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN
    signal.signal(number, then)
    sys.unraisablehook = lambda unraisable: None  # destructors may fail in an interrupted run
    raise Stopped(128 + number)


def main() -> None:
    """Entry point. Exits 0 on success, 1 if a step failed, and 2 for a mistake of the user.

    A run that is interrupted by a signal exits with 128 + the number of the signal.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may not be valid text
        sys.stdout.reconfigure(errors="backslashreplace")
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.signal(n, _stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = app(
            sys.argv[1:], result_action="return_value", exit_on_error=False, print_error=False
        )
        sys.stdout.flush()
    except (UserError, CycloptsError) as error:
        print(f"retina-run: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as error:
        print("retina-run: interrupted; run it again to continue from here", file=sys.stderr)
        code = error.args[0] if isinstance(error, Stopped) else 130
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
