"""Searches for the best options of a model: optuna proposes points in batches, and a run fits them.

The proposals depend only on the seed of the step and the losses so far, and the fits are in the
store. A search that was interrupted, or is run again, therefore proposes the same points and
continues. At the end its points are a sweep over a list of points.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from retinakit.contracts.errors import UserError, nearest
from retinakit.contracts.netcdf import read_netcdf
from retinakit.pipeline.document import (
    Location,
    ModelDocument,
    PipelineDocument,
    Range,
    SearchDocument,
    Source,
    validation_error,
)
from retinakit.pipeline.execute import Outcome
from retinakit.pipeline.graph import Graph, Task, build, check_option
from retinakit.pipeline.store import Store
from retinakit.registry.find import Registry

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger("retinakit")
Execute = Callable[[Graph, Mapping[str, Outcome]], dict[str, Outcome]]
"""Runs a graph, apart from the tasks whose outcomes are known; returns the outcomes of all."""

DIGITS = 6
"""Significant digits of a proposed number, as in labels and file names."""


@dataclass
class _Search:
    """The search of one model step."""

    name: str
    document: SearchDocument
    config: Any
    options: Mapping[str, Any]
    study: "optuna.Study"
    points: list[dict[str, Any]] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    asked: list[tuple["optuna.Trial", str]] = field(default_factory=list)
    trials: int = 0
    ended: bool = False

    def ask(self) -> None:
        """Adds a batch of points; a point that was proposed before is not fitted again."""
        number = min(self.document.batch, self.document.trials - self.trials)
        known = {_text(point) for point in self.points}
        for _ in range(number):
            trial = self.study.ask()
            point = {o: self._value(trial, o, of) for o, of in self.document.over.items()}
            self.asked.append((trial, _text(point)))
            if _text(point) not in known and self._is_valid(point):
                known.add(_text(point))
                self.points.append(point)
        self.trials += number

    def tell(self, losses: Mapping[str, float]) -> None:
        """Reports the losses of the last batch to optuna; a point without a loss has failed."""
        from optuna.trial import TrialState

        self.losses |= losses
        for trial, text in self.asked:
            loss = self.losses.get(text, math.nan)
            if math.isfinite(loss):
                self.study.tell(trial, loss)
            else:
                self.study.tell(trial, state=TrialState.FAIL)
        self.asked = []
        self.ended = self.trials >= self.document.trials

    def _value(self, trial: "optuna.Trial", option: str, of: Range | list[Any]) -> Any:
        if isinstance(of, list):  # an index, since optuna allows only a few types of values
            return of[trial.suggest_categorical(option, range(len(of)))]
        if _is_whole(self.config, option):
            return trial.suggest_int(option, int(of.low), int(of.high), log=of.log)
        value = trial.suggest_float(option, of.low, of.high, log=of.log)
        return min(max(float(f"{value:.{DIGITS}g}"), of.low), of.high)

    def _is_valid(self, point: Mapping[str, Any]) -> bool:
        """Whether the plugin accepts this combination of options; if not, the trial fails."""
        options = {name: value for name, value in point.items() if name != "seed"}
        try:
            self.config.model_validate({**self.options, **options})
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            logger.warning("%s cannot be fitted with %s: %s", self.name, _text(point), reason)
            return False
        return True


class Searches:
    """All searches of a pipeline.

    Raises:
        UserError: if a search is not possible, with file, line and column.
    """

    def __init__(self, source: Source, document: PipelineDocument, registry: Registry):
        self.source, self.document, self.registry = source, document, registry
        self.searches = [
            self._begin(name, model) for name, model in document.models.items() if model.search
        ]
        for search in self.searches:
            search.ask()
            if not search.points:
                raise source.error(
                    ("models", search.name, "search", "over"),
                    "the plugin accepts none of the first points; choose other ranges",
                )

    @property
    def trials(self) -> int:
        """The number of points that all searches will propose."""
        return sum(search.document.trials for search in self.searches)

    @property
    def proposed(self) -> int:
        """The number of points that have been proposed."""
        return sum(search.trials for search in self.searches)

    def graph(self) -> Graph:
        """The whole pipeline with the points that have been proposed.

        Raises:
            UserError: with file, line and column, for the first mistake in the pipeline.
        """
        models: dict[str, ModelDocument] = dict(self.document.models)
        for search in self.searches:
            model = models[search.name]
            models[search.name] = model.model_copy(update={"search": None, "sweep": search.points})
        document = self.document.model_copy(update={"models": models})
        return build(self.source, document, self.registry)

    def go_on(self, store: Store) -> Graph:
        """Proposes points while the fits of all earlier points are stored; returns the graph."""
        graph = self.graph()
        while any(not search.ended for search in self.searches):
            tasks = [t for s in self.searches if not s.ended for t in self._fits(graph, s)]
            if not all(store.verifies(task.key) for task in tasks):
                break
            self._tell(graph, store, {task.key for task in tasks})
            graph = self.graph()
        return graph

    def run(self, execute: Execute, store: Store) -> tuple[Graph, dict[str, Outcome], list[str]]:
        """Runs the fits of all searches, batch by batch.

        Returns:
            The whole pipeline with every point, the outcomes of the tasks, and the reasons why
            searches ended early.
        """
        known: dict[str, Outcome] = {}
        problems: list[str] = []
        graph = self.graph()
        while any(not search.ended for search in self.searches):
            wanted = {s.name for s in self.searches if not s.ended}
            steps = [
                replace(step, tasks=[t for t in step.tasks if t.key not in known])
                for step in graph.steps
                if step.name in wanted
            ]
            known |= execute(Graph(graph.document, steps, graph.tasks), known)
            done = {key for key, outcome in known.items() if outcome.ok}
            problems += self._tell(graph, store, done)
            graph = self.graph()
        return graph, known, problems

    def _tell(self, graph: Graph, store: Store, done: set[str]) -> list[str]:
        """Reports the losses of the fits to every search, and asks for the next points."""
        problems = []
        for search in self.searches:
            if search.ended:
                continue
            losses = {}
            try:
                for task in self._fits(graph, search):
                    text = _text(search.points[dict(task.coords)["point"]])
                    if task.key in done and text not in search.losses:
                        losses[text] = self._loss(search, task, store)
            except UserError as error:
                problems.append(str(error))
                search.ended = True
                continue
            search.tell(losses)
            if not search.ended:
                search.ask()
        return problems

    def _loss(self, search: _Search, task: Task, store: Store) -> float:
        by = search.document.by
        curves = read_netcdf(store.path(task.key))["curves"].to_dataset()
        if by not in curves:
            raise self.source.error(
                ("models", search.name, "search", "by"),
                f"the training curves have no '{by}', so the search ended with its first "
                f"points; {nearest(by, map(str, curves.data_vars))}",
            )
        return float(curves[by].min())

    @staticmethod
    def _fits(graph: Graph, search: _Search) -> list[Task]:
        return next(step.tasks for step in graph.steps if step.name == search.name)

    def _begin(self, name: str, model: ModelDocument) -> _Search:
        """Checks a search and makes it ready."""
        place: Location = ("models", name, "search")
        assert model.search is not None
        if model.sweep:
            raise self.source.error(
                place, "the step has a sweep too; search in one step and sweep in another"
            )
        if dataset := self._swept_data(model.data):
            raise self.source.error(
                place,
                f"the dataset '{dataset}' is swept, and a search is about one recording; search "
                "without its sweep",
            )
        try:
            config = self.registry.load("model", model.plugin).Config  # type: ignore[attr-defined]
        except UserError as error:
            raise self.source.error(("models", name, "plugin"), str(error)) from None
        over = model.search.over
        if not over:
            raise self.source.error((*place, "over"), "there is no option to search over")
        for option, of in over.items():
            self._check(model, config, (*place, "over", option), option, of)
        try:
            import optuna
        except ImportError:
            raise self.source.error(
                place, "a search needs optuna; install retinakit[search]"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        seed = self.document.seed if model.seed is None else model.seed
        # Points of a batch whose losses are not known yet count as bad, which keeps them apart.
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        study = optuna.create_study(sampler=sampler)
        return _Search(name, model.search, config, model.with_, study)

    def _check(
        self, model: ModelDocument, config: Any, where: Location, option: str, of: Range | list[Any]
    ) -> None:
        """Checks that an option is there, and takes the values to choose from."""
        check_option(self.source, model, config, where, option)
        if isinstance(of, list):
            if not of:
                raise self.source.error(where, "the list of values is empty")
            values: dict[str | int, Any] = dict(enumerate(of))
        else:
            if not _is_number(config, option):
                raise self.source.error(
                    where, "the option is not a number, so it has no range; give a list of values"
                )
            values = {"low": of.low, "high": of.high}
            if _is_whole(config, option):
                for end, number in values.items():
                    if number != int(number):
                        raise self.source.error(
                            (*where, end), f"it must be an integer (got {number:g})"
                        )
                values = {end: int(number) for end, number in values.items()}
        for part, value in values.items():
            if option == "seed":
                if type(value) is not int or not 0 <= value < 2**32:
                    raise self.source.error(
                        (*where, part), f"it must be an integer from 0 to 2^32 - 1 (got {value!r})"
                    )
                continue
            context = {"folder": str(self.source.path.resolve().parent)}
            try:
                config.model_validate({option: value}, context=context)
            except ValidationError as error:
                if error.errors()[0]["loc"][:1] != (option,):
                    continue  # it concerns a combination that no trial has
                section, index = where[:-1], {option: part}
                raise validation_error(self.source, section, error, config, index) from None

    def _swept_data(self, data: str | list[str] | None) -> str | None:
        """A swept dataset among those from which a recording is made, or None."""
        waiting, seen = [data] if isinstance(data, str) else list(data or []), set()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.document.datasets:
                continue
            seen.add(name)
            dataset = self.document.datasets[name]
            if dataset.sweep:
                return name
            waiting += [dataset.data] if dataset.data else []
        return None


def _text(point: Mapping[str, Any]) -> str:
    return json.dumps(point, default=str, sort_keys=True)


def _kinds(config: Any, option: str) -> set[Any]:
    if option == "seed":
        return {int}

    def parts(annotation: Any) -> set[Any]:
        inner = getattr(annotation, "__args__", ())
        return {annotation} if not inner else {p for a in inner for p in parts(a)}

    return parts(config.model_fields[option].annotation)


def _is_number(config: Any, option: str) -> bool:
    return bool(_kinds(config, option) & {int, float})


def _is_whole(config: Any, option: str) -> bool:
    kinds = _kinds(config, option)
    return int in kinds and float not in kinds
