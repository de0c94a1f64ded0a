"""references/qat.py and evaluate.py: from a float checkpoint to a trained int8 model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qzoo
from qzoo.artifact.format import Artifact
from qzoo.datasets import Digits
from qzoo.datasets.evaluate import evaluate
from qzoo.importers.checkpoint import save_float
from qzoo.quantize import qat
from qzoo.transforms import ImageClassification
from tests.helpers import trained
from tests.helpers.calling import call, fail, rows, succeed

SIZE = "32"
TINY = [
    *("--data", "digits", "--batch-size", "64", "--threads", "1", "--num-calibration-batches", "2"),
    *("--train-crop-size", SIZE, "--augment", "none", "--recipe", "fast"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float weights that know the digits."""
    path = tmp_path_factory.mktemp("float") / "model.safetensors"
    save_float(trained.digits_model("shufflenet_v2_x0_5"), path)
    return path


def test_qat_trains_converts_and_measures(checkpoint: Path, tmp_path: Path) -> None:
    output, results = tmp_path / "run", tmp_path / "results.csv"
    options = ("--checkpoint", checkpoint, "--epochs", 1, "--lr", 0.001, "--teacher", "self")
    printed = succeed(
        "qat", *TINY, *options, "--learn-ranges", "--output-dir", output, "--results", results
    )
    assert {p.name for p in output.iterdir()} == {
        "checkpoint.pth", "int8.safetensors", "log.csv", "ptq.safetensors",
    }  # fmt: skip
    row = rows(results)[0]
    assert all(f"{kind}: top-1" in printed for kind in ("float", "PTQ", "QAT"))
    # The artifact measured anew, from its own description of itself.
    artifact = Artifact.read(output / "int8.safetensors")
    assert artifact.info.transforms is not None
    data = Digits("test", ImageClassification.from_dict(artifact.info.transforms))
    metrics = evaluate(qzoo.load(output / "int8.safetensors"), data, progress=False)
    assert float(row["qat_top1"]) == pytest.approx(metrics.top1, abs=1e-3)
    assert artifact.info.metrics["digits (held-out 25 %)"]["acc@1"] == float(row["qat_top1"])
    assert abs(float(row["qat_top1"]) - float(row["fake_quantized_top1"])) < 0.5
    assert artifact.info.classes == [str(d) for d in range(10)]
    assert "references/qat.py --data digits" in artifact.info.recipe["qat"]
    # Something was learned: the integers are not those of PTQ.
    start = Artifact.read(output / "ptq.safetensors")
    assert any(
        not torch.equal(v, start.tensors[k])
        for k, v in artifact.tensors.items()
        if v.dtype == torch.int8
    )
    printed = succeed("evaluate", "--data", "digits", "--checkpoint", output / "int8.safetensors")
    assert f"top-1 {metrics.top1:.2f} %" in printed


@pytest.mark.extended
def test_resumed_qat_ends_like_an_uninterrupted_one(checkpoint: Path, tmp_path: Path) -> None:
    options = (*TINY, "--checkpoint", checkpoint, "--lr", 0.001, "--lr-scheduler", "step")
    options += ("--num-observer-update-epochs", 1)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    succeed("qat", *options, "--epochs", 2, "--output-dir", straight)
    succeed("qat", *options, "--epochs", 1, "--output-dir", broken)
    printed = succeed("qat", *options, "--epochs", 2, "--output-dir", broken, "--resume", "auto")
    assert "Going on from" in printed
    one, two = (Artifact.read(f / "int8.safetensors") for f in (straight, broken))
    assert one.layers == two.layers
    assert all(torch.equal(v, two.tensors[k]) for k, v in one.tensors.items())


