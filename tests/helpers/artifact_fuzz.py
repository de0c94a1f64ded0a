"""Mutated artifacts: files that damage or malice would make, from a seed.

Run by hand, each case is timed and its memory measured:

    python -m tests.helpers.artifact_fuzz --count 10000 --seed 1
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import math
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

import qzoo
from qzoo.artifact.interpret import interpret
from qzoo.libqzoo.binding import libqzoo_files
from qzoo.native.model import from_native, to_native
from qzoo.sharing.convert import check_model
from tests.helpers.artifact_parts import (
    HOSTILE_KWARGS,
    Parts,
    checksum,
    node,
    put_together,
    take_apart,
    tiny_artifact,
)
from tests.helpers.zoo import quiet, small_images

DTYPES = (torch.int8, torch.uint8, torch.int64, torch.half, torch.float32, torch.float64,
          torch.bool, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)  # fmt: skip
KEYWORDS = ("num_classes", "groups", "width_per_group", "width_mult", "round_nearest", "dropout",
            "inverted_residual_setting", "stages_repeats", "stages_out_channels", "aux_logits",
            "replace_stride_with_dilation", "transform_input", "init_weights", "norm_layer",
            "block", "weights", "reduced_tail", "dilated", "zero_init_residual",
            "dropout_aux")  # fmt: skip
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

    def places(self) -> bytes:
        """Changes dtypes, shapes, places and names in the file's own table; the rest stays."""
        length, rnd = int.from_bytes(self.content[:8], "little"), self.random
        table = json.loads(self.content[8 : 8 + length])
        for _ in range(rnd.choice((1, 1, 2))):
            name = rnd.choice([key for key in table if key != "__metadata__"] or ["none"])
            entry = table.setdefault(name, {})
            match rnd.randrange(6):
                case 0:
                    entry["dtype"] = rnd.choice(("BF16", "F8_E4M3", "F4", "F64", "I8", "", 3, None))
                case 1:
                    sizes = (0, 1, -1, 2**31, 2**62, 10**400, True, "1", None, 0.5)
                    entry["shape"] = [rnd.choice(sizes) for _ in range(rnd.randrange(20))]
                case 2:
                    ends = (0, 1, 8, -8, 2**40, 10**30, None)
                    entry["data_offsets"] = [rnd.choice(ends) for _ in range(rnd.choice((2, 2, 3)))]
                case 3:
                    table[rnd.choice(("x", "", "__metadata__", name + ".x"))] = table.pop(name)
                case 4:
                    table[name + "2"] = copy.deepcopy(entry)
                case _:
                    del table[name]
        text = json.dumps(table).encode()
        return len(text).to_bytes(8, "little") + text + self.content[8 + length :]

    def twice(self) -> bytes:
        """Names a key of the header a second time, with the first one's or another value."""
        parts, rnd = self.parts, self.random
        text = json.dumps({**parts.header, "sha256": checksum(parts)})
        found = list(re.finditer(r'"([^"]+)": ', text))
        at = rnd.choice(found)
        again = f'"{at[1]}": {json.dumps(self._value(parts.header, 1))}, '
        changed = text[: at.start()] + again + text[at.start() :]
        return save(parts.tensors, metadata={"qzoo": changed})

    def extremes(self) -> bytes:
        """Sets numbers to the ends of their ranges, far beyond, and next to what is allowed."""
        header, tensors = copy.deepcopy(self.parts.header), dict(self.parts.tensors)
        rnd = self.random
        for _ in range(rnd.choice((1, 1, 2, 4))):
            number = rnd.choice((-1.0, 1.0)) ** rnd.randrange(2) * 2.0 ** rnd.choice(
                (-149, -127, -126, -60, -41, -40, -39, -20, 0, 8, 20, 39, 40, 41, 60, 126, 127.9)
            )
            match rnd.randrange(5):
                case 0 | 1:
                    layer = rnd.choice(
                        [*header.get("layers", {}).values(), *header.get("nodes", ())]
                    )
                    if "scale" in layer:
                        layer["scale"] = number
                        layer["zero_point"] = rnd.choice((0, 1, 127, 128, 255, -1, 256))
                case 2:
                    name = rnd.choice([n for n, t in tensors.items() if t.is_floating_point()])
                    tensors[name] = tensors[name].clone()
                    flat = tensors[name].view(-1)
                    flat[rnd.randrange(len(flat)) if rnd.random() < 0.5 else slice(None)] = number
                case 3:
                    preset = header["transforms"] or {}
                    preset[rnd.choice(("mean", "std"))] = [number, 0.5, 1]
                    preset[rnd.choice(("crop_size", "resize_size"))] = rnd.choice(
                        (1, 2, 31, 64, 1024, 1025, 2048, 2049, 8192, 2**31, 0, -1)
                    )
                    header["transforms"] = preset
                case _:
                    name = rnd.choice([n for n, t in tensors.items() if t.dtype == torch.int8])
                    tensors[name] = torch.full_like(tensors[name], rnd.choice((-128, 0, 127)))
        return put_together(Parts(header, tensors))

    def keywords(self) -> bytes:
        """Asks for another model: any keyword of any builder with any value."""
        header, rnd = copy.deepcopy(self.parts.header), self.random
        if rnd.random() < 0.3:
            header["architecture"] = rnd.choice(qzoo.list_models())
        for _ in range(rnd.choice((1, 1, 2))):
            key = rnd.choice((*KEYWORDS, self._name(header)))
            header["builder_kwargs"][key] = rnd.choice(
                (self._value(header, 1), [[1, 8, 1, 2]] * rnd.choice((1, 64, 65)),
                 [[rnd.choice((1, 2**14, 10**9, "x", None)) for _ in range(4)]], [True] * 3,
                 rnd.choice((0.25, 64.0, 4096, 100_000, 10**6)))
            )  # fmt: skip
        return put_together(Parts(header, self.parts.tensors))

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
                case _ if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
                    return None  # PyTorch computes little on 8-bit floats
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
        nodes = header["nodes"] if isinstance(header.get("nodes"), list) else ()
        known += [str(node.get("name")) for node in nodes if isinstance(node, dict)]
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


