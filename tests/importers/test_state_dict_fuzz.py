"""5,000 hand-made state dicts, float, int8 and QAT: each is read or refused with a QzooError.

Unlike those of test_pth_fuzz.py, the files are what `torch.save` and safetensors really write, of
values that no model has. The full count runs by hand (pytest -m slow, or, with the slowest
files and the memory, as below):

    python -m tests.importers.test_state_dict_fuzz 5000 2026
"""

from __future__ import annotations

import argparse
import copy
import enum
import json
import math
import pathlib
import random
import resource
import sys
import time
import warnings
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import qzoo
from qzoo.artifact.format import Artifact, ModelInfo
from qzoo.importers.checkpoint import is_float_checkpoint, load_float
from qzoo.importers.pth import read_checkpoint
from qzoo.importers.published import from_checkpoint
from qzoo.native.model import to_native
from qzoo.sharing.convert import check_model, read_any
from tests.helpers import published as ph
from tests.helpers.artifact_parts import HOSTILE_KWARGS, TINY

NAME = "mobilenet_v2"
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int16),
    *(torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.complex128),
    *(torch.uint16, torch.uint32, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz),
)
NUMBERS = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 1e-38, 3e38, -1.0, 1e30, 255.0)


class Mode(enum.Enum):
    TRAIN = 1


