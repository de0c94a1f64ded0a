"""The commands of references/README.md, as they stand there, on tiny settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.calling import python
from tests.helpers.pictures import write_pictures
from tests.helpers.places import ROOT

COMMANDS = [
    line
    for block in re.findall(
        r"```sh\n(.*?)```", (ROOT / "references" / "README.md").read_text("utf-8"), re.DOTALL
    )
    for line in block.splitlines()
]
#: What makes them small; of an option given twice the later one counts.
SMALL = {
    "train.py": "--epochs 1 --lr-warmup-epochs 0 --train-crop-size 32 --augment none",
    "ptq.py": "--num-calibration-batches 1 --batch-size 16",
    "qat.py": "--epochs 1 --num-calibration-batches 1",
    "transfer.py": "--weights none --model shufflenet_v2_x0_5 --epochs 1 --train-crop-size 32 "
    "--threads 1 --workers 0",
    "evaluate.py": "--threads 1",
    "qzoo classify": "",
}


def command_of(script: str, having: str) -> list[str]:
    """Returns the words of the first command of a script that has something in it."""
    line = next(c for c in COMMANDS if f"{script} " in c and having in c)
    words = shlex.split(line.replace("picture.jpg", "photos/val/dark/1.png"))
    if words[0] == "qzoo":
        return ["-c", "from qzoo.cli import main; main()", *words[1:]]
    assert words[0] == "python"
    results = ["--results", f"{script}.csv"] if "--results" in words else []
    return [*words[1:], *SMALL[script].split(), *results]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: the scripts, and pictures of one's own."""
    root = tmp_path_factory.mktemp("clone")
    (root / "references").symlink_to(ROOT / "references")
    write_pictures(root / "photos", 8, 2, ("bright", "dark"))
    return root


def run(folder: Path, script: str, having: str) -> str:
    return python(*command_of(script, having), cwd=folder, QZOO_HOME=str(folder / "cache")).stdout


@pytest.mark.extended
def test_training_then_ptq_of_the_bundled_weights(folder: Path) -> None:
    having = "shufflenet_v2_x0_5_digits"
    assert "wrote runs/shufflenet_v2_x0_5_digits/model" in run(folder, "train.py", having)
    (folder / "qzoo" / "embedded").mkdir(parents=True)
    assert "int8:  top-1" in run(folder, "ptq.py", having)
    assert (folder / "qzoo" / "embedded" / "shufflenet_v2_x0_5_digits_x86.safetensors").exists()


@pytest.mark.extended
def test_training_then_qat_on_digits(folder: Path) -> None:
    run(folder, "train.py", "runs/digits/resnet18")
    printed = run(folder, "qat.py", "runs/digits/resnet18")
    assert all(f"{kind}: top-1" in printed for kind in ("float", "PTQ", "QAT"))


@pytest.mark.extended
def test_your_own_pictures(folder: Path) -> None:
    assert "qzoo classify picture.jpg" in run(folder, "transfer.py", "--data-path photos")
    assert "on 4 images" in run(folder, "evaluate.py", "--data-path photos")
    assert "probability" in run(folder, "qzoo classify", "runs/photos")
