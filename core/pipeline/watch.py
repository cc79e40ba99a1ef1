"""Shows the progress of a run: bars on a terminal, plain lines elsewhere."""

import sys
from typing import Any

from retinakit.pipeline.execute import Outcome
from retinakit.pipeline.graph import Task

WORDS = {
    "done": "done",
    "stored": "already there",
    "failed": "FAILED",
    "skipped": "skipped",
    "invalid": "FAILED",
}


def _line(task: Task, outcome: Outcome) -> str:
    seconds = f" in {outcome.seconds:.1f} s" if outcome.status == "done" else ""
    message = f": {' '.join(outcome.message.split())}" if outcome.message else ""
    return f"{task.kind:8} {task.label}: {WORDS[outcome.status]}{seconds}{message}"


class Lines:
    """A line for each task that ends."""

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def started(self, task: Task) -> None:
        pass

    def progressed(self, key: str, done: float, total: float, message: str) -> None:
        pass

    def ended(self, task: Task, outcome: Outcome) -> None:
        print(_line(task, outcome), file=sys.stderr, flush=True)


class Bars:
    """A bar for the run and one for each running task."""

    def __init__(self, tasks: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[message]}", style="dim"),
            console=Console(stderr=True),
        )
        self.whole = self.progress.add_task("all steps", total=tasks, message="")
        self.bars: dict[str, Any] = {}

    def __enter__(self) -> "Bars":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def started(self, task: Task) -> None:
        if task.key not in self.bars:
            self.bars[task.key] = self.progress.add_task(task.label, total=None, message="")

    def progressed(self, key: str, done: float, total: float, message: str) -> None:
        if key in self.bars:
            self.progress.update(self.bars[key], completed=done, total=total, message=message)

    def ended(self, task: Task, outcome: Outcome) -> None:
        if task.key in self.bars:
            self.progress.remove_task(self.bars.pop(task.key))
        self.progress.console.print(_line(task, outcome), markup=False, highlight=False)
        self.progress.advance(self.whole)


def watcher(tasks: int) -> Lines | Bars:
    """Bars if there is a terminal, otherwise lines."""
    return Bars(tasks) if sys.stderr.isatty() else Lines()