#: Kinds of mutations, and how many of 20 cases are of each.
KINDS = {"bytes_of_the_file": 2, "header": 6, "tensors": 3, "places": 2, "twice": 1, "extremes": 3,
         "keywords": 3}  # fmt: skip
#: What a case may take: seconds, and bytes that the process grows by.
MOST_SECONDS, MOST_BYTES = 4.0, 1 << 30


def bases() -> list[bytes]:
    """Returns the artifacts to change: with all fields filled, and with a layer kept in float."""
    parts = take_apart(tiny_artifact())
    preset = qzoo.transforms.ImageClassification(crop_size=32, resize_size=36)
    parts.header.update(
        classes=["a", "b", "c"],
        transforms=preset.to_dict(),
        metrics={"digits": {"acc@1": 98.5}},
        recipe={"method": "PTQ", "steps": ["weights", {"images": 4}]},
    )
    first = put_together(parts)
    head = "classifier.1"
    scale = parts.tensors.pop(f"{head}.weight_scale")
    weight = parts.tensors[f"{head}.weight"].float() * scale.reshape(-1, 1).float()
    parts.tensors[f"{head}.weight"] = weight
    node(parts, head)["float"] = True
    parts.header.update(backend="qnnpack", transforms=None)
    return [first, put_together(parts), tiny_artifact(old=True)]


