"""The built wheel holds all it needs and works from an empty environment in another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import qzoo
from tests.helpers.places import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation nothing is downloaded: the build backend comes with the test extra.
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "-o",
        str(folder),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_metadata_weights_and_pictures(wheel: Path) -> None:
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


def test_wheel_works_elsewhere(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    target = next((environment / "lib").glob("python*/site-packages"))
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    # The dependencies are borrowed, after the environment's own packages: torch alone has 5 GB.
    (target / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import qzoo, torch, pathlib, sys;"
        f"assert pathlib.Path(qzoo.__file__).is_relative_to({str(target)!r}), qzoo.__file__;"
        "m = qzoo.shufflenet_v2_x0_5(weights='DIGITS_X86_V1', quantize=True);"
        "print(tuple(m(torch.zeros(1, 3, 64, 64)).shape), len(qzoo.list_models()))"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, cwd=elsewhere, env=env
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(1, 10) 19"