class Maker:
    """Makes state dicts that are nearly right, from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.bases = [
                ph.float_model(NAME, **TINY).state_dict(),
                ph.int8_model(NAME, "fbgemm", **TINY).state_dict(),
                ph.qat_model(NAME, "qnnpack", **TINY).state_dict(),
                ph.qat_model(NAME, "fbgemm", **TINY).state_dict(),
            ]

    def state(self) -> Any:
        """Returns a state dict with one to a few entries that are wrong, perhaps wrapped."""
        rnd = self.random
        base: Any = rnd.choice(self.bases)
        state: Any = OrderedDict(base)
        state._metadata = copy.deepcopy(base._metadata)
        for _ in range(rnd.choice((1, 1, 1, 2, 4))):
            self._change(state)
        if rnd.random() < 0.1:
            state._metadata = self._value(torch.zeros(1))
        elif rnd.random() < 0.2:
            state._metadata[rnd.choice(("qzoo", "qzoo-float"))] = rnd.choice(
                ({"info": self._note()}, {"info": self._value(torch.zeros(1))}, self._note())
            )
        return self._wrapped(state) if rnd.random() < 0.3 else state

    def one_wrong(self) -> Any:
        """Returns a state dict of which one entry has another dtype, rank, size or kind."""
        state = OrderedDict(self.random.choice(self.bases))
        key = self.random.choice(list(state))
        state[key] = self.random.choice(ENTRIES)
        return state

    def _note(self) -> str:
        """Returns what qzoo notes in state dicts on what they are of, or something like it."""
        rnd = self.random
        note = {
            "architecture": NAME,
            "builder_kwargs": rnd.choice([TINY, *HOSTILE_KWARGS.values()]),
        }
        others: dict[str, Any] = {
            "backend": "fbgemm",
            "classes": ["a", "b", "c"],
            "transforms": None,
            "recipe": {},
        }
        note |= {key: value for key, value in others.items() if rnd.random() < 0.5}
        if rnd.random() < 0.3:
            key = rnd.choice((*note, "seen", "metrics", "x"))
            note[key] = rnd.choice((None, 1, "x", [1], {"a": 1}, [["a"]], {"a": {"b": 1e999}}))
        return json.dumps(note)

    def _change(self, state: Any) -> None:
        rnd = self.random
        keys = list(state)
        if not keys:
            return
        # Layers with batch norms are most of the keys; the first, the last and observers count.
        key = rnd.choice((rnd.choice(keys), rnd.choice(keys[:12]), rnd.choice(keys[-12:])))
        match rnd.randrange(10):
            case 0:
                del state[key]
            case 1:
                state[self._name(key)] = state.pop(key)
            case 2:
                state[self._name(key)] = state[key]
            case 3:
                ending = key.rpartition(".")[2]
                for other in [k for k in keys if k.endswith(ending)]:
                    del state[other]
            case 4:
                ending = key.rpartition(".")[2]
                value = self._value(state[key])
                for other in [k for k in keys if k.endswith(ending)]:
                    state[other] = value
            case _:
                state[key] = self._value(state[key])

    def _name(self, key: str) -> str:
        rnd = self.random
        return rnd.choice(
            (
                *(
                    "",
                    ".",
                    "..",
                    "x",
                    "weight",
                    "model.",
                    "module.",
                    "n_averaged",
                    "\x00",
                    "\ud800",
                ),
                *(key + ".x", key + "x", "module." + key, "model." + key, "_orig_mod." + key),
                *("model." * 300 + key, key.replace(".", ".module."), key.upper(), "ключ." + key),
                *("x" * 20_000, "a." * 2000 + "weight", key.partition(".")[2], "fc.weight"),
                *(key.replace("weight", "bias"), key.replace("min", "max"), "aux1." + key),
            )
        )

    def _value(self, old: Any) -> Any:
        rnd = self.random
        tensor = old if isinstance(old, Tensor) else torch.ones(3)
        if rnd.random() < 0.7:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    return self._tensor(tensor)
                except (RuntimeError, TypeError, ValueError):  # PyTorch has no such tensor
                    return None
        cyclic: list[Any] = []
        cyclic.append(cyclic)
        deep: Any = 0
        for _ in range(rnd.choice((3, 70, 300))):
            deep = [deep]
        table: dict[Any, Any] = {"a": {"b": tensor}}
        table["c"] = table
        return rnd.choice(
            (
                *(None, True, 0, -1, 1 << 62, 10**30, 10**400, 0.5, math.nan, -math.inf, "", "1"),
                *("x" * 5000, "\ud800", b"bytes", [], {}, (), (tensor,), (tensor, None)),
                *((tensor, tensor), (None, None), [tensor] * 3, {"weight": tensor}, {1: 2}),
                *({None: 1}, {(1, 2): 3}, cyclic, deep, table, {1, 2}, np.float64(1.5)),
                *(np.ones(3), pathlib.PurePosixPath("x"), Mode.TRAIN, 1 + 2j, torch.Size([1])),
                *(torch.qint8, torch.float32, torch.device("cuda"), argparse.Namespace(a=tensor)),
                *(nn.ReLU(), nn.Parameter(torch.ones(3)), defaultdict(list), len, int),
                *(["a"] * 3000, dict.fromkeys(map(str, range(3000)), 0)),
            )
        )

    def _tensor(self, tensor: Tensor) -> Any:
        rnd = self.random
        plain = tensor.dequantize() if tensor.is_quantized else tensor
        match rnd.randrange(22):
            case 0 | 1:
                return plain.to(rnd.choice(DTYPES))
            case 2:
                return plain.reshape(-1)
            case 3:
                return plain[None]
            case 4:
                return plain[:0] if plain.dim() else plain.reshape(1)[:0]
            case 5:
                return torch.cat([plain, plain]) if plain.dim() else plain.repeat(2)
            case 6:
                return plain[0] if plain.dim() and len(plain) else plain[None]
            case 7:
                return plain.movedim(0, -1) if plain.dim() > 1 else plain.reshape(1, -1)
            case 8 | 9:
                return torch.full_like(plain.float(), rnd.choice(NUMBERS))
            case 10:
                changed = plain.float().clone().reshape(-1)
                changed[rnd.randrange(len(changed)) if len(changed) else slice(0)] = rnd.choice(
                    NUMBERS
                )
                return changed.reshape(plain.shape)
            case 11:
                return plain.to_sparse()
            case 12:
                return plain.reshape(1, -1).float().to_sparse_csr()
            case 13:
                scale, dtype = rnd.choice((0.1, 1e-30, 1e30)), rnd.choice(QUANTIZED)
                return torch.quantize_per_tensor(plain.float(), scale, 0, dtype)
            case 14:
                axis = rnd.randrange(plain.dim())
                count = plain.shape[axis]
                scales, zeros = torch.full((count,), 0.1), torch.zeros(count).long()
                return torch.quantize_per_channel(plain.float(), scales, zeros, axis, torch.qint8)
            case 15:
                return plain.to("meta")
            case 16:
                return torch.complex(plain.float(), plain.float()).conj()
            case 17:
                return torch.zeros(1).expand(rnd.choice((3, 1 << 20, 1 << 33)))
            case 18:
                shape = [1] * rnd.choice((5, 15, 17, 40))
                return torch.zeros(shape)
            case 19:
                return torch.zeros(0, rnd.choice((1, 1 << 20, 1 << 40)))
            case 20:
                return torch.randn(rnd.choice(((1000, 1), (3, 3), (1,), (), (100_000,))))
            case _:
                return (tensor, tensor if rnd.random() < 0.5 else None)

    def _wrapped(self, state: Any) -> Any:
        rnd = self.random
        prefix = rnd.choice(("module.", "_orig_mod.", "model.", "net.", "x.", "module.model."))
        named = {f"{prefix}{key}": value for key, value in state.items()}
        chain: Any = state
        for _ in range(rnd.choice((1, 2, 5, 80))):
            chain = {rnd.choice(("model", "state_dict", "ema", "x")): chain}
        loop: dict[str, Any] = {"epoch": 3}
        loop["model"] = loop
        return rnd.choice(
            (
                named,
                {
                    "state_dict": named,
                    "epoch": np.int64(3),
                    "args": argparse.Namespace(a=Mode.TRAIN),
                },
                {"model": state, "model_ema": named},
                {"ema": {"n_averaged": torch.tensor(1), **named}},
                {"a": state, "b": state},
                {**state, **named},
                {**state, 3: 4},
                [state],
                (state, 1),
                chain,
                loop,
                {"model": nn.ReLU(), "state_dict": state},
                {f"x{i}": torch.zeros(1) for i in range(3000)},
                list(state.values())[:1],
                None,
            )
        )


QUANTIZED = (torch.qint8, torch.quint8, torch.qint32)
#: What stands in the place of one number, of one per channel, or of a weight.
ENTRIES: tuple[Any, ...] = (
    *(torch.ones(1).to(dtype) for dtype in DTYPES),
    *(torch.ones(()).to(dtype) for dtype in DTYPES),
    *(torch.ones(8).to(dtype) for dtype in DTYPES),
    *(torch.ones(0), torch.ones(2), torch.ones(1, 1), torch.ones(8, 1), torch.ones(3, 8)),
    *(torch.ones(8, 3, 3, 3), torch.ones(8, 1, 3, 3), torch.ones(1, 8, 1, 1)),
    *(torch.full((1,), number) for number in NUMBERS),
    *(None, 1, 1.0, "1", [1.0], (torch.ones(1),), {"x": torch.ones(1)}),
)


def write(maker: Maker, path: Path) -> bool:
    """Writes a file; False where neither `torch.save` nor safetensors can hold the value."""
    rnd = maker.random
    state = maker.one_wrong() if rnd.random() < 0.4 else maker.state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if rnd.random() < 0.15 and isinstance(state, dict):
                tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
                path.write_bytes(
                    safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
                )
            else:
                torch.save(
                    state,
                    path,
                    pickle_protocol=rnd.choice((2, 2, 2, 3, 4, 5)),
                    _use_new_zipfile_serialization=rnd.random() < 0.8,
                )
    except Exception:  # PyTorch's, safetensors' and pickle's own limits
        return False
    return True


def ends_cleanly(maker: Maker, path: Path) -> bool:
    """Reads a file in several ways; True if one gave a model, False if QzooErrors refused all."""
    rnd = maker.random
    options: dict[str, Any] = {
        "model": rnd.choice((None, None, NAME, "resnet18", "googlenet")),
        "part": rnd.choice((None, None, "model", "ema.module", "x")),
        "transform_input": rnd.choice((None, None, True)),
    }
    part = rnd.choice((None, None, None, "model"))
    ways: list[Any] = [
        lambda: from_checkpoint(read_checkpoint(path, part), ModelInfo(NAME, dict(TINY))),
        lambda: load_float(path, NAME, part=part, **TINY),
    ]
    # Those that look for the architecture among all of the zoo take longer, and share the rest.
    ways += rnd.choices(
        [
            lambda: read_any(path, **options),
            lambda: load_float(path, **options),
            lambda: is_float_checkpoint(path, part),
            lambda: check_model(path),
        ],
        k=rnd.random() < 0.3,
    )
    accepted = False
    for read in ways:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found: Any = read()
                if isinstance(found, Artifact):
                    found = to_native(found)
        except qzoo.QzooError as error:
            message = str(error)
            assert message and len(message) < 1500 and "\n" not in message, message[:2000]
            assert "cannot be read (" not in message, "the net of last resort caught it"
            continue
        accepted = accepted or isinstance(found, nn.Module)
    return accepted


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Makes and reads files; returns how many were written and accepted, and what it cost."""
    maker = Maker(seed)
    path = folder / "mine.pth"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    written = accepted = 0
    slowest = (0.0, -1)
    for number in range(count):
        if not write(maker, path):
            continue
        written += 1
        started = time.process_time()
        try:
            accepted += ends_cleanly(maker, path)
        except BaseException:
            print(f"seed {seed}, number {number} got through")
            raise
        slowest = max(slowest, (time.process_time() - started, number))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "written": written,
        "accepted": accepted,
        "slowest_s": round(slowest[0], 2),
        "slowest": slowest[1],
        "grown_mib": grown >> 10,
    }


@pytest.mark.parametrize("count", [120, pytest.param(5000, marks=pytest.mark.slow)])
def test_hand_made_state_dicts(count: int, tmp_path: Path) -> None:
    figures = run(count, 2026, tmp_path)
    print(figures)
    # If all or none were refused, the test would test nothing.
    assert count // 2 < figures["written"] and count // 50 < figures["accepted"] < count // 2
    assert figures["grown_mib"] < 1024
    assert [p.name for p in tmp_path.iterdir()] == ["mine.pth"]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        print(run(int(sys.argv[1]), int(sys.argv[2]), Path(folder)))
