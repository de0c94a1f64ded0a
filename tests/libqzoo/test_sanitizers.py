"""libqzoo/tests/drive.c: the library in a program of its own, watched by sanitizers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings

from qzoo.artifact.format import Artifact, ModelInfo
from qzoo.libqzoo.build import sources
from tests.helpers.drawn import graphs
from tests.helpers.graphs import any_artifact, every_operation
from tests.helpers.places import INT8
from tests.helpers.programs import program

DRIVE = sources() / "tests" / "drive.c"
#: Sanitizers by what they watch for: their flags, and what makes a finding end the program.
SANITIZERS = {
    "memory and undefined behaviour": (
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
    ),
    "threads": (("-fsanitize=thread",), {"TSAN_OPTIONS": "halt_on_error=1"}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Returns small artifacts: every operation, and random graphs."""
    folder = tmp_path_factory.mktemp("models")
    found = [every_operation(), any_artifact()]

    @settings(max_examples=40, derandomize=True, database=None, phases=[Phase.generate])
    @given(graphs())
    def collect(drawn: tuple) -> None:  # type: ignore[type-arg]
        info = ModelInfo(None, backend="onednn")
        size = drawn[1].shape[2:]  # the graphs are of one size alone
        graph = drawn[0]
        found.append(Artifact.from_graph(graph.nodes, graph.tensors, info, input_size=size))

    collect()
    for number, artifact in enumerate(found):
        artifact.write(folder / f"{number}.safetensors")
    return sorted(folder.glob("*.safetensors"))


def drive(path: Path, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [str(path), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not done.stderr
    return done.stdout


def system_compiler(flags: Sequence[str], folder: Path) -> list[str]:
    """Returns the system's compiler, skipping the test where it lacks a sanitizer."""
    found = shutil.which("cc")
    if found is None:
        pytest.skip("needs a C compiler of the system")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    target = str(folder / "empty")
    done = subprocess.run(
        [found, *flags, str(folder / "empty.c"), "-o", target], capture_output=True
    )
    if done.returncode or subprocess.run([target], capture_output=True).returncode:
        pytest.skip(f"the system's compiler has no working {flags[0]}")
    return [found]


@pytest.mark.extended
@pytest.mark.parametrize("name", SANITIZERS)
def test_sanitizers_find_nothing(name: str, models: list[Path], tmp_path: Path) -> None:
    flags, environment = SANITIZERS[name]
    command = system_compiler(flags, tmp_path)
    path = program(tmp_path / "drive", DRIVE, "-g", *flags, command=command, library="built")
    few = models if "memory" in name else models[::4]
    drive(path, "compare", *few, INT8, **environment)
    drive(path, "together", *models[:10], INT8, **environment)
    drive(path, "cycles", 1000 if "memory" in name else 100, *models, **environment)


@pytest.fixture(scope="module")
def plain_drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program(tmp_path_factory.mktemp("drive") / "drive", DRIVE, library="built")


def test_threads_at_once(plain_drive: Path, models: list[Path]) -> None:
    drive(plain_drive, "together", *models[:10], INT8)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs mallinfo2 of glibc")
def test_cycles_leave_no_memory(plain_drive: Path, models: list[Path]) -> None:
    allocated, resident = map(int, drive(plain_drive, "cycles", 1000, *models).split())
    # The C library keeps a little for each thread that there ever was.
    assert allocated < 16_384
    assert resident < 2**20
