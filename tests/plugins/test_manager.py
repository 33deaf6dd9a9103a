"""The plugin manager against distributions that are wrong in every way, with a good one beside them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from seqgraph.errors import PluginError
from seqgraph.plugin import Model, Order, Preset, hookimpl
from seqgraph.plugin.manager import CORE, Manager, PluginWarning
from seqgraph.plugin.types import KINDS

Install = Callable[..., None]
HEAD = "from seqgraph.plugin import Model, Order, hookimpl\n"
MODEL = 'Model(name="{0}", domain="test", summary="One.", target="json:JSONDecoder", config="json:JSONEncoder")'

BROKEN = {
    "import error": ("import no_such_thing", "No module named 'no_such_thing'"),
    "error on import": ("raise RuntimeError('on import\\nsecond line')", "RuntimeError: on import"),
    "exit on import": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "syntax error": ("def broken(:", "SyntaxError"),
    "misspelt hook": (HEAD + "@hookimpl\ndef seqgraph_modles():\n    yield 1", "seqgraph_modles"),
    "wrong argument": (HEAD + "@hookimpl\ndef seqgraph_models(registry):\n    yield 1", "registry"),
    "no hook": ("def seqgraph_models():\n    yield 1", "hookimpl"),
    "wrapper": (HEAD + "@hookimpl(wrapper=True)\ndef seqgraph_models():\n    return (yield)", "wrapper"),
}
# These load, and fail when the hook is called: what they offer elsewhere goes on working.
FAILS_LATER = {
    "raises at once": ("raise KeyError('lost')\n    yield", "KeyError: 'lost'"),
    "raises half way": (f"yield {MODEL.format('half')}\n    raise ValueError('half way')", "ValueError: half way"),
    "not a descriptor": ("yield 'graph-mamba'", "'graph-mamba', not a Model"),
    "another kind": ("yield Order(name='x', summary='x', target='json:loads')", "not a Model"),
    "bad name": (f"yield {MODEL.format('Not Allowed')}", "Not Allowed"),
    "exits": ("raise SystemExit('bye')\n    yield", "SystemExit: bye"),
    "not iterable": ("return 5", "TypeError"),
}
OTHER_HOOK = (
    "\n@hookimpl\ndef seqgraph_orders():\n    yield Order(name='bad-order', summary='One.', target='json:loads')\n"
)


def make_manager(site: Path, **environ: str) -> Manager:
    found = [p for d in metadata.distributions(path=[str(site)]) for p in d.entry_points]
    return Manager(entry_points=found, environ=environ)


def record(manager: Manager, name: str):
    return next(r for r in manager.records() if r.name == name)


@pytest.mark.parametrize("source, reason", BROKEN.values(), ids=BROKEN)
def test_broken_plugin_is_named_and_harms_no_other(
    source: str, reason: str, good: None, install: Install, site: Path
) -> None:
    install("bad", source)
    with pytest.warns(PluginWarning, match=r"plugin bad \(fake-bad 1.2\) is broken") as caught:
        manager = make_manager(site)
    assert len(caught) == 1
    assert reason in (record(manager, "bad").reason or "")
    assert "\n" not in (record(manager, "bad").reason or "")
    assert [r.status for r in manager.records()] == ["ok", "ok", "broken"]
    assert manager.get("models", "good").name == "good"
    assert manager.get("orders", "degree").name == "degree"
    with pytest.raises(PluginError, match="bad is broken"):
        manager.get("models", "something-of-bad")


@pytest.mark.parametrize("body, reason", FAILS_LATER.values(), ids=FAILS_LATER)
def test_failing_hook_loses_only_its_own_results(
    body: str, reason: str, good: None, install: Install, site: Path
) -> None:
    install("bad", f"{HEAD}@hookimpl\ndef seqgraph_models():\n    {body}\n{OTHER_HOOK}")
    manager = make_manager(site)
    with pytest.warns(PluginWarning, match="plugin bad") as caught:
        assert [d.name for d in manager.descriptors("models")] == ["good"]
    assert len(caught) == 1
    assert "bad-order" in [d.name for d in manager.descriptors("orders")]
    assert record(manager, "bad").status == "broken"
    assert reason in (record(manager, "bad").reason or "")
    assert record(manager, "good").status == "ok"


@pytest.mark.parametrize(
    "source, reason", [*BROKEN.values(), (f"{HEAD}@hookimpl\ndef seqgraph_models():\n    1/0", "")]
)
def test_strict_mode_raises(source: str, reason: str, good: None, install: Install, site: Path) -> None:
    install("bad", source)
    with pytest.raises(PluginError, match="bad"):
        make_manager(site, SEQGRAPH_STRICT_PLUGINS="1").records()


def test_all_failures_at_once(good: None, install: Install, site: Path) -> None:
    for index, (source, _) in enumerate(BROKEN.values()):
        install(f"bad{index}", source)
    with pytest.warns(PluginWarning) as caught:
        manager = make_manager(site)
    assert len(caught) == len(BROKEN)
    assert [d.name for d in manager.descriptors("models")] == ["good"]


def test_duplicates_are_an_error_that_names_both(good: None, install: Install, site: Path) -> None:
    install(
        "twin",
        f"{HEAD}@hookimpl\ndef seqgraph_models():\n    yield {MODEL.format('good')}\n    yield {MODEL.format('own')}",
    )
    manager = make_manager(site)
    with pytest.warns(PluginWarning, match="claimed by"):
        assert [d.name for d in manager.descriptors("models")] == ["own"]
    with pytest.raises(PluginError, match=r"good \(fake-good 1.2\) and twin \(fake-twin 1.2\)") as error:
        manager.get("models", "good")
    assert error.value.hint == "leave one out: SEQGRAPH_DISABLE_PLUGINS=twin"
    assert [e.status for e in manager.entries("models")] == ["conflict", "conflict", "ok"]
    assert manager.get("models", "own").name == "own"
    cured = make_manager(site, SEQGRAPH_DISABLE_PLUGINS="twin")
    assert cured.get("models", "good").name == "good"


def test_two_distributions_with_one_plugin_name(good: None, install: Install, site: Path) -> None:
    install(
        "usurper", f"{HEAD}@hookimpl\ndef seqgraph_models():\n    yield {MODEL.format('other')}", entry_point="good"
    )
    with pytest.warns(PluginWarning, match=r"good \(fake-usurper 1.2\) .* good \(fake-good 1.2\) has the same name"):
        manager = make_manager(site)
    assert [d.name for d in manager.descriptors("models")] == ["good"]


@pytest.mark.parametrize("value", ["good", "other, good", "*"])
def test_disabled(value: str, good: None, site: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager = make_manager(site, SEQGRAPH_DISABLE_PLUGINS=value)
    assert record(manager, "good").status == "disabled"
    assert record(manager, CORE).status == "ok"
    with pytest.raises(PluginError, match="good is disabled"):
        manager.get("models", "good")


NEEDY = HEAD + (
    "@hookimpl\ndef seqgraph_models():\n"
    '    yield Model(name="plain", domain="t", summary="One.", target="json:loads", config="json:dumps")\n'
    '    yield Model(name="fancy", domain="t", summary="One.", target="nolib:A", config="nolib:B", extra="fancy")\n'
)


@pytest.mark.parametrize(
    "requires, missing",
    [
        ("no-such-lib>=2; extra == 'fancy'", "no-such-lib>=2"),
        ("pytest<1; extra == 'fancy'", "pytest<1 ("),
        ("fake-needy[inner]; extra == 'fancy'\nRequires-Dist: no-such-lib; extra == 'inner'", "no-such-lib"),
        ("no-such-lib; python_version < '3' and extra == 'fancy'", None),
        ("pytest>=1; extra == 'fancy'", None),
        ("no-such-lib; extra == 'another'", None),
        ("no-such-lib", None),
    ],
)
def test_missing_extra_is_a_state_with_its_cure(
    requires: str, missing: str | None, install: Install, site: Path
) -> None:
    install("needy", NEEDY, metadata=f"Provides-Extra: fancy\nProvides-Extra: inner\nRequires-Dist: {requires}\n")
    manager = make_manager(site)
    states = {e.descriptor.name: e.status for e in manager.entries("models")}
    if missing is None:
        assert states == {"plain": "ok", "fancy": "ok"}
        assert record(manager, "needy").status == "ok"
        return
    assert states == {"plain": "ok", "fancy": "needs extra"}
    needy = record(manager, "needy")
    assert (needy.status, needy.cure) == ("needs extra", 'pip install "fake-needy[fancy]"')
    assert missing in (needy.reason or "")
    assert manager.get("models", "plain").name == "plain"
    with pytest.raises(PluginError, match="'fancy' needs") as error:
        manager.get("models", "fancy")
    assert error.value.hint == 'pip install "fake-needy[fancy]"'


def test_extra_that_the_distribution_does_not_have(install: Install, site: Path) -> None:
    install("needy", NEEDY)
    manager = make_manager(site)
    with pytest.warns(PluginWarning, match="fake-needy has no extra 'fancy'"):
        assert [d.name for d in manager.descriptors("models")] == ["plain"]


def test_provenance(good: None, site: Path) -> None:
    manager = make_manager(site)
    model = manager.get("models", "good")
    owner = manager.provider(model)
    assert (owner.name, owner.distribution, owner.version, owner.source) == ("good", "fake-good", "1.2", "entry point")
    assert owner.hooks == ("seqgraph_models",)
    assert manager.provider(manager.get("orders", "bfs")).name == CORE
    with pytest.raises(PluginError, match="no plugin offers"):
        manager.provider(Order(name="bfs", summary="Another.", target="json:loads"))


def test_get_suggests(good: None, site: Path) -> None:
    manager = make_manager(site)
    with pytest.raises(PluginError) as error:
        manager.get("orders", "page-rank")
    assert "pagerank" in (error.value.hint or "")
    with pytest.raises(PluginError) as error:
        manager.get("models", "zzz")
    assert error.value.hint == "there are: good"
    with pytest.raises(ValueError, match="kind 'modles'"):
        manager.get("modles", "good")


def test_resolve(good: None, site: Path) -> None:
    manager = make_manager(site)
    model = manager.get("models", "good")
    assert manager.resolve(model) is json.JSONDecoder
    assert manager.resolve_config(model) is json.JSONEncoder
    assert manager.resolve_example(model) is None


@pytest.mark.parametrize("target", ["no_such_lib:A", "json:NoSuchClass"])
def test_resolve_failure_names_the_plugin(target: str, empty_manager: Manager) -> None:
    model = Model(name="lost", domain="t", summary="One.", target=target, config="json:loads")
    empty_manager.register(model, "mine")
    with pytest.raises(PluginError, match=f"plugin mine: lost: cannot import {target}"):
        empty_manager.resolve(model)


def test_preset_file_with_hyphens(site: Path, empty_manager: Manager) -> None:
    folder = site / "fake_presets_package" / "presets"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "two-words.yaml").write_text("seed: [0]\n")
    there = Preset(name="p", domain="t", summary="One.", target="fake_presets_package:two_words")
    missing = Preset(name="q", domain="t", summary="One.", target="fake_presets_package:three_words")
    empty_manager.register([there, missing])
    assert empty_manager.resolve(there).read_text() == "seed: [0]\n"
    with pytest.raises(PluginError, match=r"holds no three_words\.yaml"):
        empty_manager.resolve(missing)


class TestByHand:
    """``register`` and ``-p``."""

    model = Model(name="by-hand", domain="t", summary="One.", target="json:loads", config="json:loads")

    def test_object_class_descriptor_or_several(self, empty_manager: Manager) -> None:
        model = self.model

        class Plugin:
            @hookimpl
            def seqgraph_models(self):
                yield model

        for thing, name in [(Plugin(), "Plugin"), (Plugin, "Plugin"), (model, "by-hand"), ([model], "registered")]:
            record = empty_manager.register(thing)
            assert (record.name, record.source, record.status) == (name, "registered", "ok")
            assert empty_manager.get("models", "by-hand") is model
            empty_manager.unregister(name)
            assert not empty_manager.descriptors("models")

    def test_again_replaces(self, empty_manager: Manager) -> None:
        empty_manager.register(self.model)
        again = Model(name="by-hand", domain="t", summary="Second cell.", target="json:loads", config="json:loads")
        empty_manager.register(again)
        assert empty_manager.get("models", "by-hand") is again

    def test_a_conflict_ends_with_its_cause(self, good: None, site: Path) -> None:
        manager = make_manager(site)
        twin = Model(name="good", domain="t", summary="Another.", target="json:loads", config="json:loads")
        manager.register(twin, "twin")
        with pytest.warns(PluginWarning, match="claimed by"):
            assert {r.name: r.status for r in manager.records()}["good"] == "broken"
        manager.unregister("twin")
        assert (record(manager, "good").status, record(manager, "good").reason) == ("ok", None)
        assert manager.get("models", "good").name == "good"

    def test_does_not_replace_an_installed_one(self, good: None, site: Path) -> None:
        manager = make_manager(site)
        with pytest.raises(PluginError, match="there already"):
            manager.register(self.model, "good")
        assert manager.get("models", "good").name == "good"

    def test_invalid_raises(self, empty_manager: Manager) -> None:
        class Plugin:
            @hookimpl
            def seqgraph_moddels(self):
                yield 1

        with pytest.raises(PluginError, match="seqgraph_moddels"):
            empty_manager.register(Plugin())
        with pytest.raises(PluginError, match="not a descriptor"):
            empty_manager.register(["graph-mamba"])
        assert empty_manager.records() == []
        empty_manager.register(self.model)

    def test_file(self, tmp_path: Path, empty_manager: Manager) -> None:
        file = tmp_path / "loose_plugin.py"
        file.write_text(
            HEAD + "class Net:\n    pass\n@hookimpl\ndef seqgraph_models():\n    yield Model(name='loose', domain='t', "
            "summary='One.', target='loose_plugin:Net', config='loose_plugin:Net')\n"
        )
        record = empty_manager.load(file)
        assert (record.name, record.source) == ("loose_plugin", "file")
        assert empty_manager.resolve(empty_manager.get("models", "loose")).__name__ == "Net"
        assert empty_manager.load(str(file)) is record

    @pytest.mark.parametrize(
        "name, text, reason",
        [
            ("absent.py", None, "does not exist"),
            ("loose_bad.py", "1/0", "ZeroDivisionError"),
            ("loose_lib.py", "import no_such_lib", "No module named 'no_such_lib'"),
            ("two-words.py", "", "cannot be a module's name"),
            ("json.py", "", "imported already"),
            ("loose_empty.py", "", "implements no hook"),
        ],
    )
    def test_bad_file(self, name: str, text: str | None, reason: str, tmp_path: Path, empty_manager: Manager) -> None:
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(PluginError, match=reason):
            empty_manager.load(tmp_path / name)
        assert empty_manager.records() == []

    def test_module(self, good: None, empty_manager: Manager) -> None:
        assert empty_manager.load("fake_good").source == "module"
        with pytest.raises(PluginError, match="no plugin module is named 'fake_godo'"):
            empty_manager.load("fake_godo")


def test_core_offers_every_order(plugin_manager: Manager) -> None:
    from seqgraph.order import ORDERS

    offered = {d.name: plugin_manager.resolve(d) for d in plugin_manager.descriptors("orders")}
    assert offered == ORDERS
    assert {"degree", "random", "pagerank", "rwse", "bfs", "rcm", "core-number", "eigenvector"} <= set(offered)


@pytest.mark.parametrize("kind", ["orders", "tokenizers", "commands"])
def test_every_target_of_the_core_exists(kind: str, plugin_manager: Manager) -> None:
    for descriptor in plugin_manager.descriptors(kind):
        assert callable(plugin_manager.resolve(descriptor)), descriptor.name


def test_installed_plugins_are_well() -> None:
    """Ours come through the same door, and nothing of theirs may be broken."""
    manager = Manager(environ={"SEQGRAPH_STRICT_PLUGINS": "1"})
    ours = {r.name: r for r in manager.records() if r.distribution == "seqgraph"}
    assert {CORE, "graph-mamba", "lc-plm", "mamba4rec"} <= set(ours)
    for record in ours.values():
        assert record.status in ("ok", "needs extra"), record
    for kind in KINDS:
        for entry in manager.entries(kind):
            if entry.record.distribution == "seqgraph" and entry.status == "ok":
                assert manager.resolve(entry.descriptor) is not None
                if hasattr(entry.descriptor, "config"):
                    assert manager.resolve_config(entry.descriptor).model_config.get("extra") == "forbid"
