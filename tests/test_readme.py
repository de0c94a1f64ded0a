"""The README says what is true: its tables, its commands, its code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "references" / "readme_tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_two_commands_are_what_ci_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    wanted = re.findall(r'^readme_command "(.*)"$', script, flags=re.MULTILINE)
    assert len(wanted) == 2
    for words in wanted:
        lines = [line for line in README.splitlines() if words in line]
        assert lines and lines[0].startswith("python3 -m venv .venv &&")


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


PAGES = [README, *(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))]
CODE = [code for page in PAGES for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]


@pytest.mark.parametrize("code", [code for code in CODE if "# offline" in code])
def test_offline_code_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
