"""One way to read folders: the same pictures and labels wherever a folder is taken."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qzoo.analysis import analyze, compare
from qzoo.artifact.format import ModelInfo
from qzoo.datasets import Digits
from qzoo.datasets.holdout import hold_out
from qzoo.datasets.sources import open_data
from qzoo.errors import ArgumentError, DataWarning
from qzoo.native.model import model_info
from qzoo.pictures.folders import halves, places_of, read_folder, same_names
from qzoo.quantize import ptq, tune
from qzoo.quantize.data import open_calibration, open_labelled
from qzoo.transforms import ImageClassification
from tests.helpers.trained import digits_model

CAFE = unicodedata.normalize("NFC", "café")


def draw(path: Path, grey: int = 100) -> None:
    """Writes a picture of one grey value, by which readers can be told what they read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), grey).save(path)


def shade(picture: Image.Image) -> torch.Tensor:
    """A transform that keeps nothing but the grey value."""
    return torch.full((3, 2, 2), np.asarray(picture)[0, 0, 0] / 255)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures of each of three classes, each picture with a grey value of its own."""
    root = tmp_path / "photos"
    for label, name in enumerate(("ant", "bee", "cat")):
        for i in range(2):
            draw(root / name / f"{i}.png", 10 * (1 + 2 * label + i))
    return root


def seen_by_each_reader(root: Path) -> dict[str, list[tuple[int, int | None]]]:
    """Every reader's pairs of a grey value and a label (None where it knows no labels)."""
    data = open_data(root)
    split = data.split("all", shade)
    labelled = open_labelled(root, transform=shade)
    held = hold_out(data, 0.5)
    calibration = open_calibration(root, images=99, batch_size=5, seed=0, transform=shade)

    def grey(x: torch.Tensor) -> int:
        return round(255 * float(x.flatten()[0]))

    return {
        "open_data": [(grey(x), y) for x, y in (split[i] for i in range(len(split)))],
        "open_labelled": [(grey(x), int(y)) for xs, ys in labelled for x, y in zip(xs, ys)],  # noqa: B905
        "hold_out": sorted(
            (grey(part[i][0]), part[i][1])
            for part in (held.split("train", shade), held.split("test", shade))
            for i in range(len(part))
        ),
        "open_calibration": [(grey(x), None) for batch in calibration for x in batch],
    }


def _hidden_class(root: Path) -> None:
    draw(root / ".ipynb_checkpoints" / "0.png")


def _hidden_deeper(root: Path) -> None:
    draw(root / "bee" / ".thumbnails" / "0.png")
    draw(root / "bee" / ".hidden.png")


def _apple_double(root: Path) -> None:
    (root / "ant" / "._0.png").write_bytes(b"\0\5\26\7 no picture")
    (root / "__MACOSX" / "ant").mkdir(parents=True)
    (root / "__MACOSX" / "ant" / "0.png").write_bytes(b"no picture")


def _of_systems(root: Path) -> None:
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "labels.txt"):
        (root / "cat" / name).write_bytes(b"no picture")
        (root / name).write_bytes(b"no picture")
    for name in ("$RECYCLE.BIN", "System Volume Information", "lost+found", "@eaDir"):
        (root / name).mkdir()
    draw(root / "ant" / "@eaDir" / "0.png" / "thumb.jpg")


def _nested(root: Path) -> None:
    for place in ("2019/may", "2020"):
        (root / "bee" / place).mkdir(parents=True)
    (root / "bee" / "0.png").rename(root / "bee" / "2019" / "may" / "0.png")
    (root / "bee" / "1.png").rename(root / "bee" / "2020" / "1.JPG")


def _linked_class(root: Path) -> None:
    (root / "cat").rename(root.parent / "elsewhere")
    (root / "cat").symlink_to(root.parent / "elsewhere", target_is_directory=True)


def _linked_pictures(root: Path) -> None:
    (root / "cat" / "0.png").rename(root.parent / "kept.png")
    (root / "cat" / "0.png").symlink_to(root.parent / "kept.png")
    (root / "ant").rename(root.parent / "ants")
    (root / "ant").mkdir()
    (root / "ant" / "more").symlink_to(root.parent / "ants", target_is_directory=True)


def _endless(root: Path) -> None:
    for target in (root, root.parent, root / "bee", Path("/")):
        (root / "bee" / f"back{len(target.parts)}").symlink_to(target, target_is_directory=True)
    (root / "cat" / "deep").mkdir()
    (root / "cat" / "deep" / "up").symlink_to("..", target_is_directory=True)


CLUTTER = [
    _hidden_class, _hidden_deeper, _apple_double, _of_systems, _nested, _linked_class,
    _linked_pictures, _endless,
]  # fmt: skip