def ends_cleanly(path: Path, content: bytes, deep: bool = False) -> bool:
    """Reads and runs an artifact; True if it is one, False if a QzooError refused it.

    Args:
        path: Where to write it.
        content: Its bytes.
        deep: Whether to compile, export, share and check one that is read, too.
    """
    path.write_bytes(content)
    try:
        artifact = qzoo.Artifact.read(path)
        with quiet():  # of a stand-in for a model that no builder makes
            model = to_native(artifact)
    except qzoo.QzooError as error:
        check_message(error)
        return False
    images = small_images("mobilenet_v2", 1)
    with quiet(), torch.no_grad():
        try:
            assert model(images).dim() == 2
        except qzoo.QzooError as error:  # a graph that no builder makes takes images of its own
            check_message(error)
            return False
        if deep:
            use(path, artifact, model, images)
    return True


def check_message(error: Exception) -> None:
    message = str(error)
    assert message and len(message) < 1500
    message.encode()  # it can be printed


def use(path: Path, artifact: qzoo.Artifact, model: Any, images: Tensor) -> None:
    """Does with an artifact what its owner may do; each step works or is refused."""
    from qzoo.export.onnx import export_onnx

    folder = path.parent / "shared"
    steps: list[Callable[[], object]] = [
        lambda: check_model(path),
        lambda: from_native(model).write(path.with_suffix(".again")),
        lambda: qzoo.compile(str(path), "onnxruntime", threads=1, input_size=32)(images),
        lambda: runs_exactly(artifact, images),
        lambda: export_onnx(artifact, path.with_suffix(".onnx"), input_size=32),
        lambda: qzoo.save_pretrained(model, folder),
        lambda: qzoo.from_pretrained(folder)(images),
        lambda: (
            artifact.info.transforms
            and qzoo.transforms.ImageClassification.from_dict(artifact.info.transforms)(images)
        ),
    ]
    for step in steps:
        try:
            step()
        except qzoo.QzooError as error:
            check_message(error)


def runs_exactly(artifact: qzoo.Artifact, images: Tensor) -> None:
    """Checks that libqzoo, where it was built, gives the interpreter's answer or refuses."""
    if libqzoo_files():
        x = images.numpy()
        logits = qzoo.compile(artifact, "libqzoo", input_size=32)(x)
        # Layers kept in float leave the order of their sums open.
        if not artifact.float_layers:
            assert np.array_equal(logits, interpret(artifact.graph, x))


def cases(count: int, seed: int) -> list[tuple[str, bytes]]:
    """Returns so many mutated files and the kinds of their mutations."""
    kinds = random.Random(seed)
    mutators = [Mutator(content, seed + n) for n, content in enumerate(bases())]
    names = kinds.choices(list(KINDS), list(KINDS.values()), k=count)
    return [(name, getattr(kinds.choice(mutators), name)()) for name in names]


def peak(reset: bool = False) -> int:
    """Returns the most memory that the process had since the last reset, in bytes; else 0."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    field = "VmRSS" if reset else "VmHWM"
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def main() -> int:
    """Runs the mutations and prints what became of them; 1 where something got through."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--deep", type=int, default=20, help="use each n-th case fully")
    options = parser.parse_args()
    found: collections.Counter[str] = collections.Counter()
    slowest, largest, bad = (0.0, -1), (0, -1), 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        for number, (kind, content) in enumerate(cases(options.count, options.seed)):
            before, start = peak(reset=True), time.perf_counter()
            try:
                accepted = ends_cleanly(path, content, deep=number % options.deep == 0)
                found[f"{kind}: {'read' if accepted else 'refused'}"] += 1
            except Exception:
                bad += 1
                print(f"number {number} ({kind}) got through", traceback.format_exc(), sep="\n")
            slowest = max(slowest, (time.perf_counter() - start, number))
            largest = max(largest, (peak() - before, number))
    for name, times in sorted(found.items()):
        print(f"{times:6} {name}")
    print(f"slowest {slowest[0]:.2f} s (number {slowest[1]})")
    print(f"largest {largest[0] / 2**20:.0f} MiB (number {largest[1]}); {bad} got through")
    return int(bad > 0 or slowest[0] > MOST_SECONDS or largest[0] > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
