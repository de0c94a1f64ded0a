"""save and load: the same logits, bit for bit, in another process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import qzoo
from tests.helpers.calling import python
from tests.helpers.zoo import (
    BUILDERS,
    ENGINES,
    SLIM,
    eager_ptq,
    engine,
    float_model,
    quiet,
    small_images,
    uncalibrated,
)

#: Loads every artifact of a folder and stores its logits beside it.
CHILD = """
import sys, warnings
from pathlib import Path
import torch, qzoo
torch.set_num_threads(1)
warnings.simplefilter("ignore")
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    case = torch.load(path.with_suffix(".pt"))
    torch.backends.quantized.engine = case["engine"]
    with torch.no_grad():
        model = qzoo.load(path)
        same = torch.equal(model(case["images"]), case["logits"])
    print(path.stem, type(model).__name__, "same" if same else "DIFFERENT", flush=True)
"""


def store(model: nn.Module, name: str, path: Path) -> None:
    images = small_images(name)
    qzoo.save(model, path)
    with torch.no_grad(), quiet():
        logits = model(images)
    assert bool(torch.isfinite(logits).all())
    assert len(logits.unique()) > 20, "these logits could be equal by chance"
    case = {"images": images, "logits": logits, "engine": torch.backends.quantized.engine}
    torch.save(case, path.with_suffix(".pt"))


def load_in_a_fresh_process(folder: Path) -> list[list[str]]:
    return [line.split() for line in python("-c", CHILD, folder).stdout.splitlines()]


@pytest.mark.extended
def test_every_builder_comes_back_in_a_fresh_process(tmp_path: Path) -> None:
    for name in BUILDERS:
        model = uncalibrated(name, **SLIM.get(name, {}))
        store(model, name, tmp_path / f"{name}.safetensors")
    results = load_in_a_fresh_process(tmp_path)
    assert [r[0] for r in results] == sorted(BUILDERS)
    assert {r[2] for r in results} == {"same"}


@pytest.mark.extended
def test_every_backend_comes_back_in_a_fresh_process(tmp_path: Path) -> None:
    name = "mobilenet_v3_small"
    for backend in ENGINES:
        model = eager_ptq(float_model(name), small_images(name, 8), backend)
        with engine(backend):
            store(model, name, tmp_path / f"{backend}.safetensors")
    results = load_in_a_fresh_process(tmp_path)
    assert {r[2] for r in results} == {"same"} and len(results) == len(ENGINES)


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    model = uncalibrated("mobilenet_v3_small", num_classes=10)
    qzoo.save(model, tmp_path / "a.safetensors")
    qzoo.save(qzoo.load(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    first, second = (tmp_path / f"{n}.safetensors" for n in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_a_head_that_the_user_put_in_comes_back(tmp_path: Path) -> None:
    model = float_model("resnet18")
    model.fc = nn.Linear(512, 3)
    images = small_images("resnet18")
    int8 = eager_ptq(model, images)
    qzoo.save(int8, tmp_path / "pets.safetensors", classes=["cat", "dog", "bird"])
    loaded = qzoo.load(tmp_path / "pets.safetensors")
    with quiet():
        assert torch.equal(loaded(images), int8(images))
    info = qzoo.Artifact.read(tmp_path / "pets.safetensors").info
    assert info.builder_kwargs == {"num_classes": 3}
    assert info.classes == ["cat", "dog", "bird"]


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    with pytest.raises(qzoo.ArtifactError, match="'conv1' is still float"):
        qzoo.save(float_model("resnet18"), target)
    with pytest.raises(qzoo.ArtifactError, match="not made by one of qzoo's builders"):
        qzoo.save(nn.Linear(2, 2), target)
    int8 = uncalibrated("resnet18")
    with pytest.raises(qzoo.ArtifactError, match="1000 logits and 1 class names"):
        qzoo.save(int8, target, classes=["cat"])
    with pytest.raises(qzoo.ArtifactError, match="not plain JSON"):
        qzoo.save(int8, target, recipe={"observer": torch.nn.ReLU})
    int8.set_submodule("layer4.1", nn.Identity())
    with pytest.raises(qzoo.ArtifactError, match=r"'layer4\.1' is a identity"):
        qzoo.save(int8, target)
    assert not list(tmp_path.iterdir())
