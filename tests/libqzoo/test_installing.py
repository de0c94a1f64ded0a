"""Every way to install builds libqzoo, and goes on where that fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.helpers.places import ROOT

pytestmark = pytest.mark.extended
PARTS = ("qzoo", "libqzoo", "packaging", "weights_meta")
FILES = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore")
#: Where the package lies and what it says of libqzoo.
PROGRAM = """
import warnings
warnings.simplefilter("ignore")
import qzoo
from qzoo.libqzoo.binding import missing_library
print(qzoo.__file__, missing_library(), "libqzoo" in qzoo.available_runtimes(), sep="|")
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for part in PARTS:
        leave = shutil.ignore_patterns("_qzoo.*", "__pycache__")
        shutil.copytree(ROOT / part, folder / part, ignore=leave)
    for name in FILES:
        shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize("works", [True, False], ids=["compiler works", "compiler fails"])
@pytest.mark.parametrize("what", [".", "-e .", "packaging/lite"])
def test_installing(what: str, works: bool, checkout: Path, tmp_path: Path) -> None:
    if what == "-e .":
        pytest.importorskip("editables", reason="hatchling needs the package editables for it")
    for made in (checkout / "qzoo" / "libqzoo").glob("_qzoo.*"):
        made.unlink()  # an earlier editable installation's
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    packages = next((environment / "lib").glob("python*/site-packages"))
    # What builds it and what it needs are borrowed.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "QZOO_"))}
    if not works:
        env["QZOO_CC"] = "false"
    options = ["-v", "--no-build-isolation", "--no-deps", "--no-index", "--ignore-installed"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", *options, *what.split()],
        capture_output=True, text=True, check=False, cwd=checkout, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = (done.stdout + done.stderr).count("libqzoo was not built (false failed: no output)")
    assert said == (0 if works else 1)
    done = subprocess.run(
        [str(python), "-c", PROGRAM], capture_output=True, text=True, check=False,
        cwd=tmp_path, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    place, missing, usable = done.stdout.strip().split("|")
    assert Path(place).is_relative_to(checkout if what == "-e ." else packages)
    assert usable == str(works)
    assert (missing == "None") == works
