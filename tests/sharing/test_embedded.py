"""The bundled digits weights: their published figures are measured again, image by image."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import WeightsEnum

import qzoo
from qzoo import published
from qzoo.artifact.format import Artifact
from qzoo.datasets import Digits
from qzoo.datasets.evaluate import evaluate
from qzoo.errors import ArtifactError
from qzoo.registry import get_entry, list_models
from qzoo.sharing.convert import check_model
from tests.helpers.places import DIGITS

HELD_OUT = "digits (held-out 25 %)"
WEIGHTS: list[Any] = [member for name in list_models() for member in get_entry(name).weights]
EMBEDDED = [member for member in WEIGHTS if member.embedded]
LIMIT_BYTES = 2_000_000

each = pytest.mark.parametrize("member", EMBEDDED, ids=str)


def test_the_default_of_the_demo_is_bundled() -> None:
    assert qzoo.ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1 in EMBEDDED


@each
def test_published_accuracy_is_the_measured_one(member: WeightsEnum) -> None:
    model = qzoo.get_model(member.meta["architecture"], weights=member.name, quantize=True)
    metrics = evaluate(model, Digits("test", member.transforms()), progress=False)
    assert metrics.n == 445
    assert member.meta["_metrics"] == {HELD_OUT: metrics.to_dict()}
    lost = member.meta["float_metrics"][HELD_OUT]["acc@1"] - metrics.top1
    assert lost <= 0.3


@each
def test_metadata_describes_the_file(member: WeightsEnum) -> None:
    path, meta = member.file(), member.meta
    artifact = Artifact.read(path)
    info, model = artifact.info, get_entry(meta["architecture"]).skeleton(meta["builder_kwargs"])
    assert path.stat().st_size < LIMIT_BYTES
    assert meta["_file_size"] == round(path.stat().st_size / 2**20, 3)
    assert meta["num_params"] == sum(p.numel() for p in model.parameters())
    assert info.architecture == meta["architecture"]
    assert info.backend == meta["backend"]
    assert info.classes == meta["categories"] == list(Digits.classes)
    assert info.builder_kwargs == meta["builder_kwargs"]
    assert info.transforms == member.transforms().to_dict()
    assert info.metrics == meta["_metrics"]
    assert meta["recipe"] == f"{info.recipe['train']} && {info.recipe['quantize']}"
    assert meta["float_file_size_mib"] / meta["_file_size"] > 3


@each
def test_bundled_file_is_verified(
    member: WeightsEnum, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = member.file()
    monkeypatch.setattr(published, "_PACKAGE", tmp_path)
    (tmp_path / "embedded").mkdir()
    with pytest.raises(ArtifactError, match=r"cannot be read.*install qzoo again"):
        member.artifact()
    copy = Path(shutil.copy(original, tmp_path / "embedded"))
    assert member.artifact().info.architecture == member.meta["architecture"]
    damaged = bytearray(copy.read_bytes())
    damaged[-1] ^= 1
    copy.write_bytes(damaged)
    with pytest.raises(ArtifactError, match=r"changed or damaged.*Install qzoo again"):
        member.artifact()


def test_bundled_pictures_are_held_out_and_classified() -> None:
    assert len(DIGITS) == 10
    held_out = Digits("test")
    member = qzoo.ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1
    model, preset = qzoo.shufflenet_v2_x0_5(weights=member, quantize=True), member.transforms()
    for file in DIGITS:
        match = re.fullmatch(r"digit-(\d)-(\d{4})\.png", file.name)
        assert match is not None
        label, place = int(match[1]), held_out.indices.index(int(match[2]))
        assert held_out.targets[place] == label
        picture = Image.open(file)
        assert (picture.mode, picture.size) == ("L", (8, 8))
        assert np.array_equal(np.asarray(picture), held_out.images[place])
        with torch.inference_mode():
            logits = model(preset(picture.convert("RGB"))[None])
        assert int(logits.argmax()) == label


def test_a_graph_of_other_wiring_is_not_its_architectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told from the graph alone: no module is built to find out."""
    artifact = qzoo.ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1.artifact()
    nodes = list(artifact.graph.nodes)
    at = next(i for i, node in enumerate(nodes) if node.op == "concat")
    first, second = nodes[at].inputs
    nodes[at] = dataclasses.replace(nodes[at], inputs=(second, first))
    changed = Artifact.from_graph(nodes, artifact.graph.tensors, artifact.info)
    changed.write(tmp_path / "changed.safetensors")
    artifact.write(tmp_path / "same.safetensors")
    monkeypatch.setattr("qzoo.native.model.skeleton_of", None)
    assert check_model(tmp_path / "same.safetensors").startswith("shufflenet_v2_x0_5, int8")
    with pytest.raises(qzoo.ArtifactError, match="graph is not that of a shufflenet_v2_x0_5"):
        check_model(tmp_path / "changed.safetensors")
