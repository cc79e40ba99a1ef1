"""Checks of all plugins. The name of a check is the name of its function."""

import json
from collections.abc import Callable
from typing import Any

import pydantic

from retinakit.contracts.config import Config
from retinakit.testing.case import Case, demand


def config_class(case: Case) -> None:
    """The class of the options derives from `retinakit.Config`."""

    demand(
        issubclass(type(case.plugin).Config, Config) and isinstance(case.plugin.config, Config),
        f"Config is {type(case.plugin).Config.__name__}, which does not derive from "
        "retinakit.Config",
    )


def config_round_trip(case: Case) -> None:
    """The options are unchanged after conversion to JSON and back."""
    config = case.plugin.config
    again = type(config).model_validate(json.loads(config.model_dump_json()))
    demand(again == config, f"conversion to JSON and back changes {config!r} to {again!r}")


def config_frozen(case: Case) -> None:
    """The options cannot be changed."""
    config = case.plugin.config
    demand(config.model_config.get("frozen"), "the options are not frozen")
    for name in type(config).model_fields:
        try:
            setattr(config, name, getattr(config, name))
        except pydantic.ValidationError:
            continue
        raise AssertionError(f"option '{name}' can be set on an existing config")


def config_extra(case: Case) -> None:
    """An unknown option is rejected."""
    try:
        type(case.plugin).Config.model_validate({"no_such_option": 1})
    except pydantic.ValidationError as error:
        # Other errors, such as a missing option, are ignored.
        if any(detail["type"] == "extra_forbidden" for detail in error.errors()):
            return
    raise AssertionError("an unknown option 'no_such_option' was accepted")


def config_described(case: Case) -> None:
    """Every option has a default and a description."""
    for name, field in type(case.plugin).Config.model_fields.items():
        demand(not field.is_required(), f"option '{name}' has no default")
        demand((field.description or "").strip(), f"option '{name}' has no description")


def seed_kept(case: Case) -> None:
    """An instance has the seed and the options that were passed to it."""
    seed = case.plugin.seed + 1
    other = case.fresh(seed=seed)
    demand(other.seed == seed, f"seed={seed} was passed and the attribute is {other.seed!r}")
    demand(other.config == case.plugin.config, "the options depend on the seed")


PLUGIN_CHECKS: tuple[Callable[[Any], None], ...] = (
    config_class,
    config_round_trip,
    config_frozen,
    config_extra,
    config_described,
    seed_kept,
)