@pytest.mark.parametrize("change", CLUTTER, ids=lambda f: f.__name__[1:])
def test_all_readers_agree_on_pictures_and_labels(
    change: Callable[[Path], None], photos: Path
) -> None:
    change(photos)
    truth = [(10 * (i + 1), i // 2) for i in range(6)]
    found = seen_by_each_reader(photos)
    assert sorted(found["open_data"]) == found["hold_out"] == truth
    assert sorted(found["open_labelled"]) == truth
    assert sorted(grey for grey, _ in found["open_calibration"]) == [g for g, _ in truth]


@pytest.mark.parametrize("suffix", ["gif", "avif", "jfif", "PNG", "tiff", "pgm", "webp", "JPEG"])
def test_every_format_that_is_read_counts(suffix: str, photos: Path) -> None:
    (photos / "ant" / "0.png").rename(photos / "ant" / f"0.{suffix}")
    assert len(read_folder(photos).files) == 6


def test_pictures_that_are_left_out_are_told(photos: Path) -> None:
    draw(photos / "overview.png", 99)
    (photos / "cat" / "phone.HEIC").write_bytes(b"")
    with pytest.warns(DataWarning) as told:
        data = open_data(photos)
    assert data.split("all", None).targets == [0, 0, 1, 1, 2, 2]
    said = [str(w.message) for w in told]
    assert any("overview.png" in s and "beside" in s for s in said)
    assert any("phone.HEIC" in s and "does not read" in s for s in said)
    # Calibration needs no classes.
    with pytest.warns(DataWarning, match="HEIC"):
        calibration = open_calibration(photos, images=9, batch_size=9, seed=0, transform=shade)
    assert calibration.count == 7


def test_what_would_lose_pictures_is_refused(photos: Path) -> None:
    (photos / "dog").symlink_to(photos / "moved away")
    with pytest.raises(ArgumentError, match=r"dog is a link that leads nowhere"):
        open_data(photos)
    (photos / "dog").unlink()
    (photos / "dog").symlink_to("dog")
    with pytest.raises(ArgumentError, match=r"dog is a link that leads nowhere"):
        open_labelled(photos, transform=shade)
    (photos / "dog").unlink()
    (photos / "dog").mkdir()
    with pytest.raises(ArgumentError, match=r"dog holds no pictures"):
        open_labelled(photos, transform=shade)
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_folder(photos / "ant" / "0.png")


def test_a_data_set_that_is_split_is_no_data_set_of_two_classes(photos: Path) -> None:
    root = photos.parent / "split"
    root.mkdir()
    photos.rename(root / "val")
    draw(root / "train" / "ant" / "0.png", 200)
    draw(root / "train" / "bee" / "0.png", 210)
    draw(root / "train" / "cat" / "0.png", 220)
    (_, labels), *rest = open_labelled(root, transform=shade)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] and not rest
    calibration = open_calibration(root, images=9, batch_size=9, seed=0, transform=shade)
    assert calibration.count == 3
    assert set(halves(root)) == {"train", "test"}
    # Among vehicles, train is a class.
    draw(root.parent / "vehicles" / "train" / "0.png")
    draw(root.parent / "vehicles" / "car" / "0.png")
    assert open_data(root.parent / "vehicles").classes == ["car", "train"]


def test_classes_go_by_name() -> None:
    names = ["dog", CAFE, "cat"]
    decomposed = unicodedata.normalize("NFD", CAFE)
    assert decomposed != CAFE
    assert places_of(["cat", decomposed], names) == [2, 1]
    assert places_of(["bird"], names) is None
    assert same_names([decomposed, "a"], [CAFE, "a"]) and not same_names(["a", CAFE], [CAFE, "a"])
    assert same_names(None, None) and not same_names(None, [])
    with pytest.raises(ArgumentError, match="2 classes of the name 'crane'"):
        places_of(["crane"], ["crane", "heron", "crane"])


@pytest.mark.parametrize("spelling", ["NFC", "NFD"])
def test_both_spellings_of_a_name_are_one_class(spelling: str, photos: Path) -> None:
    name = unicodedata.normalize(spelling, CAFE)
    (photos / "bee").rename(photos / name)
    info = ModelInfo("resnet18", {"num_classes": 4}, classes=["cat", "dog", CAFE, "ant"])
    (_, labels), *_ = open_labelled(photos, transform=shade, model=info)
    assert sorted(labels.tolist()) == [0, 0, 2, 2, 3, 3]
    other = unicodedata.normalize("NFD" if spelling == "NFC" else "NFC", CAFE)
    draw(photos / other / "3.png")
    assert read_folder(photos).classes == ["ant", CAFE, "cat"]
    assert read_folder(photos).labels == [0, 0, *[1] * 3, 2, 2] or os.name == "nt"


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits without a 3, and with what ends up in folders of pictures."""
    root = tmp_path_factory.mktemp("digits")
    data = Digits("test")
    for index in range(0, len(data), 4):
        picture, label = data[index]
        if label != 3:
            (root / str(label)).mkdir(exist_ok=True)
            picture.save(root / str(label) / f"{index}.png")
    _hidden_class(root)
    return root


def test_an_absent_class_shifts_no_labels_of_tune_compare_and_analyze(digits_folder: Path) -> None:
    model = digits_model("shufflenet_v2_x0_5")
    tuned = tune(model, digits_folder, 100, recipe="fast", images=16, progress=False)
    assert tuned.float_top1 is not None and tuned.float_top1 > 90
    assert tuned.top1 is not None and tuned.top1 > 90
    labelled = open_labelled(
        digits_folder,
        transform=ImageClassification.from_dict(model_info(model).transforms),
        model=model_info(model),
    )
    labels = torch.cat([y for _, y in labelled if y is not None])
    assert labels.unique().tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    for measure in (compare, analyze):
        (digits_folder / "ten").mkdir(exist_ok=True)
        draw(digits_folder / "ten" / "10.png")
        with pytest.raises(ArgumentError, match="does not know 'ten'"):
            measure(model, tuned.artifact, digits_folder, progress=False)


def test_ptq_uses_every_linked_picture(photos: Path) -> None:
    _linked_class(photos)
    _linked_pictures(photos)
    int8 = ptq(
        digits_model("shufflenet_v2_x0_5"),
        photos,
        recipe="fast",
        transforms=ImageClassification(crop_size=32, resize_size=32),
        progress=False,
    )
    assert model_info(int8).recipe["calibration_images"] == 6
