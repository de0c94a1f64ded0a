"""The fractals: the same bytes from a seed, fair splits, contractive systems, a sound cache."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
import random
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qzoo.datasets import FRACTALS_STANDARD, Fractals, ifs
from qzoo.datasets import fractals as module
from qzoo.datasets.fractals import FractalsOptions, fractal_system, fractals_transforms
from qzoo.errors import ArgumentError
from tests.helpers.obstacles import OBSTACLES, put

#: Small, but with images of two chunks.
SMALL: dict[str, Any] = {"classes": 3, "images_per_class": 60, "size": 16, "progress": False}
# Published figures were measured on exactly these images.
SMALL_SHA256 = {
    "train": "c1b00a9d10e80c093e5f2a8623d6e3177b9ee62c3ebe0829564032cb0f458adf",
    "test": "38fdeaf155b4e7560218930b39e148a60172ee6621ef1c9faa26137737bb76c5",
}
STANDARD_TEST_SHA256 = "9281a6170fef09afeb02ce85fccad17a634ba42c10343abc10e1aed4fce24cd7"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("QZOO_HOME", str(tmp_path))
    return tmp_path


def sha256(data: Fractals) -> str:
    return hashlib.sha256(data.images.tobytes()).hexdigest()


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_seed_gives_the_same_bytes_everywhere(split: str) -> None:
    assert sha256(Fractals(split, **SMALL)) == SMALL_SHA256[split]


@pytest.mark.slow
def test_the_yardstick_never_changes() -> None:
    assert sha256(Fractals("test", progress=False)) == STANDARD_TEST_SHA256


def test_workers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_read", lambda *_: None)
    alone, two = (Fractals("train", **SMALL, workers=n) for n in (1, 2))
    assert np.array_equal(alone.images, two.images)


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    large = Fractals("test", **SMALL).images.reshape(3, 60, 16, 16, 3)
    small = Fractals("test", **{**SMALL, "classes": 2, "images_per_class": 7})
    assert np.array_equal(small.images.reshape(2, 7, 16, 16, 3), large[:2, :7])


def test_splits_and_classes_share_no_image() -> None:
    train, test = Fractals("train", **SMALL), Fractals("test", **SMALL)
    every = [image.tobytes() for data in (train, test) for image in data.images]
    assert len(set(every)) == len(every) == 360
    assert not np.array_equal(train.images, Fractals("train", **SMALL, seed=1).images)


def test_items_are_rgb_pictures_class_by_class() -> None:
    data = Fractals("test", **SMALL)
    assert Counter(data.targets) == {0: 60, 1: 60, 2: 60}
    assert data.classes == ("000", "001", "002")
    assert repr(data) == "Fractals(split='test', 180 images of 3 classes, 16 px, seed 0)"
    picture, label = data[61]
    assert (picture.mode, picture.size, label) == ("RGB", (16, 16), 1)
    assert np.array_equal(np.asarray(picture), data.images[61])
    # Neither flat nor saturated pictures.
    spread = data.images.reshape(180, -1).std(axis=1)
    assert spread.min() > 10
    assert (data.images == 255).mean() < 0.1


def test_the_yardstick_is_large_enough() -> None:
    standard = FRACTALS_STANDARD
    assert standard.classes * standard.test_images == 10_000
    assert standard.classes * standard.train_images == 20_000
    assert standard.size >= 32


def test_preset_takes_pictures_as_they_are() -> None:
    data = Fractals("test", fractals_transforms(16), **SMALL)
    image, _ = data[5]
    plain = torch.from_numpy(data.images[5]).permute(2, 0, 1)
    assert torch.allclose(image, plain / 127.5 - 1, atol=1e-6)
    assert fractals_transforms().to_dict()["crop_size"] == FRACTALS_STANDARD.size
    assert fractals_transforms(32, 40).to_dict()["resize_size"] == 40


def test_classes_can_be_told_apart_by_shape_alone() -> None:
    # Nearest class mean on ink of plainly drawn pictures: far above chance, which is 10 %.
    still = ifs.Variation(weight=0.05, jitter=0, slope=0, shift=0, noise=(0, 0), cover=(0, 0))
    means, drawn = [], []
    for label in range(10):
        points = ifs.chaos_game(
            ifs.vary(system := fractal_system(label), 20, generator(label), still),
            system.choice,
            generator(label + 99),
        )
        unit = 2 * ifs._unit_square(points) - 1
        ink = ifs._ink(unit, 16, generator(label)).reshape(20, -1)
        means.append(ink[:10].mean(axis=0))
        drawn.append(ink[10:])
    distances = ((np.stack(drawn)[:, :, None] - np.stack(means)) ** 2).sum(axis=-1)
    right = (distances.argmin(axis=-1) == np.arange(10)[:, None]).mean()
    assert right > 0.7


@pytest.mark.parametrize("label", range(8))
def test_systems_contract_and_fill_their_picture(label: int) -> None:
    system = fractal_system(label, seed=5)
    assert 2 <= len(system.maps) <= 8
    assert np.abs(system.maps).max() <= 1
    varied = ifs.vary(system, 50, generator(), ifs.Variation(weight=0.5, jitter=0.3))
    for maps in (system.maps, varied):
        linear = maps[..., :4].reshape(-1, 2, 2)
        norms = np.linalg.svd(linear, compute_uv=False)[:, 0]
        assert norms.max() <= ifs.MAX_NORM + 1e-9
        assert np.allclose(np.sqrt(ifs.norms_squared(maps)).reshape(-1), norms)
    points = ifs.chaos_game(system.maps[None], system.choice, generator(), walkers=500, steps=50)
    low, high = points.min(axis=1), points.max(axis=1)
    cells = np.minimum((points - low) / (high - low) * 256, 255).astype(int)[0]
    # Other points than those that the system was chosen by: a little less may be touched.
    assert len(np.unique(cells, axis=0)) / 256**2 > ifs.FILLED - 0.03


def test_maps_are_chosen_by_their_determinants() -> None:
    system = fractal_system(3)
    shares = np.abs(np.linalg.det(system.maps[:, :4].reshape(-1, 2, 2)))
    counts = np.bincount(system.choice, minlength=len(shares))
    assert counts.sum() == 256
    assert np.abs(counts - 256 * shares / shares.sum()).max() <= 1


def test_chaos_game_draws_the_sierpinski_triangle() -> None:
    # Its points are those whose coordinates have no binary digit 1 at the same place.
    maps = np.array([[0.5, 0, 0, 0.5, e, f] for e, f in ((0, 0), (0.5, 0), (0, 0.5))])
    choice = np.arange(256) % 3
    points = ifs.chaos_game(maps[None], choice, generator(), walkers=50, steps=200)[0]
    x, y = (points * 256).astype(int).T
    assert (x & y == 0).all()
    assert len(set(zip(x.tolist(), y.tolist(), strict=True))) > 3000  # of 3 ** 8 = 6561


def test_random_states_are_left_alone() -> None:
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    Fractals("train", **SMALL)[3]
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_images_are_drawn_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Fractals("test", **SMALL)
    assert len(list((home / "datasets").iterdir())) == 1
    monkeypatch.setattr(module, "_draw", None)
    assert np.array_equal(Fractals("test", **SMALL).images, first.images)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _swap(path: Path) -> None:
    other = np.zeros((180, 16, 16, 3), dtype=np.uint8)
    np.savez(path, images=other, sha256=np.array("0" * 64))


def _pickle(path: Path) -> None:
    np.savez(path, images=np.array([{}], dtype=object), sha256=np.array("0" * 64))


@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        _swap,
        _pickle,
        lambda p: p.write_bytes(p.read_bytes()[:999]),
        lambda p: p.write_bytes(b""),
    ],
)
def test_a_damaged_cache_is_drawn_anew(
    damage: Any, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Fractals("test", **SMALL)
    (path,) = (home / "datasets").iterdir()
    damage(path)
    assert np.array_equal(Fractals("test", **SMALL).images, first.images)
    assert f"{path} is damaged" in capsys.readouterr().err
    Fractals("test", **SMALL)
    assert capsys.readouterr().err == ""


def _bomb(path: Path) -> None:
    """Writes a file that takes 128 MB when it is unpacked, a thousand times the images."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("images.npy", "w", force_zip64=True) as member:
            for _ in range(8):
                member.write(bytes(1 << 24))
        file.writestr("sha256.npy", b"")


