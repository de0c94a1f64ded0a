"""The README says what is true: its tables, its commands, its code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.calling import python
from tests.helpers.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_up_to_date() -> None:
    python(ROOT / "references" / "readme_tables.py", "--check")


def test_the_commands_are_what_ci_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    wanted = re.findall(r'^readme_command "(.*)"$', script, flags=re.MULTILINE)
    assert len(wanted) == 4  # to use it and to test it, of both installs
    for words in wanted:
        lines = [line for line in README.splitlines() if words in line]
        environment = words.partition("/")[0]
        assert lines and lines[0].startswith(f"python3 -m venv {environment} &&")


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


PAGES = [README, *(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))]
#: What the extras of pyproject.toml install, by the names under which Python imports it.
MODULES = {"scikit-learn": "sklearn", **{name: name for name in (
    "torchao", "onnx", "onnxruntime", "openvino", "executorch", "matplotlib", "tensorboard"
)}}  # fmt: skip
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def brought_by(extras: str) -> set[str]:
    """Returns the modules of those above that the package installs with some extras."""
    rows = dict(re.findall(r"^(\w+) = \[(.*?)\]", PROJECT, flags=re.MULTILINE | re.DOTALL))
    wanted = ",".join(rows[name] for name in ("dependencies", *extras.split(",")))
    return {MODULES[p] for p in re.findall(r'"([\w-]+)[>=]', wanted) if p in MODULES}


@pytest.mark.extended
def test_snippets_run_in_what_the_first_command_sets_up(tmp_path: Path) -> None:
    first = next(line for line in README.splitlines() if ".venv/bin/qzoo demo" in line)
    brought = brought_by(re.search(r'"\.\[([\w,]+)\]"', first)[1])  # type: ignore[index]
    assert {"sklearn", "onnxruntime"} <= brought < set(MODULES.values())
    missing = sorted(set(MODULES.values()) - brought)
    blocked = f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        if 'source="local"' in code:  # a hundred megabytes to download
            continue
        python("-c", blocked + code, cwd=tmp_path)


OTHERS = [
    code for page in PAGES[1:] for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
]


@pytest.mark.parametrize("code", [code for code in OTHERS if "# offline" in code])
def test_offline_code_runs(code: str, tmp_path: Path) -> None:
    python("-c", code, cwd=tmp_path)
