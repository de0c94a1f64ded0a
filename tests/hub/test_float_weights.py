"""torchvision's float weights: fetched, verified, mirrored and kept offline like all else."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch

import qzoo
from qzoo.weights import float_state_dict
from tests.helpers import zoo

MEMBER: Any = qzoo.registry.get_entry("shufflenet_v2_x0_5").float_weights["IMAGENET1K_V1"]


class Evil:
    """Opens a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return eval, ("open('ran', 'w')",)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.fixture
def publish(server: Any, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Puts a file where the mirror has the member's, under the name that its hash calls for."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("QZOO_MIRROR", f"{server.base}/mirror")

    def publish(data: bytes, digest: str | None = None) -> str:
        name = f"net-{(digest or hashlib.sha256(data).hexdigest())[:8]}.pth"
        value = dataclasses.replace(MEMBER.value, url=f"https://nowhere.invalid/models/{name}")
        monkeypatch.setattr(MEMBER, "_value_", value)
        server.add(f"/mirror/models/{name}", data)
        return name

    return publish


def test_the_mirror_is_asked_and_the_file_kept(publish, server, home):
    model = zoo.float_model("shufflenet_v2_x0_5")
    publish(saved(model.state_dict()))
    ours = qzoo.shufflenet_v2_x0_5(weights=MEMBER, progress=False).eval()
    images = zoo.small_images("shufflenet_v2_x0_5")
    with torch.no_grad():
        assert torch.equal(ours(images), model.eval()(images))
    assert len(server.gets()) == 1 and list(home.rglob("net-*.pth"))
    qzoo.shufflenet_v2_x0_5(weights="IMAGENET1K_V1", progress=False)
    assert len(server.gets()) == 1
    assert not (Path(torch.hub.get_dir()) / "checkpoints").exists()


def test_offline_nothing_is_asked(publish, server, monkeypatch):
    data = saved({"conv.weight": torch.ones(1)})
    name = publish(data)
    monkeypatch.setenv("QZOO_OFFLINE", "1")
    for ask in (
        lambda: qzoo.shufflenet_v2_x0_5(weights=MEMBER),
        lambda: qzoo.get_model("resnet18", weights="DEFAULT"),
        lambda: qzoo.googlenet(weights="IMAGENET1K_V1", num_classes=3),
    ):
        with pytest.raises(qzoo.DownloadError, match="QZOO_OFFLINE is set"):
            ask()
    # What torchvision has put into torch.hub's folder needs no network.
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(data)
    assert list(float_state_dict(MEMBER, False)) == ["conv.weight"]
    (folder / name).write_bytes(data[:-1])  # not the published file
    with pytest.raises(qzoo.DownloadError, match="QZOO_OFFLINE is set"):
        float_state_dict(MEMBER, False)
    assert not server.seen


def test_another_file_is_refused(publish):
    publish(saved({"conv.weight": torch.ones(1)}), "0" * 64)
    with pytest.raises(qzoo.DownloadError, match="not the expected file"):
        float_state_dict(MEMBER, False)


def test_no_code_of_the_file_runs(publish, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish(saved({"conv.weight": torch.ones(1), "x": Evil()}))
    with pytest.raises(qzoo.ArtifactError, match="never runs"):
        float_state_dict(MEMBER, False)
    assert not (tmp_path / "ran").exists()
