"""Names and texts from outside reach the terminal as text alone, whatever command shows them."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import os
import sys
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from qzoo.artifact.format import Artifact
from qzoo.cli._output import print_csv, print_json, print_line, print_table, print_warning
from qzoo.hub import cache
from qzoo.registry import get_weight
from tests.helpers.commands import invoke
from tests.helpers.places import DIGITS, PACKAGE

#: Every kind of character that a terminal obeys or hides, and rich's own markup.
HOSTILE = "\x1b[31m\r\n\t\x00\x7f\x9b2J\u202eexe\u2066\u200e\u2028[red]x[/red]:smile:"


def run(*args: object) -> tuple[int, str]:
    """Runs a command in this process; returns its exit code and all that it printed."""
    result = invoke(*args)
    return result.exit_code, result.stdout + result.stderr


def is_harmless(text: str) -> bool:
    return not any(
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text.replace("\n", "")
    )


@pytest.fixture(scope="module")
def digits() -> Artifact:
    return get_weight("ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1").artifact()  # type: ignore[attr-defined]


@pytest.fixture
def hostile(digits: Artifact, tmp_path: Path) -> Path:
    """A sound artifact whose class names, versions, recipe and metrics are hostile."""
    info = dataclasses.replace(
        digits.info,
        classes=[f"{i}{HOSTILE}" for i in range(10)],
        recipe={HOSTILE: HOSTILE},
        metrics={HOSTILE: {HOSTILE: 1.0}},
    )
    path = tmp_path / f"a{chr(27)}[2J\u202e.safetensors"
    Artifact(info, digits.layers, digits.tensors, {HOSTILE: HOSTILE}).write(path)
    return path


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_classify(hostile: Path, tmp_path: Path, option: list[str]) -> None:
    picture = tmp_path / "b\x9b\u2066[bold].png"
    picture.write_bytes(DIGITS[0].read_bytes())
    code, out = run("classify", picture, "--model", hostile, "-k", 10, *option)
    assert code == 0 and is_harmless(out)
    if option:
        (row,) = json.loads(out)
        assert row["file"] == str(picture)
        assert {p["name"] for p in row["predictions"]} == {f"{i}{HOSTILE}" for i in range(10)}
    else:
        assert "[red]x[/red]:smile:" in out.replace("\n", "").replace(" ", "")


def _folder(path: Path) -> Path:
    for name in ("0", "1"):
        (path / f"{name}{HOSTILE.replace(chr(0), '')}").mkdir(parents=True)
        (path / f"{name}{HOSTILE.replace(chr(0), '')}" / "a.png").write_bytes(b"no picture")
    return path


@pytest.mark.parametrize(
    "command",
    [
        lambda hostile, folder: ("verify", hostile),
        lambda hostile, folder: ("verify", hostile.parent),
        lambda hostile, folder: ("convert", hostile, hostile.with_suffix(".pth")),
        lambda hostile, folder: ("classify", folder, "-m", hostile),
        lambda hostile, folder: ("classify", HOSTILE.replace("\0", ""), "-m", hostile),
        lambda hostile, folder: ("evaluate", hostile, "--data", folder),
        lambda hostile, folder: ("evaluate", hostile, "--data", HOSTILE.replace("\0", "")),
        lambda hostile, folder: ("quantize", hostile, "--data", folder, "-o", hostile),
        lambda hostile, folder: ("info", HOSTILE),
        lambda hostile, folder: ("list", HOSTILE),
        lambda hostile, folder: ("download", "resnet18", "-w", HOSTILE),
        lambda hostile, folder: ("push", hostile, HOSTILE),
        lambda hostile, folder: (HOSTILE,),
        lambda hostile, folder: ("info", f"--{HOSTILE}"),
        lambda hostile, folder: ("classify", DIGITS[0], "--topk", HOSTILE),
        lambda hostile, folder: ("quantize", "m", "--data", "d", "-o", "o", "--recipe", HOSTILE),
    ],
)
def test_every_command(
    command: Callable[[Path, Path], tuple[object, ...]],
    hostile: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QZOO_OFFLINE", "1")
    code, out = run(*command(hostile, _folder(tmp_path / "data\x1b[2J")))
    assert code in (0, 2) and out and is_harmless(out)


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QZOO_HOME", str(tmp_path / "home\x1b[2J\u202e"))
    entry = cache.entry_for("https://example.test/a.pth")
    entry.final.parent.mkdir(parents=True)
    entry.final.write_bytes(b"no checkpoint")
    entry.record.write_text(json.dumps({"url": f"https://example.test/{HOSTILE}"}))
    for command in (["cache"], ["cache", "--json"], ["verify"], ["cache", "--clear"]):
        code, out = run(*command)
        assert code in (0, 2) and "example" in out and is_harmless(out)


def test_a_name_cannot_forge_a_line(digits: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "a\nok   forged.safetensors"
    path.write_bytes(b"damaged")
    code, out = run("verify", path)
    assert code == 2 and not any(line.startswith("ok") for line in out.splitlines())


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x9b.safetensors"))
    path.write_bytes(b"damaged")
    for command in (["verify", path], ["classify", DIGITS[0], "-m", path]):
        code, out = run(*command)
        assert code == 2 and r"\udcff\udc9b.safetensors" in out and is_harmless(out)


@click.command()
@click.argument("how")
def _everything(how: str) -> None:
    """Prints through each of the functions that commands print with."""
    if how == "lines":
        print_line(HOSTILE)
        print_line(HOSTILE, err=True)
        print_warning(f"one{HOSTILE}\ntwo")
    elif how == "table":
        print_table(HOSTILE, ("a",), [(HOSTILE,), (Path("Müller 猫"),)])
    elif how == "csv":
        print_csv([{"a": HOSTILE, "b": None, "c": True}, {"a": "Müller 猫", "b": 1, "c": 0.5}])
    else:
        print_json({HOSTILE: "Müller 猫"})


@pytest.mark.parametrize("how", ["lines", "table", "csv", "json"])
@pytest.mark.parametrize("charset", ["utf-8", "cp1252", "ascii"])
def test_every_way_to_print(how: str, charset: str) -> None:
    result = CliRunner(charset=charset).invoke(_everything, [how])
    assert result.exit_code == 0, result.exception
    text = result.stdout_bytes.decode(charset)
    assert text and is_harmless(text + result.stderr)
    if how == "json":
        assert json.loads(text) == {HOSTILE: "Müller 猫"}
    if how == "csv":
        heading, _, second = text.splitlines()
        assert heading == "a,b,c" and second.endswith(",1,0.5")


def test_warnings_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*args: Any, **kwargs: Any) -> list[str]:
        warnings.warn(HOSTILE, stacklevel=1)
        return []

    monkeypatch.setattr("qzoo.cli.listing.list_models", warn)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, out = run("list")
    assert code == 0 and out.count("Warning: ") == 1 and is_harmless(out)


def test_the_lines_of_training() -> None:
    from qzoo.training import say, tell

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        say(HOSTILE)
        tell(HOSTILE)
    for written in (out, err):
        assert written.getvalue().count("\n") == 1 and is_harmless(written.getvalue())


def test_commands_print_in_one_place_only() -> None:
    """Else what is shown would have to be made safe in every one of them."""
    folder = PACKAGE / "cli"
    files = [path for path in folder.glob("*.py") if path.name != "_output.py"]
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert name not in ("print", "click.echo", "click.secho", "tqdm.write"), path
