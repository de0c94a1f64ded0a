"""Training in two processes, as `torchrun` starts them, is training in one."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers import parallel
from tests.helpers.calling import python
from tests.helpers.places import REFERENCES, ROOT

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
OPTIONS = [
    *("--model", "resnet18", "--epochs", "2", "--lr", "0.001", "--train-crop-size", "64"),
    *("--augment", "crop", "--lr-scheduler", "cosine", "--sync-bn", "--seed", "3"),
    *("--model-ema", "--model-ema-steps", "2", "--workers", "0", "--threads", "1"),
]


def start(launcher: list[str], *options: object) -> subprocess.Popen[str]:
    words = [*launcher, REFERENCES / "train.py", *OPTIONS, *options]
    return subprocess.Popen(
        list(map(str, words)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str], code: int | None = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=900)
    assert code is None or process.returncode == code, err
    return out, err


def log(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def state(folder: Path) -> dict[str, torch.Tensor]:
    stored = torch.load(folder / "checkpoint.pth", weights_only=True)
    return {**stored["model"], **{f"ema.{k}": v for k, v in stored["ema"].items()}}


@pytest.fixture(scope="module")
def both(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two processes, which nothing interrupted."""
    output = tmp_path_factory.mktemp("both") / "run"
    out, err = finish(
        start(TORCHRUN, "--data-path", pictures, "--batch-size", 8, "--output-dir", output)
    )
    assert out.count("epoch 1/2:") == 1, "only one process reports"
    assert out.count("wrote") == 1
    assert "Traceback" not in err
    return output


@pytest.mark.extended
def test_two_processes_compute_what_one_does(pictures: Path, tmp_path: Path) -> None:
    """In double precision, where what differs is not rounding."""
    python("-W", "ignore", "-m", parallel.__name__, pictures, tmp_path, cwd=ROOT)
    one, two = (torch.load(tmp_path / f"{world}.pt") for world in (1, 2))
    assert len(one["losses"]) == 6
    assert one["losses"][-1] < one["losses"][0] / 2
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-8)
    for name, value in one["state"].items():
        assert torch.allclose(value.double(), two["state"][name].double(), 1e-6, 1e-8), name


@pytest.mark.extended
def test_two_processes_have_the_loss_curve_of_one(
    pictures: Path, both: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "run"
    finish(
        start([sys.executable], "--data-path", pictures, "--batch-size", 16, "--output-dir", alone)
    )
    one, two = log(alone), log(both)
    assert len(one) == len(two) == 2
    # Rounding grows from step to step; the test in double precision is the strict one.
    for a, b, rel in zip(one, two, (0.01, 0.1), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=rel)
        assert b["lr"] == a["lr"]
        assert b["test_top1"] == pytest.approx(a["test_top1"], abs=12), "one image of nine"
    assert one[-1]["loss"] < 0.95 * one[0]["loss"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
@pytest.mark.extended
def test_a_killed_process_ends_the_run_and_resume_goes_on(
    pictures: Path, both: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    options = ("--data-path", pictures, "--batch-size", 8, "--output-dir", output)
    process = start(TORCHRUN, *options, "--checkpoint-steps", 1)
    checkpoint = output / "checkpoint.pth"
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in map(int, children) if b"train.py" in _command(pid)]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, err = finish(process, code=None)
    assert process.returncode != 0
    assert "process of this run ended" in err
    assert "--resume auto" in err
    _, err = finish(start(TORCHRUN, *options, "--resume", "auto"))
    assert "Going on from" in err
    a, b = state(both), state(output)
    assert all(torch.equal(a[name], b[name]) for name in a), "bit for bit"


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
