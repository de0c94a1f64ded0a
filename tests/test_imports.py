"""Imports run one way between the parts of the package, as docs/architecture.md promises."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import qzoo

ROOT = Path(qzoo.__file__).parent


def part(module: str) -> str:
    """Returns the file or folder right below the package that a module belongs to.

    Private files there are the wall around `torch.ao`, which artifacts are read and built through.
    """
    name = module.split(".")[1] if "." in module else "qzoo"
    return "artifact" if name.startswith(("_torch_ao", "_float_layer")) else name


def imported(path: Path) -> set[str]:
    """Returns the package's own modules that a file imports when it is imported itself."""
    package = ["qzoo", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in _at_import(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "qzoo":
                found |= {f"qzoo.{alias.name}" for alias in node.names}
            elif module.startswith("qzoo."):
                found.add(module)
    return found


def _at_import(tree: ast.AST) -> list[ast.AST]:
    """Returns the statements that run when a file is imported: not functions, not type checks."""
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        checks_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or checks_types:
            continue
        found += [node, *_at_import(node)]
    return found


def test_no_part_of_the_package_imports_one_that_imports_it() -> None:
    graph: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        own = part(".".join(["qzoo", *path.relative_to(ROOT).with_suffix("").parts]))
        if own != "__init__":
            graph.setdefault(own, set()).update(part(m) for m in imported(path))
            graph[own].discard(own)
    assert graph["cli"] and graph["runtimes"], "nothing was read"
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"These import each other in a circle: {error.args[1]}") from None
    assert order.index("artifact") < order.index("models") < order.index("cli")
    assert order.index("reference") < order.index("export") < order.index("runtimes")