@pytest.mark.skipif(os.name != "posix", reason="pipes and links are made as on Unix")
@pytest.mark.parametrize("kind", [*OBSTACLES, "bomb"])
def test_whatever_lies_where_the_images_belong(kind: str, home: Path) -> None:
    first = Fractals("test", **SMALL)
    (path,) = (home / "datasets").iterdir()
    path.unlink()
    outside = None if kind == "bomb" else put(kind, path)
    if outside is None:
        _bomb(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = Fractals("test", **SMALL)
    assert np.array_equal(again.images, first.images)
    assert outside is None or outside.read_bytes() == b"mine"
    assert path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20


def test_without_a_cache_the_images_are_drawn_all_the_same(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "datasets").write_bytes(b"a file in the way")
    assert len(Fractals("test", **SMALL)) == 180
    assert "not kept in the cache" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("split", "testing", r"'testing'.*train, test.*Did you mean 'test'"),
        ("classes", 1, "classes .* from 2 to 10000, not 1"),
        ("classes", True, "not True"),
        ("images_per_class", 0, "images_per_class .* not 0"),
        ("size", 7.5, "size .* from 8 to 512, not 7.5"),
        ("seed", -1, "seed .* not -1"),
        ("workers", 0, "workers .* not 0"),
    ],
)
def test_bad_arguments(argument: str, value: Any, message: str, home: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        Fractals(**{**SMALL, argument: value})
    assert not list(home.iterdir())


def test_options_come_as_keywords_or_in_an_object() -> None:
    shown = inspect.signature(Fractals).parameters
    fields = dataclasses.fields(FractalsOptions)
    assert {f.name: f.default for f in fields} == {f.name: shown[f.name].default for f in fields}
    options = FractalsOptions(**{**SMALL, "seed": 1})
    both = Fractals("test", options=options, seed=SMALL.get("seed", 0))
    assert np.array_equal(both.images, Fractals("test", **SMALL).images)
    with pytest.raises(TypeError, match="clases"):
        Fractals("test", clases=3)  # type: ignore[call-arg]
