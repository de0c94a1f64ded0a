"""The options that all commands share, completion, help, and what a pipe gets."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import pty
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from rich.cells import cell_len

from qzoo.backends import BACKENDS
from qzoo.cli import _options, main
from qzoo.cli._output import print_table
from qzoo.datasets.sources import NAMED_DATA
from qzoo.quantize.flows import FLOWS
from qzoo.quantize.recipes import RECIPES
from qzoo.runtimes.api import RUNTIMES
from tests.helpers import places
from tests.helpers.calling import python
from tests.helpers.commands import run

INT8 = str(places.INT8)
DIGITS = list(map(str, places.DIGITS))
COMMANDS = sorted(main.commands)


def test_written_out_names_are_the_librarys() -> None:
    assert tuple(BACKENDS) == _options.BACKENDS
    assert tuple(RECIPES) == _options.RECIPES
    assert tuple(RUNTIMES) == _options.RUNTIMES
    assert (FLOWS, NAMED_DATA) == (_options.FLOWS, _options.NAMED_DATA)


#: What goes together under one name, wherever a command has one of them.
SAME = (
    {"--model", "-m"},
    {"--weights", "-w"},
    {"--runtime", "--runtimes"},
    {"--batch-size", "--batch", "-b"},
    {"--out", "-o"},
)


@pytest.mark.parametrize("name", COMMANDS)
def test_options_have_the_same_names_everywhere(name: str) -> None:
    options = [p for p in main.commands[name].params if isinstance(p, click.Option)]
    spellings = {text for option in options for text in (*option.opts, *option.secondary_opts)}
    assert "--json" in spellings
    for same in SAME:
        assert not spellings & same or same <= spellings, same
    for option in options:
        assert option.help and len(option.help.split("[default")[0].split()) > 2, option.name


def test_no_command_imports_another() -> None:
    files = {p.stem: p for p in Path(_options.__file__).parent.glob("*.py")}
    commands = {name for name in files if not name.startswith("_")}
    assert len(commands) > 8
    for name in files.keys() - {"__init__"}:
        tree = ast.parse(files[name].read_text(encoding="utf-8"))
        found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        near = {
            node.module or alias.name for node in found if node.level == 1 for alias in node.names
        }
        assert not near & commands, name


@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_a_command_are_the_fields_of_a_frozen_dataclass(name: str) -> None:
    given = {p.name for p in main.commands[name].params} - {"words"}
    told = {"architecture", "part", "transform_input"}  # of a state dict, one field together
    hints = inspect.signature(inspect.unwrap(main.commands[name].callback)).parameters  # type: ignore[arg-type]
    module = sys.modules[inspect.unwrap(main.commands[name].callback).__module__]  # type: ignore[arg-type]
    (options,) = (getattr(module, str(p.annotation)) for p in hints.values())
    assert options.__dataclass_params__.frozen
    fields = {field.name for field in dataclasses.fields(options)}
    assert given - fields <= told and fields - given <= ({"told"} | fields_of_places(options))


def fields_of_places(options: type) -> set[str]:
    return {f.name for f in dataclasses.fields(options) if "place" in f.metadata}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", INT8, "digits"),
        ("evaluate", INT8, "--data", "digits"),
        ("evaluate", "-m", INT8, "digits"),
        ("evaluate", "digits", "--model", INT8),
        ("evaluate", "--data", "digits", "--runtimes", "TORCH", "--batch", "64", "-m", INT8),
    ],
)
def test_what_has_a_place_may_have_an_option(arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert code == 0, err
    assert out.startswith("shufflenet_v2_x0_5, int8, torch, digits: top-1 98.88 %")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate",), "Missing argument 'MODEL' (or option '--model')"),
        (("evaluate", INT8), "Missing option '--data'"),
        (("evaluate", INT8, "digits", "fractals"), "'fractals'"),
        (("evaluate", INT8, "fractals", "--data", "digits"), "'fractals'"),
        (("finetune",), "Missing option '--data' (or PHOTOS in its place)"),
        (("benchmark",), "Missing argument 'MODEL'"),
        (("convert", INT8), "Missing argument 'OUT' (or option '--out')"),
        (("export", INT8), "Missing option '--to'"),
        (("push", INT8), "Missing argument 'REPO'"),
        (("classify", *DIGITS[:1], "--topk", "0"), "topk"),
    ],
)
def test_missing_and_superfluous_words(arguments: tuple[str, ...], words: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and words in err and "Traceback" not in err


def test_help_completion_list_and_info_wait_for_no_torch() -> None:
    code = """
import sys
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from qzoo.cli import main
for name in ["", *main.commands]:
    assert CliRunner().invoke(main, [*filter(None, [name]), "--help"]).exit_code == 0, name
