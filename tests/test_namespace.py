"""What `import qzoo` alone gives: every public name and module, and none of PyTorch before that."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

import qzoo
from tests.helpers.calling import python
from tests.helpers.places import PACKAGE, ROOT

PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "references" / "README.md"]
#: Dotted names of modules and functions, as the documents write them in code.
DOCUMENTED = sorted(
    {
        name
        for page in PAGES
        for name in re.findall(
            r"[`(= ](qzoo(?:\.[a-z_]\w*){1,4})\b(?!\.\w)", page.read_text("utf-8")
        )
        if not name.endswith((".ci", ".py"))
    }
)


def resolve(name: str) -> object:
    found: object = qzoo
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def public_modules(package: str, path: Path) -> list[str]:
    found = []
    for module in pkgutil.iter_modules([str(path)]):
        if not module.name.startswith("_"):
            found.append(f"{package}.{module.name}")
            if module.ispkg:
                found += public_modules(found[-1], path / module.name)
    return found


@pytest.mark.parametrize("name", ["qzoo.quantize.ptq", "qzoo.export.openvino.export_openvino"])
def test_import_qzoo_is_enough_in_a_fresh_process(name: str) -> None:
    code = f"import qzoo, sys; assert 'torch' not in sys.modules; print(callable({name}))"
    assert python("-c", code).stdout == "True\n"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_names_resolve(name: str) -> None:
    assert resolve(name) is not None


def test_every_public_module_is_an_attribute_and_every_public_name_is_listed() -> None:
    modules = public_modules("qzoo", PACKAGE)
    assert "qzoo.runtimes.openvino" in modules and "qzoo.quantize.recipes" in modules
    missing = [name for name in modules if resolve(name) is None]
    assert not missing
    assert {"load", "resnet18", "quantize", "hub"} <= set(dir(qzoo))
    names: dict[str, object] = {}
    exec("from qzoo import *", names)
    assert set(qzoo.__all__) <= set(names)


@pytest.mark.parametrize("name", ["lod", "__wrapped__", "_nothing", "quantize.ptk", "export.onx"])
def test_unknown_names_stay_attribute_errors(name: str) -> None:
    with pytest.raises(AttributeError, match=name.split(".")[-1]):
        resolve(f"qzoo.{name}")
