"""The command `retina-run`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from retinakit.contracts.errors import UserError

app = App(
    name="retina-run",
    help="Runs a pipeline: from a stimulus and spikes to models, scores, figures and a report.",
    help_format="plaintext",
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
    dry_run: Annotated[
        bool, Flag, Parameter(help="Only show the steps and what is stored.")
    ] = False,
    force: Annotated[
        list[str] | None,
        Parameter(negative="", help="A step to compute again although it is stored."),
    ] = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Runs a pipeline and writes its report."""
    if workers < 1:
        raise UserError(f"--workers is a number of processes, at least 1 (got {workers})")
    graph, registry = _build(pipeline, profile, no_plugins)
    from retinakit.pipeline.store import Store

    where = store or Path(os.environ.get("RETINAKIT_STORE") or out / "store")
    if dry_run:
        return _show_graph(graph, where)
    opened = Store(where)
    _forget(graph, opened, force or [])
    from retinakit.pipeline.run import run_pipeline
    from retinakit.pipeline.watch import watcher

    with watcher(len(graph.tasks)) as watching:
        folder, failed = run_pipeline(
            graph,
            store=opened,
            out=out,
            registry=registry,
            watcher=watching,
            workers=workers,
            scheduler=scheduler,
        )
    print(f"report: {folder / 'report.html'}")
    if failed:
        print(
            f"{failed} of {len(graph.tasks)} tasks have no result; the report says why",
            file=sys.stderr,
        )
    return 1 if failed else 0


@app.command
def check(pipeline: Pipeline, /, *, profile: Profile = None, no_plugins: NoPlugins = False) -> int:
    """Only checks a pipeline: plugins, options, references, files. Every profile, or one."""
    from retinakit.pipeline.document import read_pipeline

    for name in [profile] if profile else [None, *read_pipeline(pipeline)[1].profiles]:
        graph, _ = _build(pipeline, name, no_plugins)
        found = f"{len(graph.steps)} steps, {len(graph.tasks)} tasks, no mistake found"
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
        path = write_report(run, Registry(builtin_only=no_plugins))
    print(f"report: {path}")
    return 0


@app.command
def doctor() -> int:
    """Says what this installation can do: versions, kernels, devices, plugins, data."""
    from retinakit.doctor import examine

    for name, finding in examine():
        print(f"{name:18} {finding}")
    return 0


def _build(path: Path, profile: str | None, no_plugins: bool) -> tuple[Any, Any]:
    from retinakit.pipeline.document import read_pipeline
    from retinakit.pipeline.graph import build
    from retinakit.registry.find import Registry

    source, document = read_pipeline(path, profile)
    registry = Registry(builtin_only=no_plugins)
    return build(source, document, registry), registry


def _show_graph(graph: Any, where: Path) -> int:
    from retinakit.pipeline.store import Store

    store = Store(where, create=False)
    for task in graph.in_order():
        checkpoint = any(store.checkpoint(task.key).parent.glob("*"))
        state = "stored" if store.verifies(task.key) else "to go on" if checkpoint else "to do"
        inputs = ", ".join(graph.tasks[key].label for key in task.dependencies)
        print(f"{state:8} {task.kind:8} {task.label}" + (f"  ← {inputs}" if inputs else ""))
    return 0


def _forget(graph: Any, opened: Any, names: list[str]) -> None:
    from retinakit.contracts.errors import nearest

    steps = {step.name: step for step in graph.steps}
    for name in names:
        if name not in steps:
            raise UserError(f"--force {name}: there is no such step; {nearest(name, steps)}")
        for task in steps[name].tasks:
            opened.forget(task.key)


def main() -> None:
    """Entry point: exit code 0 if all went well, 1 if a step failed, 2 for a mistake."""
    try:
        code = app(
            sys.argv[1:], result_action="return_value", exit_on_error=False, print_error=False
        )
        sys.stdout.flush()
    except (UserError, CycloptsError) as error:
        print(f"retina-run: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("retina-run: interrupted; run it again to go on from here", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # who reads the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
