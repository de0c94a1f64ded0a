"""torchvision's published checkpoints, through the weight enum, to torchvision's own logits."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from torch import nn
from torchvision.models import quantization as tv

import qzoo
from qzoo import hub
from qzoo.classify import classify
from qzoo.native.model import from_native
from tests.helpers import published as ph
from tests.helpers import without_torch
from tests.helpers.places import DIGITS


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a web server on loopback that stands for every published url."""
    root = tmp_path / "site"
    root.mkdir()
    handler = functools.partial(_Handler, directory=str(root))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    for name in ("QZOO_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QZOO_MIRROR", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("QZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    yield root
    server.shutdown()
    server.server_close()


def publish(
    site: Path, monkeypatch: pytest.MonkeyPatch, member: Any, state: Any, zipped: bool
) -> Path:
    """Puts a state dict where the member's url points, and its hash where the enum looks."""
    path = site / urlsplit(member.url).path.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(member.meta, "sha256_prefix", digest[:8])
    return path


def torchvision_loads(monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> nn.Module:
    """What torchvision's builder makes of the file, found in torch.hub's cache."""
    enum: Any = qzoo.get_model_weights(name)
    weights: Any = getattr(tv, enum.__name__).DEFAULT
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.unlink(missing_ok=True)
    cached.symlink_to(path)
    with ph.quiet(), ph.cheap_init():
        torch.backends.quantized.engine = ph.BUILDERS[name]
        # It runs the float model once, for ranges that the loaded ones replace.
        rand = torch.rand
        monkeypatch.setattr(torch, "rand", lambda *shape: rand(1, 3, 75, 75))
        model: nn.Module = getattr(tv, name)(weights=weights, quantize=True)
        monkeypatch.setattr(torch, "rand", rand)
    return model


#: Packing their weights takes seconds, so they are packed no more often than needed.
LARGE = {"resnext101_32x8d", "resnext101_64x4d"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.extended) if n in LARGE else n for n in ph.BUILDERS],
)
def test_published_files_give_torchvisions_logits(name, site, monkeypatch):
    member: Any = qzoo.get_model_weights(name)["DEFAULT"]
    engine = ph.BUILDERS[name]
    assert member.meta["backend"] == engine
    qat = name == "mobilenet_v3_large"
    made = ph.qat_model(name) if qat else ph.int8_model(name)
    state = made.state_dict()
    x = ph.pictures(name)
    path = publish(site, monkeypatch, member, state, zipped=True)
    once = name == "resnext101_64x4d"
    theirs = made if once else torchvision_loads(monkeypatch, name, path)
    expected = ph.logits(theirs, x, engine)
    ph.assert_informative(expected)
    for zipped in (True, False):
        path = publish(site, monkeypatch, member, state, zipped)
        hub.clear_cache()
        with ph.without_quantized_tensors():
            artifact = member.artifact(progress=False, check_hash=True)
        (file,) = hub.list_cache()
        assert file.path.read_bytes() == path.read_bytes()
        if zipped or name not in LARGE:
            model = qzoo.get_model(name, weights="DEFAULT", quantize=True, progress=False)
            assert torch.equal(ph.logits(model, x, engine), expected)
        else:  # the same numbers give the same logits
            assert from_native(model).digest() == artifact.digest()
    # And back: what torchvision would have saved of its int8 model.
    back = model.state_dict()
    assert set(back) == set(theirs.state_dict())
    if name not in LARGE:
        assert torch.equal(ph.logits(ph.loaded(theirs, back, engine), x, engine), expected)
    if qat:
        size = len(from_native(model).to_bytes())
        assert size < 0.27 * path.stat().st_size


CLASSIFY = """
import json, sys
from qzoo.cli import main
from qzoo.metadata import read_metadata
model, name, prefix, *pictures = sys.argv[1:]
read_metadata(model)["weights"][name]["sha256_prefix"] = prefix  # of the file that stands in
main(["classify", *pictures, "-m", model, "-k", "1000", "--runtime", "onnxruntime", "--json"])
"""


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_large"])
def test_published_files_classify_pictures_without_pytorch(
    site: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An int8 state dict, and one of QAT: fetched, read, and run with the same answers."""
    member: Any = qzoo.get_model_weights(name)["DEFAULT"]
    backend = ph.BUILDERS[name]
    qat = name.startswith("mobilenet_v3")
    model = ph.qat_model(name, backend) if qat else ph.int8_model(name, backend)
    publish(site, monkeypatch, member, model.state_dict(), zipped=True)
    prefix = member.meta["sha256_prefix"]
    out = without_torch.python(CLASSIFY, name, member.name, prefix, *DIGITS[:2])
    compiled = qzoo.compile(member.artifact(), "onnxruntime")
    expected = classify(compiled, DIGITS[:2], 1000)
    assert [row["predictions"] for row in json.loads(out)] == [
        [asdict(guess) for guess in guesses] for guesses in expected
    ]
    assert expected[0][0].name in member.meta["categories"]
    assert [g.index for g in expected[0]] != [g.index for g in expected[1]]