@pytest.mark.extended
def test_observers_and_batch_norm_freeze_when_the_flags_say(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    before = qat.Schedule.apply

    def spy(self: qat.Schedule, model: torch.nn.Module, epoch: int = 0, step: int = 0) -> None:
        before(self, model, epoch, step)
        seen.append((epoch, *model.get_extra_state().tolist()))

    monkeypatch.setattr(qat.Schedule, "apply", spy)
    options = ("--checkpoint", checkpoint, "--epochs", 3, "--lr", 0.001, "--batch-norm", "keep")
    freeze = ("--num-observer-update-epochs", 2, "--num-batch-norm-update-epochs", 1)
    succeed("qat", *TINY, *options, *freeze, "--output-dir", tmp_path)
    assert seen == [(0, False, False), (1, False, True), (2, True, True)]


def test_a_model_of_the_zoo_gets_a_head_for_the_classes(tmp_path: Path) -> None:
    start = ("--model", "shufflenet_v2_x0_5", "--weights", "none", "--epochs", 1, "--lr", 0.001)
    printed = succeed("qat", *TINY, *start, "--output-dir", tmp_path)
    assert "random weights" in printed
    assert len(Artifact.read(tmp_path / "int8.safetensors").tensors["fc.weight"]) == 10


@pytest.mark.filterwarnings("ignore:.* layers round in int8 where PT2E")
@pytest.mark.parametrize("flags", [("--recipe", "none"), ("--flow", "pt2e")])
def test_other_starts(checkpoint: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    if "pt2e" in flags:
        pytest.importorskip("torchao")
    options = ("--checkpoint", checkpoint, "--epochs", 1, "--lr", 0.001)
    printed = succeed("qat", *TINY, *options, *flags, "--output-dir", tmp_path)
    assert "PTQ" not in printed
    assert Artifact.read(tmp_path / "int8.safetensors").info.classes is not None


def test_torchvisions_preset_for_qat_goes_through(checkpoint: Path, tmp_path: Path) -> None:
    """Its options are this script's; the later ones make it small."""
    options = (*TINY, "--epochs", 1, "--checkpoint", checkpoint, "--output-dir", tmp_path)
    resize = ("--val-resize-size", SIZE, "--val-crop-size", SIZE)
    succeed("qat", "--preset", "torchvision-qat-mobilenet_v2", *options, *resize)
    assert Artifact.read(tmp_path / "int8.safetensors").info.backend == "qnnpack"


# What can be wrong


def test_what_qat_refuses(checkpoint: Path, tmp_path: Path) -> None:
    out = ("--output-dir", tmp_path / "run")
    assert "--checkpoint FILE or" in fail("qat", *TINY, *out)
    assert "does not exist" in fail("qat", *TINY, *out, "--checkpoint", tmp_path / "none")
    assert "leave --model out" in fail(
        "qat", *TINY, *out, "--checkpoint", checkpoint, "--model", "resnet18"
    )
    assert "do not belong together" in fail(
        "qat", *TINY, *out, "--checkpoint", checkpoint, "--data", "fractals"
    )
    assert "matches no layer" in fail(
        "qat", *TINY, *out, "--checkpoint", checkpoint, "--keep-float", "nothing*"
    )
    diverging = ("--lr", 1e30, "--epochs", 1, "--checkpoint", checkpoint)
    assert "diverged" in fail("qat", *TINY, *out, *diverging)
    assert not (tmp_path / "run" / "int8.safetensors").exists()
    other = ("--output-dir", tmp_path / "other")
    assert "holds a shufflenet" in fail(
        "qat", *TINY, *other, "--checkpoint", checkpoint, "--model", "mobilenet_v2"
    )
    teacher = ("--teacher", "self", "--data", "digits", "--model", "shufflenet_v2_x0_5")
    assert "--teacher self" in fail(
        "train", *teacher, "--train-crop-size", SIZE, "--batch-size", 64, "--output-dir", tmp_path
    )


def test_what_evaluate_refuses(checkpoint: Path, tmp_path: Path) -> None:
    data = ("--data", "digits")
    assert "--checkpoint FILE or" in fail("evaluate", *data)
    assert "are for int8 models" in fail(
        "evaluate", *data, "--checkpoint", checkpoint, "--runtime", "torch"
    )
    assert "do not belong together" in fail(
        "evaluate", "--data", "fractals", "--checkpoint", checkpoint
    )
    done = call("evaluate", *data, "--checkpoint", checkpoint, "--results", tmp_path / "r.csv")
    assert done.exit_code == 0, done.output
    row = rows(tmp_path / "r.csv")[0]
    assert row["kind"] == "float" and float(row["top1"]) > 90