complete = ShellComplete(main, {}, "qzoo", "_QZOO_COMPLETE").get_completions
assert complete(["info"], "resnet5") and complete(["classify", "-m", "resnet50", "-w"], "I")
commands = [["list"], ["list", "res*", "--quantized"], ["list", "--float-only", "--json"]]
for name in ("resnet50", "ResNet18", "googlenet", "mobilenet_v3_large", "wide_resnet50_2"):
    commands += [["info", name], ["info", "--json", name]]
for words in commands:
    assert CliRunner().invoke(main, words).exit_code == 0, words
assert "Did you mean" in CliRunner().invoke(main, ["info", "resnet5"]).stderr
assert not {"torch", "torchvision", "numpy"} & set(sys.modules)
"""
    python("-c", code)


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "cl", ["classify"]),
        (["info"], "ResNet1", ["resnet101", "resnet152", "resnet18"]),
        (["quantize"], "googl", ["googlenet"]),
        (["classify", "photo.jpg", "-m"], "inc", ["inception_v3"]),
        (["classify", "photo.jpg", "-m"], "./mo", ["file ./mo"]),
        (["classify"], "pho", ["file pho"]),
        (["evaluate"], "mine.sa", ["file mine.sa"]),
        (["evaluate", "resnet18"], "dig", ["digits"]),
        (["evaluate", "resnet18"], "ph", ["dir ph"]),
        (["evaluate", "--data", "digits"], "resnext50", ["resnext50_32x4d"]),
        (["finetune"], "f", ["fractals"]),
        (["analyze", "a.safetensors", "b.safetensors"], "d", ["digits"]),
        (["evaluate", "resnet50", "-w"], "imagenet1k_fbgemm_v2", ["IMAGENET1K_FBGEMM_V2"]),
        (["evaluate", "resnet50", "--float", "-w"], "imagenet1k_v2", ["IMAGENET1K_V2"]),
        (["quantize", "resnet18", "-w"], "I", ["IMAGENET1K_V1"]),
        (["download", "shufflenet_v2_x0_5", "-w"], "dig", ["DIGITS_X86_V1"]),
        (["quantize", "resnet18", "--recipe"], "b", ["best"]),
        (["evaluate", "resnet18", "--runtime"], "o", ["onnxruntime", "openvino"]),
        (["benchmark", "resnet18", "--runtimes"], "torch,open", ["torch,openvino"]),
        (["classify", "--backend"], "q", ["qnnpack"]),
        (["export", "resnet18", "--to"], "o", ["onnx", "openvino"]),
        (["convert", "a.pth", "b.safetensors", "--arch"], "wide_resnet5", ["wide_resnet50_2"]),
    ],
)  # fmt: skip
def test_completion(words: list[str], incomplete: str, expected: list[str]) -> None:
    complete = ShellComplete(main, {}, "qzoo", "_QZOO_COMPLETE")
    found = [
        item.value if item.type == "plain" else f"{item.type} {item.value}"
        for item in complete.get_completions(words, incomplete)
    ]
    assert found == expected


def test_a_pipe_gets_one_record_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    long, wide = "x" * 300, "猫" * 40
    print_table("Title", ("name", "number"), [(long, 1), (wide, 1234), ("short", "")], "lr")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Title" and len(lines) == 5
    assert lines[1].split() == ["name", "number"]
    assert [line.split() for line in lines[2:]] == [[long, "1"], [wide, "1234"], ["short"]]
    assert cell_len(lines[2]) == cell_len(lines[3]) and lines[4] == "short"


def test_every_row_of_classify_names_its_picture() -> None:
    code, out, err = run("classify", *DIGITS[:3], "-m", INT8, "-k", 2)
    assert code == 0 and err == ""
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[0] for row in rows] == [name for name in DIGITS[:3] for _ in range(2)]


SMALL = ("--size", "32", "--rounds", "1", "--no-memory")


def on_a_terminal(*arguments: str) -> tuple[int, str, str]:
    """Runs a command with a terminal as stderr; returns exit code, stdout, and what it showed."""
    main_end, other_end = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "qzoo", *arguments], stdout=subprocess.PIPE, stderr=other_end
    )
    os.close(other_end)
    shown = b""
    while True:
        try:
            part = os.read(main_end, 65536)
        except OSError:  # Linux says so when the last writer has closed it
            break
        if not part:
            break
        shown += part
    os.close(main_end)
    out, _ = done.communicate()
    return done.returncode, out.decode(), shown.decode()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("classify", *DIGITS, "-m", INT8, "--json"), ("classify:", "picture")),
        (
            ("benchmark", INT8, *SMALL, "--runtime", "torch", "--json"),
            ("make torch ready", "measure latency"),
        ),
    ],
)  # fmt: skip
def test_progress_on_a_terminal_alone(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    code, out, shown = on_a_terminal(*arguments)
    assert code == 0 and out.startswith("[") and out.rstrip().endswith("]")
    assert all(word in shown for word in words)
    assert run(*arguments)[2] == ""
