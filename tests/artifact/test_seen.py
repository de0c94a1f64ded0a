"""What a model has seen: notes of pictures by content, bounded, and checked when they are read."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import ImageFolder

import qzoo
from qzoo.artifact import seen as module
from qzoo.artifact.format import Artifact
from qzoo.artifact.seen import Notes, check_seen, file_sha256, files_of, hashes, noted
from qzoo.errors import ArtifactError, ImageError
from qzoo.importers.checkpoint import load_float, save_float
from qzoo.native.model import model_info
from qzoo.sharing.model_card import make_config


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def test_pictures_are_known_by_content(tmp_path: Path) -> None:
    for name, text in (("a.png", "one"), ("b.png", "one"), ("c.png", "two")):
        (tmp_path / name).write_text(text)
    found = hashes([tmp_path / n for n in ("a.png", "b.png", "c.png")])
    assert found[0] == found[1] == hashlib.sha256(b"one").digest() != found[2]
    notes = Notes(noted({}, "training", found[:1]).values())
    assert [notes.has(d) for d in found] == [True, True, False]
    with pytest.raises(ImageError, match=r"none\.png"):
        file_sha256(tmp_path / "none.png")


def test_notes_add_up_whatever_the_order() -> None:
    one = noted(noted({}, "training", map(digest, range(9))), "calibration", [digest(3)])
    two = noted({}, "calibration", [digest(3), digest(3)])
    for low, high in ((5, 9), (0, 7)):
        two = noted(two, "training", map(digest, range(low, high)))
    assert one == two and list(one) == list(two) == ["training", "calibration"]
    assert noted(one, "training", []) == one
    check_seen(one)
    # Eight letters a picture, and nothing but the hash.
    assert len(one["training"]) == 9 * 8
    assert base64.b64decode(one["calibration"]) == digest(3)[:6]


def test_many_pictures_are_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 200)
    halves = noted(noted({}, "training", map(digest, range(5000))), "training",
                   map(digest, range(4000, 10000)))  # fmt: skip
    assert halves == noted({}, "training", map(digest, range(10000)))
    check_seen(halves)
    notes = Notes(halves.values())
    sure = [n for n in range(20000) if notes.covers(digest(n))]
    assert all(notes.has(digest(n)) == (n < 10000) for n in sure)
    assert 300 < len(sure) < 500, "as many of the pictures that were seen as of the others"
    assert sum(n < 10000 for n in sure) == 200


@pytest.mark.parametrize(
    "bad",
    [
        [], "text", None, {"training": 5}, {"training": ""}, {"training": "abc"},
        {"other": "AAAAAAAA"}, {"training": "AAAAAAA!"}, {"training": "AAAAAAABAAAAAAAA"},
        {"training": "AAAAAAAAAAAAAAAA"}, {"training": "A" * (8 * 65536 + 8)},
        {"calibration": ["AAAAAAAA"]}, {"training": "ÄÄÄÄÄÄÄÄ"},
    ],
)  # fmt: skip
def test_other_notes_are_refused(bad: object, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="seen"):
        check_seen(bad)
    model = qzoo.shufflenet_v2_x0_5(num_classes=2)
    save_float(model, tmp_path / "float.safetensors", seen=bad)
    if bad:  # nothing to say is not written
        with pytest.raises(ArtifactError, match="seen"):
            load_float(tmp_path / "float.safetensors")


def test_files_carry_the_notes(tmp_path: Path) -> None:
    seen = noted(noted({}, "training", map(digest, range(50))), "calibration", [digest(1)])
    path = tmp_path / "float.safetensors"
    save_float(qzoo.shufflenet_v2_x0_5(num_classes=2), path, seen=seen)
    assert model_info(load_float(path)).seen == seen
    model = qzoo.shufflenet_v2_x0_5(weights="DIGITS_X86_V1", quantize=True)
    plain, noting = tmp_path / "plain.safetensors", tmp_path / "noting.safetensors"
    qzoo.save(model, plain)
    qzoo.save(model, noting, seen=seen)
    assert 0 < noting.stat().st_size - plain.stat().st_size < 600
    assert b'"seen"' not in plain.read_bytes(), "a file without notes is as it always was"
    again = Artifact.read(noting)
    assert again.info.seen == seen
    assert model_info(qzoo.load(noting)).seen == seen
    assert Artifact.read(plain).info.seen == {}
    # Published with the model, but nothing for its card; and left out on request.
    assert "seen" not in json.loads(make_config(again, noting.read_bytes()))
    qzoo.save(qzoo.load(noting), tmp_path / "without.safetensors", seen={})
    assert (tmp_path / "without.safetensors").read_bytes() == plain.read_bytes()
    with pytest.raises(ArtifactError, match="seen"):
        qzoo.save(model, plain, seen={"training": "no note"})


def test_files_of_data_sets(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folder = ImageFolder(str(tmp_path))
    paths = [str(tmp_path / n) for n in ("a/1.png", "a/2.png", "b/3.png")]
    assert files_of(folder) == paths
    assert files_of(Subset(folder, [2, 0])) == [paths[2], paths[0]]
    assert files_of(TensorDataset(torch.zeros(3, 1))) is None
    assert files_of([1, 2, 3]) is None
    folder.samples = [("no such file", 0)] * 3
    assert files_of(folder) is None
