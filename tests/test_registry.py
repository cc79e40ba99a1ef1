"""The registry: what it lists, what it says when a plugin cannot be had, and what it costs."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, replace
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest

from retinakit import AnalysisSpec, ModelSpec, UserError, hookimpl
from retinakit.registry import API_VERSION, KINDS, Entry, Registry, load_entry
from retinakit.registry import find as registry_module


@pytest.fixture
def installed(distributions: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The third-party distributions are seen by this process too."""
    monkeypatch.delenv("RETINAKIT_DISABLED_PLUGINS", raising=False)
    monkeypatch.setattr(sys, "path", [str(distributions.folder), *sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("retinakit_example", "retinakit_conflict")):
            del sys.modules[name]


def one(registry: Registry, name: str) -> Entry:
    """The entry of that full name."""
    (entry,) = (e for e in registry.entries if e.full_name == name)
    return entry


def in_new_process(code: str, environment: Any) -> Any:
    """What a Python process that sees the third-party distributions prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(environment), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def offering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Registry]:
    """A registry whose only entry point is a module with the given hooks."""

    def offer(**hooks: Any) -> Registry:
        module = ModuleType("offered_plugins")
        vars(module).update(hooks)
        monkeypatch.setitem(sys.modules, "offered_plugins", module)
        point = EntryPoint("offered", "offered_plugins", "retinakit")
        monkeypatch.setattr(registry_module, "entry_points", lambda group: [point])
        return Registry(disabled=[])

    return offer


# What is listed.


def test_every_built_in_plugin_is_listed_as_ok() -> None:
    entries = Registry(builtin_only=True, disabled=[]).entries
    assert {e.status for e in entries} == {"ok"}
    assert {e.distribution for e in entries} == {"retinakit"}
    assert {e.spec.kind for e in entries if e.spec} == set(KINDS)


def test_entries_come_by_kind_then_by_name(installed: None) -> None:
    listed = [(KINDS.index(e.spec.kind), e.spec.name) for e in Registry().entries if e.spec]
    assert listed == sorted(listed)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("dataset", "example_cell"), ("model", "example_ridge"), ("analysis", "example_rates")],
)
def test_an_installed_distribution_offers_its_plugins(
    installed: None, kind: str, name: str
) -> None:
    entry = Registry().find(kind, name)
    assert entry.status == "ok"
    assert (entry.full_name, entry.version) == (f"retinakit-example:{name}", "1.2.3")
    assert load_entry(entry).__module__ == f"retinakit_example.{name}"


def test_a_plugin_is_found_only_as_its_own_kind(installed: None) -> None:
    with pytest.raises(UserError, match="there is no dataset plugin 'example_ridge'"):
        Registry().find("dataset", "example_ridge")


def test_listing_imports_nothing_heavy_and_no_plugin(distributions: Any) -> None:
    code = """
import json, sys
from retinakit.registry import Registry
names = [e.full_name for e in Registry().entries]
print(json.dumps([names, sorted(sys.modules)]))
"""
    names, modules = in_new_process(code, distributions.environment)
    assert "retinakit-example:example_ridge" in names and "retinakit:cnn" in names
    heavy = {"torch", "lightning_fabric", "xarray", "numpy", "pandas", "scipy", "matplotlib"}
    heavy |= {"h5py", "numba", "pydantic"}
    assert not heavy & set(modules)
    plugins = [m for m in modules if m.startswith(("retinakit_plugins.", "retinakit_example."))]
    assert plugins == ["retinakit_example.hooks", "retinakit_plugins.hooks"]


# A distribution that breaks.


def test_a_distribution_that_cannot_be_imported_is_listed_with_its_reason(installed: None) -> None:
    (entry,) = (e for e in Registry().entries if e.distribution == "retinakit-broken")
    assert (entry.status, entry.spec, entry.full_name) == ("failed", None, "retinakit-broken:?")
    assert entry.reason == (
        "ModuleNotFoundError: No module named 'a_library_that_is_not_installed'"
    )


def test_a_broken_distribution_stops_only_who_names_it(installed: None) -> None:
    registry = Registry()
    assert registry.load("model", "example_ridge").__name__ == "ExampleRidge"
    with pytest.raises(UserError) as raised:
        registry.find("model", "retinakit-broken:anything")
    assert "there is no model plugin 'retinakit-broken:anything'" in str(raised.value)
    assert "retinakit-broken (ModuleNotFoundError: No module named" in str(raised.value)


def test_one_broken_hook_hides_nothing_of_other_distributions(
    offering: Callable[..., Registry],
) -> None:
    @hookimpl
    def retinakit_models() -> list[ModelSpec]:
        raise RuntimeError("no licence")

    (entry,) = offering(retinakit_models=retinakit_models).entries
    assert (entry.status, entry.reason) == ("failed", "RuntimeError: no licence")


def test_a_hook_of_an_unknown_kind_is_a_failure_with_its_name(
    offering: Callable[..., Registry],
) -> None:
    @hookimpl
    def retinakit_stimuli() -> list[ModelSpec]:
        return []

    (entry,) = offering(retinakit_stimuli=retinakit_stimuli).entries
    assert entry.status == "failed"
    assert "retinakit_stimuli" in entry.reason


def test_a_spec_of_another_kind_than_its_hook_is_a_failure(
    offering: Callable[..., Registry],
) -> None:
    @hookimpl
    def retinakit_models() -> list[AnalysisSpec]:
        return [AnalysisSpec(name="map", target="offered:Map", summary="A map.")]

    (entry,) = offering(retinakit_models=retinakit_models).entries
    assert entry.status == "failed"
    assert "TypeError: a ModelSpec was expected, got AnalysisSpec(name='map'" in entry.reason


# A plugin of another version of the contract.


def test_a_plugin_of_another_contract_is_listed_and_refused_with_the_reason(
    installed: None,
) -> None:
    registry = Registry()
    reason = (
        "written for version 99 of the plugin contract, the installed retinakit has version "
        f"{API_VERSION}"
    )
    entry = one(registry, "retinakit-conflict:from_the_future")
    assert (entry.status, entry.reason) == ("failed", reason)
    assert "from_the_future" not in registry.names("model")
    with pytest.raises(UserError) as raised:
        registry.find("model", "from_the_future")
    assert str(raised.value) == f"model plugin 'from_the_future' cannot be used: {reason}"


# Two plugins of one name.


def test_two_plugins_of_one_name_are_an_error_that_lists_both(installed: None) -> None:
    registry = Registry()
    for name, other in (
        ("retinakit:ln", "retinakit-conflict:ln"),
        ("retinakit-conflict:ln", "retinakit:ln"),
    ):
        entry = one(registry, name)
        assert (entry.status, entry.reason) == ("conflict", f"also offered as {other}")
    with pytest.raises(UserError) as raised:
        registry.find("model", "ln")
    assert str(raised.value) == (
        "model plugin 'ln' is offered by 2 distributions; "
        "write 'retinakit:ln' or 'retinakit-conflict:ln'"
    )


def test_the_full_name_picks_one_of_two(installed: None) -> None:
    registry = Registry()
    assert registry.find("model", "retinakit:ln").distribution == "retinakit"
    picked = registry.load("model", "retinakit-conflict:ln")
    assert picked.__module__ == "retinakit_conflict.models"


def test_a_conflict_is_over_when_one_of_the_two_is_disabled(installed: None) -> None:
    for disabled in ("retinakit-conflict", "retinakit-conflict:ln"):
        entry = Registry(disabled=[disabled]).find("model", "ln")
        assert (entry.distribution, entry.status) == ("retinakit", "ok")


# Names that are not there.


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("model", "example_rigde", "did you mean 'example_ridge'"),
        ("dataset", "subunit_rcg", "did you mean 'subunit_rgc'"),
    ],
)
def test_an_unknown_name_answers_with_the_nearest(
    installed: None, kind: str, name: str, hint: str
) -> None:
    with pytest.raises(UserError) as raised:
        Registry().find(kind, name)
    assert str(raised.value).startswith(f"there is no {kind} plugin {name!r}; {hint}")


def test_a_name_like_no_other_answers_with_all() -> None:
    registry = Registry(builtin_only=True, disabled=[])
    with pytest.raises(UserError) as raised:
        registry.find("model", "zzzzzz")
    assert str(raised.value) == (
        f"there is no model plugin 'zzzzzz'; known: {', '.join(registry.names('model'))}"
    )


# Plugins that are left out.


def test_builtin_only_leaves_out_every_other_distribution(installed: None) -> None:
    registry = Registry(builtin_only=True)
    assert {e.distribution for e in registry.entries} == {"retinakit"}
    assert registry.find("model", "ln").status == "ok"


def test_a_disabled_distribution_is_not_even_imported(distributions: Any) -> None:
    code = """
import json, sys
from retinakit.registry import Registry
entries = [(e.full_name, e.status) for e in Registry().entries]
print(json.dumps([entries, "retinakit_example" in sys.modules]))
"""
    environment = distributions.environment | {
        "RETINAKIT_DISABLED_PLUGINS": "retinakit-broken, retinakit-example"
    }
    entries, imported = in_new_process(code, environment)
    assert ["retinakit-broken:?", "disabled"] in entries
    assert ["retinakit-example:?", "disabled"] in entries
    assert not imported


@pytest.mark.parametrize("disabled", ["example_ridge", "retinakit-example:example_ridge"])
def test_a_disabled_plugin_is_refused_with_the_reason(
    installed: None, monkeypatch: pytest.MonkeyPatch, disabled: str
) -> None:
    monkeypatch.setenv("RETINAKIT_DISABLED_PLUGINS", disabled)
    registry = Registry()
    with pytest.raises(UserError) as raised:
        registry.find("model", "example_ridge")
    assert str(raised.value) == (
        "model plugin 'example_ridge' cannot be used: disabled by RETINAKIT_DISABLED_PLUGINS"
    )
    assert registry.find("dataset", "example_cell").status == "ok"


# Loading.


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module:Thing", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("pathlib:Nothing", "AttributeError: module 'pathlib' has no attribute 'Nothing'"),
    ],
)
def test_a_class_that_cannot_be_imported_is_refused_with_the_reason(
    target: str, reason: str
) -> None:
    entry = Entry(ModelSpec(name="mine", target=target, summary=""), "mine-dist", "1")
    with pytest.raises(UserError) as raised:
        load_entry(entry)
    start = f"model plugin 'mine-dist:mine' cannot be imported from {target} ({reason}"
    assert str(raised.value).startswith(start)


@pytest.mark.parametrize("target", ["pathlib:Path", "retinakit.testing:small_recording"])
def test_a_target_that_is_not_of_its_kind_is_refused(target: str) -> None:
    entry = Entry(ModelSpec(name="mine", target=target, summary=""), "mine-dist", "1")
    with pytest.raises(UserError, match=r"'mine-dist:mine' is not a retinakit\.Model"):
        load_entry(entry)


def test_a_spec_cannot_be_changed() -> None:
    spec = ModelSpec(name="mine", target="mine:Mine", summary="Mine.")
    with pytest.raises(FrozenInstanceError):
        spec.name = "yours"  # type: ignore[misc]
    assert replace(spec, name="yours").name == "yours"


# A third party's own tests.


def test_the_example_distribution_passes_the_kit(distributions: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests"],
        cwd=distributions.sources["retinakit-example"],
        env=dict(distributions.environment),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "7 passed" in done.stdout
