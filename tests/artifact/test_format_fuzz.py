"""10,000 mutated artifacts: each is read and built, or refused with a QzooError."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from format_helpers import HOSTILE_KWARGS, Parts, put_together, take_apart, tiny_artifact
from torch import Tensor
from zoo_cases import quiet, small_images

import qzoo
from qzoo.artifact.native import to_native

DTYPES = (torch.int8, torch.uint8, torch.int64, torch.half, torch.float32, torch.float64,
          torch.bool)  # fmt: skip
WORDS = ("conv2d", "linear", "identity", "dequantize", "quantize", "hardswish", "functional",
         "dropout", "qnnpack", "onednn", "fbgemm", "imagenet-1k", "mobilenet_v2",
         "quantized_mobilenet_v2", "MobileNet_V2", "shufflenet_v2_x0_5", "resnet18")  # fmt: skip


class Mutator:
    """Changes artifacts at random, from a seed, in ways that damage or malice would."""

    def __init__(self, content: bytes, seed: int) -> None:
        self.content = content
        self.parts = take_apart(content)
        self.random = random.Random(seed)

    def bytes_of_the_file(self) -> bytes:
        """Flips, cuts, repeats or overwrites raw bytes, in the JSON part half of the time."""
        data, rnd = bytearray(self.content), self.random
        end = len(data) if rnd.random() < 0.5 else 8 + int.from_bytes(data[:8], "little")
        for _ in range(rnd.choice((1, 1, 1, 2, 8))):
            at, length = rnd.randrange(end), rnd.choice((1, 1, 2, 8, 200))
            match rnd.randrange(5):
                case 0:
                    data[at % len(data)] ^= 1 << rnd.randrange(8)
                case 1:
                    data[at : at + length] = rnd.randbytes(length)
                case 2:
                    del data[at : at + length]
                case 3:
                    data[at:at] = data[at : at + length]
                case 4:
                    data = data[: max(1, at)]
            end = min(end, len(data)) or 1
        return bytes(data)

    def header(self) -> bytes:
        """Changes values of the header and makes the checksum right again."""
        header = copy.deepcopy(self.parts.header)
        for _ in range(self.random.choice((1, 1, 1, 2, 5))):
            self._change_somewhere(header)
        return put_together(Parts(header, self.parts.tensors))

    def tensors(self) -> bytes:
        """Changes tensors and makes the checksum right again."""
        tensors = dict(self.parts.tensors)
        rnd = self.random
        for _ in range(rnd.choice((1, 1, 2))):
            name = rnd.choice(sorted(tensors) or ["none"])
            tensor = tensors.pop(name, torch.zeros(1))
            changed = self._changed_tensor(tensor)
            if changed is not None:
                tensors[rnd.choice((name, name, name, name + "x", "quant.weight", ""))] = changed
        return put_together(Parts(self.parts.header, tensors))

    def _changed_tensor(self, tensor: Tensor) -> Tensor | None:
        rnd = self.random
        with quiet():
            match rnd.randrange(9):
                case 0:
                    return None
                case 1:
                    return tensor.to(rnd.choice(DTYPES))
                case 2:
                    return tensor.reshape(-1)
                case 3:
                    return tensor[None]
                case 4:
                    return tensor[:0] if tensor.dim() else tensor
                case 5:
                    return torch.cat([tensor, tensor]) if tensor.dim() else tensor
                case 6:
                    return torch.full_like(tensor, rnd.choice((0, -1, 1, 127)))
                case 7 if tensor.is_floating_point():
                    return torch.full_like(
                        tensor, rnd.choice((math.nan, math.inf, 1e-45, 3e38, 1e-30, -0.0))
                    )
                case _:
                    return tensor.flip(0) if tensor.dim() else tensor + 1

    def _change_somewhere(self, header: dict[str, Any]) -> None:
        rnd = self.random
        places = [(header, k) for k in header if k != "sha256"]
        # Layers are most of the header: start from the top, so that all of it gets its share.
        owner, key = rnd.choice(places)
        while isinstance(owner[key], (dict, list)) and owner[key] and rnd.random() < 0.8:
            inner = owner[key]
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            owner, key = inner, rnd.choice(keys)
        match rnd.randrange(7):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, dict):
                owner[self._name(header)] = owner.pop(key)
            case 2 if isinstance(owner, dict):
                owner[self._name(header)] = copy.deepcopy(owner[key])
            case 3:
                owner[key] = [owner[key]]
            case _:
                owner[key] = self._value(header, owner[key])

    def _name(self, header: dict[str, Any]) -> str:
        known = [*(header["layers"] if isinstance(header.get("layers"), dict) else ())]
        odd = ["", ".", "features", "features.0", "features.0.0.weight", "quant.quant", "self",
               "training", "_modules", "__class__", "\ud800", "a\nb", "x" * 3000]  # fmt: skip
        return self.random.choice(odd + known[:3] + known[-3:])

    def _value(self, header: dict[str, Any], old: Any) -> Any:
        rnd = self.random
        if type(old) in (int, float) and rnd.random() < 0.5:
            return rnd.choice((old + 1, -old, old * 2, old // 3, old * 10**6, int(old)))
        if isinstance(old, str) and rnd.random() < 0.5:
            return rnd.choice(WORDS)
        if isinstance(old, dict) and rnd.random() < 0.3:
            return copy.deepcopy(rnd.choice([*HOSTILE_KWARGS.values()]))
        return rnd.choice((
            None, True, False, 0, 1, -1, 255, 256, 2**31, 2**63, 10**400, 0.5, -0.0, 1e-320, 1e308,
            "", "x", "\ud800", "\x00", "x" * 5000, [], {}, [1, 1], [2, 2], [0, 0], [-1, 10**9],
            ["a", "b", "c"], ["a"] * 1000, [[]], [None], {"a": {"b": 1}}, {"op": "identity"},
            self._name(header),
        ))  # fmt: skip


def ends_cleanly(path: Path, content: bytes) -> bool:
    """Reads and builds an artifact; True if it is one, False if a QzooError refused it."""
    path.write_bytes(content)
    try:
        artifact = qzoo.Artifact.read(path)
        model = to_native(artifact)
    except qzoo.QzooError as error:
        message = str(error)
        assert message and len(message) < 1500
        message.encode()  # it can be printed
        return False
    with quiet(), torch.no_grad():
        assert model(small_images("mobilenet_v2", 1)).dim() == 2
    return True


@pytest.fixture(scope="module")
def content() -> bytes:
    return tiny_artifact()


@pytest.mark.parametrize(
    ("kind", "count", "fewest_accepted"),
    [
        ("bytes_of_the_file", 800, 0),
        ("header", 900, 20),
        ("tensors", 300, 20),
        pytest.param("bytes_of_the_file", 4000, 0, marks=pytest.mark.extended),
        pytest.param("header", 4500, 100, marks=pytest.mark.extended),
        pytest.param("tensors", 1500, 100, marks=pytest.mark.extended),
    ],
)
def test_mutated_artifacts(
    kind: str, count: int, fewest_accepted: int, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    mutator = Mutator(content, seed=2026)
    mutate: Callable[[], bytes] = getattr(mutator, kind)
    accepted = 0
    for number in range(count):
        mutated = mutate()
        try:
            accepted += ends_cleanly(path, mutated)
        except BaseException:
            print(f"{kind} number {number} got through")
            raise
    # Mutations that stop at the checksum, or at the first field, would prove little.
    assert fewest_accepted <= accepted < count
