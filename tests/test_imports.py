"""Imports run one way between the rooms of the package, as docs/architecture.md promises."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.places import PACKAGE
from tests.helpers.without_torch import python

#: From the ground up: a room imports those before it, never those behind it.
ORDER = [
    *("_version", "safe_text", "errors", "_core", "_torch", "hub", "metadata", "builder_kwargs"),
    *("backends", "pictures", "transforms", "_weights_enum", "registry", "artifact", "published"),
    *("weights", "labels", "native", "reference", "models", "importers", "datasets", "quantize"),
    *("export", "runtimes", "sharing", "classify", "analysis", "training", "cli", "__main__"),
]
#: Imports upwards that happen while a function runs, and why there is no other way.
LATE = {
    ("_core", "_torch"): "only where PyTorch is in use, it has a state to keep",
    ("artifact", "reference"): "the graph of unusual builder arguments in older files is recorded",
    ("artifact", "native"): "a PyTorch module that somebody gives is read by its own room",
    ("backends", "native"): "Backend.qconfig() and the engines are PyTorch's",
    ("models", "sharing"): "model.save_pretrained() is a method",
    ("native", "runtimes"): "a stand-in for a native model runs elsewhere",
    ("native", "sharing"): "model.save_pretrained() is a method",
    ("registry", "models"): "the files of the models fill the registry",
    ("published", "importers"): "weights.artifact() reads a published file",
    ("weights", "importers"): "float weights are read without pickle",
    ("weights", "native"): "weights.get_state_dict() is that of a native model",
}
#: What may import PyTorch: rooms, and files of rooms that otherwise run without it. `cli` has
#: commands of both kinds, which import what they need inside functions.
TORCH = {
    *("_torch", "native", "reference", "models", "datasets", "quantize", "analysis", "training"),
    *("transforms", "weights", "_weights_enum"),
    *("importers.checkpoint", "importers.fx", "importers.graph_reader", "importers.pt2e"),
    *("importers.pt2e_graph", "importers.qat_state", "importers.widths"),
    *("export._onednn", "export._xnnpack", "export.aoti", "export.executorch"),
    *(
        "export.torch_export",
        "export.torch_plan",
        "runtimes.executorch",
        "runtimes.inductor",
        "runtimes.torch_native",
    ),
}
#: Files of the others that import PyTorch inside functions, and when.
LATE_TORCH = {
    "_core.compiler": "for Inductor's compiler",
    "classify": "given a module",
    "cli.classify": "the demo compares with float where PyTorch is installed",
    "cli.evaluate": "a command of PyTorch's",
    "cli.quantize": "a command of PyTorch's",
}
PYTORCH = {"torch", "torchvision", "torchao", "executorch"}
#: Short files that keep an old path alive.
MOVED = {"artifact.native", "artifact.published", "reference.pt2e"}
QUANTIZED = {"qint8", "quint8", "qint32", "quint4x2", "quint2x4"}
QUANTIZED |= {"quantize_per_tensor", "quantize_per_channel", "int_repr"}
QUANTIZED |= {"_make_per_tensor_quantized_tensor", "_make_per_channel_quantized_tensor"}


@dataclass(frozen=True)
class Import:
    """One import of a module: by which one, of which one, and whether inside a function."""

    by: str
    of: str
    late: bool

    def rooms(self) -> tuple[str, str]:
        return room(self.by), room(self.of)


def room(module: str) -> str:
    """Returns the file or folder right below the package that a module belongs to."""
    return module.split(".")[0]


def modules() -> dict[str, Path]:
    """Returns the package's modules by name, without the "qzoo." in front."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__")
        found[name.rstrip(".")] = path
    return found


MODULES = modules()


