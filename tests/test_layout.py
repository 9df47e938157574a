"""The house: arrows run downwards, no job imports a job, no floor imports a job, no circles; type imports included."""

from __future__ import annotations

import ast
from collections.abc import Container, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"
FLOORS = ("received", "data", "model", "scoring", "telling", "training", "masked_lm", "jobs")
"""Folders of the library, lowest first; the files beside them lie below all of these."""
ABOVE_THE_GROUND = {"plm": "forbids the network before anything is loaded"}
"""Files of the ground that take something from a floor, and why."""


def modules() -> dict[str, Path]:
    """Dotted name to file of every module of the library, and of every stage script."""
    named = {}
    for path in [*TOOLS.glob("plm_*.py"), *(TOOLS / "plm").rglob("*.py")]:
        name = ".".join(path.relative_to(TOOLS).with_suffix("").parts)
        named[name.removesuffix(".__init__")] = path
    return named


MODULES = modules()


def imports(source: str, known: Container[str] = MODULES, package: str = "plm") -> Iterator[str]:
    """Modules of a package that the source imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == package)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0].startswith(package):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


ARROWS = {name: set(imports(path.read_text(encoding="utf-8"))) for name, path in MODULES.items()}


def place(module: str) -> tuple[int, str]:
    """Floor (-1 for the ground) and job (empty outside jobs) of a module of the library."""
    parts = module.split(".")
    floor = FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else -1
    return floor, parts[2] if floor == FLOORS.index("jobs") and len(parts) > 2 else ""


def crossings(arrows: dict[str, set[str]]) -> list[str]:
    """Imports that run upwards, or from one job to another."""
    wrong = []
    for name, targets in arrows.items():
        if not name.startswith("plm.") and name != "plm":
            wrong += [f"{name} -> {target}" for target in targets if not target.startswith("plm")]
            wrong += [f"{name} -> {target}" for target in targets if target.startswith("plm_")]
            continue
        floor, job = place(name)
        for target in sorted(targets):
            below, other = place(target)
            upwards = target.startswith("plm_") or below > floor
            if (upwards and name not in ABOVE_THE_GROUND) or (job and other and job != other):
                wrong.append(f"{name} -> {target}")
    return wrong


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a loop."""
    done: set[str] = set()
    loops = []

    def walk(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            loops.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in sorted(arrows.get(name, ())):
                walk(target, (*path, name))
            done.add(name)

    for name in sorted(arrows):
        walk(name, ())
    return loops


def test_every_folder_is_a_floor() -> None:
    folders = {path.name for path in (TOOLS / "plm").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(FLOORS)


def test_every_import_of_the_library_names_a_module() -> None:
    assert {target for targets in ARROWS.values() for target in targets} <= set(MODULES)


def test_arrows_run_downwards_and_no_job_imports_a_job() -> None:
    assert crossings(ARROWS) == []


def test_no_two_modules_import_each_other() -> None:
    assert circles(ARROWS) == []


def test_nor_do_the_commands_behind_the_scripts() -> None:
    folder = ROOT / "scripts" / "harness"
    named = {f"harness.{path.stem}": path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    assert circles({name: set(imports(source, named, "harness")) for name, source in named.items()}) == []


def test_a_class_has_a_name_of_its_own() -> None:
    places: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    twice = {name: where for name, where in places.items() if len(where) > 1}
    arguments = twice.pop("Arguments")  # what a stage's script takes
    assert twice == {} and all(name.startswith("plm_") for name in arguments)


def test_nothing_is_called_found() -> None:
    called = [
        f"{name}:{node.lineno}"
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Name) and node.id == "found") or (isinstance(node, ast.arg) and node.arg == "found")
    ]
    assert called == []


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("plm.data.fasta", "plm.model.encoder"),
        ("plm.jobs.embed.side_tables", "plm.jobs.predict.queries"),
        ("plm.training.folds", "plm.jobs.finetune.job"),
        ("plm.errors", "plm.data.fasta"),
        ("plm.data.fasta", "plm_embed"),
        ("plm_embed", "plm_predict"),
    ],
)
def test_a_wrong_arrow_is_seen(source: str, target: str) -> None:
    assert crossings({source: {target}}) == [f"{source} -> {target}"]


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b -> c -> b"]


def test_imports_for_type_checkers_count() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from plm.data.fasta import Record\n"
    assert list(imports(source)) == ["plm.data.fasta"]
