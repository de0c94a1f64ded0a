"""Float weights as files."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import qzoo
from qzoo.importers.checkpoint import is_float_checkpoint, load_float, save_float
from qzoo.native.model import model_info
from tests.helpers import places, zoo


def test_weights_and_description_come_back(tmp_path: Path) -> None:
    path, images = tmp_path / "float.safetensors", zoo.small_images("shufflenet_v2_x0_5")
    model = zoo.float_model("shufflenet_v2_x0_5", num_classes=3)
    model.train()
    save_float(model, path, classes=["a", "b", "c"], recipe={"train": "by hand"})
    random = torch.get_rng_state()
    again = load_float(path)
    assert torch.equal(torch.get_rng_state(), random) and not again.training
    with torch.no_grad():
        assert torch.equal(again(images), model.eval()(images))
    info = model_info(again)
    assert (info.architecture, info.classes) == ("shufflenet_v2_x0_5", ["a", "b", "c"])
    assert info.builder_kwargs == {"num_classes": 3} and info.recipe == {"train": "by hand"}
    assert is_float_checkpoint(path)


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    int8 = places.INT8
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, other)
    junk = tmp_path / "junk"
    junk.write_bytes(b"junk")
    for path in (int8, other, junk):
        assert not is_float_checkpoint(path)
        with pytest.raises(qzoo.ArtifactError, match=f"{path.name} is not a float checkpoint"):
            load_float(path)
    assert not is_float_checkpoint(tmp_path / "none")
    with pytest.raises(qzoo.ArtifactError, match="does not exist"):
        load_float(tmp_path / "none")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.safetensors"
    save_float(zoo.float_model("shufflenet_v2_x0_5", num_classes=3), path)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(qzoo.ArtifactError, match="damaged"):
        load_float(path)
    path.write_bytes(content.replace(b"shufflenet_v2_x0_5", b"shufflenet_v2_x9_5"))
    with pytest.raises(qzoo.ArtifactError, match="shufflenet_v2_x9_5"):
        load_float(path)
    with pytest.raises(qzoo.ArtifactError, match="qzoo's builders"):
        save_float(torch.nn.Linear(1, 1), path)
