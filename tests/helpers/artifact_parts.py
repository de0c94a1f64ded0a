"""Artifact files taken apart, changed, and put together with a right checksum."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

import qzoo
from qzoo.native.model import from_native
from tests.helpers.zoo import eager_ptq, float_model, small_images

#: A MobileNet V2 of two blocks: every kind of layer in 20 kB.
TINY = {"num_classes": 3, "inverted_residual_setting": [[1, 8, 1, 2], [2, 8, 2, 1]],
        "width_mult": 0.25}  # fmt: skip


class Parts(NamedTuple):
    """An artifact file taken apart."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]


def take_apart(content: bytes) -> Parts:
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    return Parts(json.loads(metadata["qzoo"]), load(content))


def checksum(parts: Parts) -> str:
    """Returns the checksum as docs/artifact.md describes it, for any reader to compute."""
    header = {k: v for k, v in parts.header.items() if k != "sha256"}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    sha = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(parts.tensors):
        tensor = parts.tensors[name].contiguous()
        sha.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        sha.update(bytes(tensor.reshape(-1).view(torch.uint8).tolist()))
    return sha.hexdigest()


def put_together(parts: Parts) -> bytes:
    """Writes a file whose checksum is right, so that only the contents can be wrong."""
    header = {**parts.header, "sha256": checksum(parts)}
    return save(parts.tensors, metadata={"qzoo": json.dumps(header)})


@functools.cache
def tiny_artifact(old: bool = False) -> bytes:
    """Returns the bytes of a small calibrated artifact, or of one from before version 3."""
    torch.manual_seed(0)
    images = small_images("mobilenet_v2")
    artifact = from_native(eager_ptq(float_model("mobilenet_v2", **TINY), images))
    return put_together(old_parts(artifact)) if old else artifact.to_bytes()


def old_parts(artifact: qzoo.Artifact) -> Parts:
    """Returns what a file of an artifact had before version 3: layers, and no graph."""
    header = {
        "format": "qzoo-int8",
        "version": 2 if artifact.float_layers else 1,
        **artifact.info.to_dict(),
        "layers": {name: layer.to_json() for name, layer in artifact.layers.items()},
        "versions": artifact.versions,
    }
    return Parts(json.loads(json.dumps(header)), dict(artifact.tensors))


def node(parts: Parts, name: str) -> dict[str, Any]:
    """Returns what the header says of a layer: its entry in older files, its node in others."""
    if "layers" in parts.header:
        return parts.header["layers"][name]
    return next(n for n in parts.header["nodes"] if n["name"] == name)


HOSTILE_KWARGS: dict[str, dict[str, Any]] = {
    "gigantic width": {**TINY, "width_mult": 1e9},
    "infinite width": {**TINY, "width_mult": 1e308},
    "a billion blocks": {**TINY, "inverted_residual_setting": [[6, 16, 10**9, 1]]},
    "many rows": {**TINY, "inverted_residual_setting": [[6, 16, 30_000, 1]] * 1000},
    "nested": {**TINY, "inverted_residual_setting": [[[[[1]]]]]},
    "a billion classes": {**TINY, "num_classes": 10**9},
    "more classes than memory": {**TINY, "num_classes": 10**18},
    "more classes than int64": {**TINY, "num_classes": 10**30},
    "negative classes": {**TINY, "num_classes": -3},
    "no classes": {**TINY, "num_classes": 0},
    "text": {**TINY, "num_classes": "3"},
    "rounding to 0": {**TINY, "round_nearest": 0},
    "a block by name": {**TINY, "block": "os.system"},
    "a norm by name": {**TINY, "norm_layer": "os.system"},
    "self": {**TINY, "self": 1},
    "dunder": {**TINY, "__class__": "x"},
    "no number": {**TINY, "dropout": "all"},
    "unknown": {**TINY, "depth": 3},
    "not a keyword": {**TINY, "a b\ud800": 3},
    "dropout above 1": {**TINY, "dropout": 7.0},
}
