"""Data by name and folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qzoo
from qzoo.datasets.digits import Digits
from qzoo.datasets.fractals import FractalsConfig
from qzoo.datasets.sources import Relabelled, open_data
from qzoo.transforms import ImageClassification


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name in ("dark", "bright"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_names() -> None:
    digits = open_data("digits")
    assert (digits.name, digits.splits, len(digits.classes)) == ("digits", ("train", "test"), 10)
    assert digits.split("test", None).targets == Digits("test").targets
    assert digits.preset().crop_size == [64]
    small = FractalsConfig(classes=3, train_images=2, test_images=1, size=16)
    fractals = open_data("fractals", fractals=small)
    assert len(fractals.split("train", None)) == 6 and len(fractals.split("test", None)) == 3
    assert fractals.classes == ["000", "001", "002"] and fractals.size == 16


def test_folders_with_a_held_out_half(pictures: Path) -> None:
    data = open_data(pictures)
    assert (data.name, data.held_out, data.splits) == ("photos", "photos (val)", ("train", "test"))
    assert data.classes == ["bright", "dark"]
    train, test = data.split("train", None), data.split("test", data.preset(16))
    assert train.targets == [0] * 3 + [1] * 3 and test.targets == [0, 0, 1, 1]
    assert train[0][0].mode == "RGB" and test[3][0].shape == (3, 16, 16) and test[3][1] == 1


def test_folders_of_classes_and_of_pictures(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    data = open_data("val")
    assert (data.name, data.splits, data.classes) == ("val", ("all",), ["bright", "dark"])
    assert data.split("all", None).targets == [0, 0, 1, 1]
    monkeypatch.chdir(pictures / "val" / "dark")
    (pictures / "val" / "dark" / "notes.txt").write_text("no picture")
    alone = open_data(".")
    assert (alone.name, alone.splits, alone.classes) == ("dark", ("all",), [])
    found = alone.split("all", ImageClassification(crop_size=8))
    assert len(found) == 2 and isinstance(found[1], torch.Tensor)


def test_hidden_folders_shift_no_labels(pictures: Path) -> None:
    for half in ("train", "val"):
        hidden = pictures / half / ".ipynb_checkpoints"
        hidden.mkdir()
        (hidden / "0.png").write_bytes((pictures / half / "dark" / "0.png").read_bytes())
    for data, split in ((open_data(pictures), "test"), (open_data(pictures / "val"), "all")):
        found = data.split(split, None)
        assert data.classes == found.classes == ["bright", "dark"]
        assert found.targets == [0, 0, 1, 1]
        for (path, label), target in zip(found.samples, found.targets, strict=True):
            assert Path(path).parent.name == data.classes[label] and label == target


def test_an_empty_class_is_told_before_work_starts(pictures: Path) -> None:
    for half, shown in (("train", pictures), ("val", pictures), ("val", pictures / "val")):
        folder = pictures / half / "dark"
        kept = {file: file.read_bytes() for file in folder.iterdir()}
        for file in kept:
            file.unlink()
        (folder / "notes.txt").write_text("no picture")
        with pytest.raises(qzoo.ArgumentError) as caught:
            open_data(shown)
        assert f"The class folder {folder} holds no pictures" in str(caught.value)
        for file, content in kept.items():
            file.write_bytes(content)
    deeper = pictures / "val" / "dark" / "more"
    deeper.mkdir()
    for file in list((pictures / "val" / "dark").glob("*.png")):
        file.rename(deeper / file.name)
    assert open_data(pictures).split("test", None).targets == [0, 0, 1, 1]


def test_labels_are_matched_by_name_or_number(pictures: Path) -> None:
    data = open_data(pictures)
    assert data.labels_of(["dark", "red", "bright"], 3) == [2, 0]
    assert data.labels_of(None, 2) == [0, 1]
    relabelled = Relabelled(data.split("test", None), [2, 0])
    assert relabelled.targets == [2, 2, 0, 0] and relabelled[3][1] == 0 and len(relabelled) == 4
    for names, count in ((["dark", "red"], 2), (None, 3), (["a", "b"], 2)):
        with pytest.raises(qzoo.ArgumentError, match="do not belong together"):
            data.labels_of(names, count)
    for half in ("train", "val"):
        for old, new in (("bright", "n01440764"), ("dark", "n01443537")):
            (pictures / half / old).rename(pictures / half / new)
    assert open_data(pictures).labels_of(["tench", "goldfish"], 2) == [0, 1]
    alone = open_data(pictures / "val" / "n01440764")
    with pytest.raises(qzoo.ArgumentError, match="a folder per class"):
        alone.labels_of(None, 2)


def test_what_is_no_data_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(qzoo.ArgumentError, match="Did you mean 'fractals'"):
        open_data("fractal")
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(qzoo.ArgumentError, match="class"):
        open_data(tmp_path / "empty").split("all", None)
    with pytest.raises(qzoo.ArgumentError, match="neither pictures nor a folder per class"):
        open_data(tmp_path / "empty" / "class")
    (pictures / "val" / "grey").mkdir()
    with pytest.raises(qzoo.ArgumentError, match="differ in the classes grey"):
        open_data(pictures)
    (pictures / "val").rename(pictures / "test")
    with pytest.raises(qzoo.ArgumentError, match="val is missing"):
        open_data(pictures)
    with pytest.raises(qzoo.ArgumentError, match="larger than"):
        open_data("digits").preset(9, 8)
