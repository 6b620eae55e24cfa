"""The folders of the package depend strictly downwards."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dspy_dlpo

PACKAGE = Path(dspy_dlpo.__file__).parent
LAYERS = ("core", "policies", "runtime", "descent", "views", "optimizer", "local", "benchmarks")
"""From the lowest to the highest: a module may import from its own layer and from those before it."""


@cache
def modules() -> dict[str, Path]:
    """Return the path of each module by its dotted name, without the package's own `__init__`."""
    names = {
        ".".join(["dspy_dlpo", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    del names["dspy_dlpo"]
    return names


def imports(path: Path) -> Iterator[str]:
    """Yield what a module imports of this package, inside functions and for type checking too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dspy_dlpo"):
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in modules() else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("dspy_dlpo"))


def layer(module: str) -> int:
    return LAYERS.index(module.split(".")[1])


@pytest.mark.parametrize("module", sorted(modules()))
def test_module_imports_only_from_its_own_layer_and_those_below(module: str) -> None:
    upwards = [name for name in imports(modules()[module]) if name == "dspy_dlpo" or layer(name) > layer(module)]
    assert upwards == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: set(imports(path)) for module, path in modules().items()}
    TopologicalSorter(graph).prepare()  # Raises CycleError, which names the circle.


def test_package_has_at_most_ten_names_at_its_top() -> None:
    names = sorted(path.name for path in PACKAGE.iterdir() if path.name != "__pycache__")
    assert len(names) <= 10, names


def test_map_in_the_docstring_names_every_folder_and_only_files_that_there_are() -> None:
    folders = re.findall(r"^\* `(\w+)`: (.*?)(?=^\*|^$)", dspy_dlpo.__doc__ or "", re.MULTILINE | re.DOTALL)
    assert tuple(name for name, _ in folders) == LAYERS
    named = [PACKAGE / name / file for name, text in folders for file in re.findall(r"`(\w+(?:\.py|/))`", text)]
    assert named
    assert [path for path in named if not path.exists()] == []