def _imports(tree: ast.AST, late: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Yields a file's import statements; those for type checkers count as any other."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, late
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from _imports(node, late or inside)


def imported(name: str) -> Iterator[Import]:
    """Yields a module's imports of others of the package."""
    path = MODULES[name]
    package = ["qzoo", *path.relative_to(PACKAGE).parts[:-1]]
    for node, late in _imports(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            whole = [f"{module}.{alias.name}" for alias in node.names]
            targets = [w if w.removeprefix("qzoo.") in MODULES else module for w in whole]
        for target in targets:
            if target.startswith("qzoo.") and (of := target.removeprefix("qzoo.")) != name:
                yield Import(name, of, late)


ALL = [i for name in MODULES if name and name not in MOVED for i in imported(name)]


def test_every_room_has_its_place() -> None:
    rooms = {room(name) for name in MODULES if name}
    reexports = {name for name in rooms if name not in ORDER}
    assert len(ALL) > 500, "hardly anything was read"
    for name in reexports:
        lines = MODULES[name].read_text(encoding="utf-8").splitlines()
        assert len(lines) < 25, f"{name} is neither in the order of rooms nor a short re-export"


def test_imports_run_downwards() -> None:
    wrong = [
        i
        for i in ALL
        if set(i.rooms()) <= set(ORDER)
        and ORDER.index(i.rooms()[1]) > ORDER.index(i.rooms()[0])
        and not (i.late and i.rooms() in LATE)
    ]
    assert not wrong
    unused = set(LATE) - {i.rooms() for i in ALL if i.late}
    assert not unused, "these exceptions are not needed any more"


def test_no_private_file_of_another_room_is_imported() -> None:
    wrong = [
        i
        for i in ALL
        if i.rooms()[0] != i.rooms()[1] and any(p.startswith("_") for p in i.of.split(".")[1:])
    ]
    assert not wrong


def needs_torch(name: str) -> bool:
    """Returns whether a module is in a room, or a file, that may import PyTorch."""
    return room(name) in TORCH or name in TORCH or bool(_moved_to(name))


def _moved_to(name: str) -> bool:
    """Returns whether a module only keeps the old path of one that may import PyTorch."""
    moved = name in MOVED or (name and room(name) not in ORDER)
    others = [i.of for i in imported(name)] if moved else []
    return any(room(of) in TORCH or of in TORCH for of in others)


def torch_imports(tree: ast.AST, late: bool = False) -> Iterator[bool]:
    """Yields of each import of PyTorch whether it stands in a function.

    Those for type checkers are left out.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from torch_imports(ast.Module(node.orelse, []), late)
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module)]
        if any(name.split(".")[0] in PYTORCH for name in names):
            yield late
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from torch_imports(node, late or inside)


def test_only_the_rooms_of_pytorch_import_it() -> None:
    found = {
        name: set(torch_imports(ast.parse(path.read_text(encoding="utf-8"))))
        for name, path in MODULES.items()
    }
    for name in ("native.eager", "quantize.ptq", "transforms"):
        assert False in found[name], "the test itself sees nothing"
    others = {name: lates for name, lates in found.items() if lates and not needs_torch(name)}
    assert {name for name, lates in others.items() if False in lates} == set()
    assert set(others) == set(LATE_TORCH)
    assert all(room(name) in ORDER for name in TORCH), "a room that does not exist"
    assert all(any(f"{m}.".startswith(f"{name}.") for m in MODULES) for name in TORCH)


def test_all_others_are_imported_where_there_is_no_pytorch() -> None:
    free = sorted(name for name in MODULES if name != "__main__" and not needs_torch(name))
    assert len(free) > 100
    code = """
import importlib, sys
failed = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(failed)
"""
    assert python(code, *(f"qzoo.{name}".rstrip(".") for name in free)) == "{}\n"


def test_a_class_name_stands_for_one_thing() -> None:
    found: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        if room(name) in ("models", "cli"):  # torchvision's blocks; each command's own options
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name)
    assert found["Grid"] == ["artifact.grid"] and len(found) > 100
    twice = {cls: places for cls, places in found.items() if len(places) > 1}
    # Quantizing and training have options and parts of their own.
    assert set(twice) <= {"Options", "Parts"}, twice


def test_graphs_are_run_by_one_interpreter() -> None:
    found = {
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith("Interpreter") for base in node.bases)
    }
    assert found == {"reference.run"}


def _names_torch_ao(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names if not node.level]
        elif isinstance(node, ast.Attribute):
            found = [ast.unparse(node)]
            if node.attr == "int_repr" or (
                found[0].startswith("torch.") and node.attr in QUANTIZED
            ):
                yield found[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found = [ast.unparse(node.args[0]).strip("'\"")]
        for name in found:
            if f"{name}.".startswith(
                ("torch.ao.", "torch.quantization.", "torchvision.models.quantization.")
            ):
                yield name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_native_room_names_torch_ao_or_a_quantized_dtype(name: str) -> None:
    found = list(_names_torch_ao(ast.parse(MODULES[name].read_text(encoding="utf-8"))))
    if room(name) == "native":
        assert name != "native.eager" or found, "the test itself sees nothing"
    else:
        assert not found
