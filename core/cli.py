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
    help="Runs a pipeline: from a stimulus and spikes to models, scores, figures and a report.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # main says how a run ended
)

NoPlugins = Annotated[
    bool, Parameter(name="--no-plugins", negative="", help="Use only what retinakit brings.")
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
    out: Annotated[Path, Parameter(help="Folder of the runs.")] = Path("runs"),
    store: Annotated[
        Path | None,
        Parameter(help="Folder of stored results; by default $RETINAKIT_STORE, or OUT/store."),
    ] = None,
    workers: Annotated[int, Parameter(help="Processes to run independent steps in.")] = 1,
    scheduler: Annotated[
        str | None, Parameter(help="Address of a dask cluster that sees the same store.")
    ] = None,
    threads: Annotated[
        int | None,
        Parameter(
            help="Threads of the arithmetic in each step; by default OMP_NUM_THREADS, or a quarter "
            "of the processors. Results depend on it in their last bits."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            negative="",
            help="Another value in the pipeline, such as models.cnn.with.filters=8.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, Flag, Parameter(help="Only show the steps and what is stored.")
    ] = False,
    force: Annotated[
        list[str] | None,
        Parameter(negative="", help="A step to compute again, with all that follows from it."),
    ] = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Runs a pipeline and writes its report."""
    if workers < 1:
        raise UserError(f"--workers is a number of processes, at least 1 (got {workers})")
    if threads is not None and threads < 1:
        raise UserError(f"--threads is a number of threads, at least 1 (got {threads})")
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
            f"{ended.lost} of {len(graph.tasks)} tasks have no result; the report says why",
            file=sys.stderr,
        )
    for problem in ended.problems:
        print(problem, file=sys.stderr)
    return 1 if ended.lost or ended.problems else 0


@app.command
def check(pipeline: Pipeline, /, *, profile: Profile = None, no_plugins: NoPlugins = False) -> int:
    """Only checks a pipeline: plugins, options, references, files. Every profile, or one."""
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
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="As JSON.")] = False,
    check: Annotated[bool, Flag, Parameter(help="Import every plugin too.")] = False,
    no_plugins: NoPlugins = False,
) -> int:
    """Lists the plugins that are installed, with where they come from and how they are."""
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
    """Prints the JSON Schema of a pipeline with the installed plugins, for editors."""
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
    """Draws the report of a run again from what is on disk."""
    from retinakit.pipeline.store import writing_to
    from retinakit.registry.find import Registry
    from retinakit.report.page import write_report

    if not (run / "provenance.json").is_file():
        raise UserError(f"{run}: not the folder of a run (there is no provenance.json in it)")
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
        Parameter(help="The store; by default $RETINAKIT_STORE, or runs/store."),
    ] = None,
    /,
    *,
    clear_unused: Annotated[
        float | None,
        Parameter(help="Remove what no run of the last so many days used."),
    ] = None,
) -> int:
    """Lists what is stored by pipeline and step, with its size and age; or clears what is old."""
    from retinakit.pipeline.store import Store
    from retinakit.pipeline.stored import listing

    where = folder or Path(os.environ.get("RETINAKIT_STORE") or "runs/store")
    if not where.is_dir():
        raise UserError(f"{where}: there is no store; name its folder")
    opened = Store(where, create=False)
    if clear_unused is not None:
        if not clear_unused >= 0:
            raise UserError(f"--clear-unused is a number of days, 0 or more (got {clear_unused})")
        number, freed = opened.clear(clear_unused)
        print(f"{number} results removed, {freed / 1e6:.1f} MB freed")
        return 0
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, markup=False)
    console.print(listing(opened.entries()))
    return 0


@app.command
def doctor() -> int:
    """Says what this installation can do: versions, kernels, devices, plugins, data."""
    from retinakit.doctor import examine

    for name, finding in examine():
        print(f"{name:18} {finding}")
    return 0


def _build(
    path: Path, profile: str | None, no_plugins: bool, changes: list[str] | None = None
) -> tuple[Any, Any, Any]:
    """The graph, the registry, and the searches that the graph has the first points of, if any."""
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
    """Removes the results of steps, and of all that follows from them."""
    from retinakit.contracts.errors import nearest

    steps = [step.name for step in graph.steps]
    for name in names:
        if name not in steps:
            raise UserError(f"--force {name}: there is no such step; {nearest(name, steps)}")
    for task in graph.following(names):
        opened.forget(task.key, task.extended)


class Stopped(KeyboardInterrupt):
    """The process was asked to end by a signal."""


def _stop(number: int, frame: Any) -> None:
    """Ends a run; a second Ctrl-C ends it without waiting for its workers."""
    then = signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN
    signal.signal(number, then)
    sys.unraisablehook = lambda unraisable: None  # what is left of a run need not end in order
    raise Stopped(128 + number)


def main() -> None:
    """Entry point: exit code 0 if all went well, 1 if a step failed, 2 for a mistake."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what is no text
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
        print("retina-run: interrupted; run it again to go on from here", file=sys.stderr)
        code = error.args[0] if isinstance(error, Stopped) else 130
    except BrokenPipeError:  # who reads the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
