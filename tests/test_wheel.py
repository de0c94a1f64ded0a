"""The built wheels hold all they need and work from an empty environment in another folder."""

from __future__ import annotations

import email
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import qzoo
from tests.helpers.places import HIDDEN_TORCH, ROOT

#: The folder of each distribution's pyproject.toml.
PROJECTS = {"qzoo": ROOT, "qzoo-lite": ROOT / "packaging" / "lite"}


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lets ziglang keep what it compiled from one wheel to the next."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("GLOBAL", "LOCAL"):
            patch.setenv(f"ZIG_{kind}_CACHE_DIR", str(tmp_path_factory.mktemp("zig")))
        yield


def build(name: str, folder: Path, *options: str) -> Path:
    """Builds a distribution's wheel into a folder."""
    # Without isolation nothing is downloaded: the build backend comes with the test extra.
    command = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check"]
    command += [*options, "-o", str(folder), str(PROJECTS[name])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("wheel") for name in PROJECTS}
    return {name: build(name, folder, "--wheel") for name, folder in folders.items()}


def files(wheel: Path) -> dict[str, int]:
    """Returns the package's files in a wheel, each with the checksum of its content."""
    entries = zipfile.ZipFile(wheel).infolist()
    return {i.filename: i.CRC for i in entries if ".dist-info/" not in i.filename}


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_wheel_holds_metadata_weights_and_pictures(wheels: dict[str, Path]) -> None:
    wheel = wheels["qzoo"]
    names = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / "weights_meta").glob("*.json"):
        assert f"qzoo/weights_meta/{path.name}" in names
    assert "qzoo/py.typed" in names
    assert wheel.name.startswith(f"qzoo-{qzoo.__version__}-")
    assert any(n.startswith("qzoo/embedded/digits/") for n in names)
    embedded = [i for i in zipfile.ZipFile(wheel).infolist() if i.filename.endswith(".safetensors")]
    assert embedded
    assert all(i.file_size < 2 * 2**20 for i in embedded)
    assert not any(n.startswith(("tests/", "weights_meta/", "references/")) for n in names)


def test_the_small_distribution_is_the_same_package_without_pytorch(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    whole, small = metadata(wheels["qzoo"]), metadata(wheels["qzoo-lite"])
    assert files(wheels["qzoo-lite"]) == files(wheels["qzoo"])
    assert (small["Name"], small["Version"]) == ("qzoo-lite", whole["Version"])
    for field in ("Requires-Python", "License-Expression", "License-File"):
        assert small[field] == whole[field]
    license_file = PROJECTS["qzoo-lite"] / whole["License-File"]
    assert license_file.read_bytes() == (ROOT / whole["License-File"]).read_bytes()

    def required(found: email.message.Message) -> set[str]:
        return {r for r in found.get_all("Requires-Dist", []) if "extra ==" not in r}

    left_out = {re.split(r"[^\w-]", r)[0] for r in required(whole) - required(small)}
    assert required(small) < required(whole)
    assert left_out == {"torch", "torchvision"}
    assert set(small.get_all("Provides-Extra", [])) <= set(whole.get_all("Provides-Extra", []))
    # Its source distribution stands alone: this makes the wheel from it.
    assert files(build("qzoo-lite", tmp_path)) == files(wheels["qzoo"])


def test_what_lies_about_in_the_checkout_is_in_no_distribution(tmp_path: Path) -> None:
    for part in ("qzoo/libqzoo", "libqzoo/src", "packaging/lite"):
        shutil.copytree(ROOT / part, tmp_path / part)
    for part in ("pyproject.toml", ".gitignore", "README.md", "qzoo/_version.py"):
        shutil.copyfile(ROOT / part, tmp_path / part)
    (tmp_path / "weights_meta").mkdir()
    for stray in ("qzoo/libqzoo/_qzoo.dll", "qzoo/my.pth", "qzoo/__pycache__/a.pyc"):
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).write_bytes(b"")
    hook = runpy.run_path(str(tmp_path / "packaging" / "lite" / "hatch_build.py"))
    names = set(hook["contents"]().values())
    assert {"qzoo/libqzoo/build.py", "libqzoo/src/plain.c", "qzoo/_version.py"} <= names
    assert not [name for name in names if Path(name).suffix in (".dll", ".so", ".pth", ".pyc")]


PROGRAMS = {
    "qzoo": """
import qzoo, torch
m = qzoo.shufflenet_v2_x0_5(weights='DIGITS_X86_V1', quantize=True)
print(tuple(m(torch.zeros(1, 3, 64, 64)).shape), len(qzoo.list_models()))
""",
    "qzoo-lite": """
import numpy as np, pathlib, qzoo
file = pathlib.Path(qzoo.__file__).parent / "embedded/shufflenet_v2_x0_5_digits_x86.safetensors"
m = qzoo.compile(file, runtime="onnxruntime", threads=1)
print(m(np.zeros((1, 3, 64, 64), np.float32)).shape, len(qzoo.list_models()))
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_wheel_works_elsewhere(name: str, wheels: dict[str, Path], tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    target = next((environment / "lib").glob("python*/site-packages"))
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*install, str(wheels[name])], check=True, capture_output=True)
    # The dependencies are borrowed, after the environment's own packages: torch alone has 5 GB.
    (target / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import qzoo, pathlib;"
        f"assert pathlib.Path(qzoo.__file__).is_relative_to({str(target)!r}), qzoo.__file__\n"
    ) + PROGRAMS[name]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    if name == "qzoo-lite":
        env["PYTHONPATH"] = str(HIDDEN_TORCH)
    done = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, cwd=elsewhere, env=env
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(1, 10) 19"
