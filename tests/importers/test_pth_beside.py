"""What training scripts put beside and around the weights: kept inert, and in nobody's way."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import pathlib
import types
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qzoo import ArtifactError
from qzoo.importers.names import unwrapped, warn_of_others
from qzoo.importers.pth import read_checkpoint
from tests.helpers.pth import Call, pickled, refused, write

WEIGHTS = {"conv1.weight": torch.ones(2)}
RAN: list[str] = []


class Mode(enum.Enum):
    TRAIN = "train"


class Bits(enum.IntFlag):
    A = 1
    B = 2


class Config(dict[str, Any]):
    """As omegaconf's, Lightning's and others' dicts that are no dicts."""


@dataclasses.dataclass
class Settings:
    lr: float = 0.1


class Traitor:
    """Says so where anything of it runs."""

    def __new__(cls, *args: Any) -> Traitor:
        RAN.append("new")
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        RAN.append("setstate")

    def __getnewargs__(self) -> tuple[int]:
        return (1,)


BESIDE: dict[str, Any] = {
    "numpy float": np.float64(1.5),
    "numpy integer": np.int64(3),
    "numpy truth": np.bool_(True),
    "numpy array": np.arange(4),
    "numpy dtype": np.dtype("f4"),
    "numpy random state": np.random.RandomState(0).get_state(),
    "path": pathlib.PurePosixPath("/data/photos"),
    "Windows path": pathlib.PureWindowsPath("c:/photos"),
    "defaultdict": collections.defaultdict(list, {"loss": [1.0]}),
    "OrderedDict": collections.OrderedDict(a=1),
    "Counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], maxlen=3),
    "Namespace": argparse.Namespace(lr=np.float32(0.1), out=pathlib.PurePosixPath("x")),
    "SimpleNamespace": types.SimpleNamespace(a=1),
    "datetime": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
    "date": datetime.date(2026, 1, 2),
    "timedelta": datetime.timedelta(hours=1),
    "Enum": Mode.TRAIN,
    "IntFlag": Bits.A | Bits.B,
    "Decimal": decimal.Decimal("0.1"),
    "UUID": uuid.UUID(int=(1 << 128) - 1),
    "partial": functools.partial(torch.optim.SGD, lr=0.1),
    "dict of another kind": Config(a=1),
    "dataclass": Settings(),
    "object": Traitor(),
    "set": {1, 2},
    "frozenset": frozenset(["a"]),
    "bytes": b"abc",
    "bytearray": bytearray(b"abc"),
    "complex": 1 + 2j,
    "range": range(3),
    "slice": slice(1),
    "Ellipsis": ...,
    "odd keys": {(1, 2): 3, None: 1, 1.5: 2, True: 1, 1 << 100: 2},
    "tensor": torch.get_rng_state(),
}
#: What stands for PyTorch's own objects may lie beside a state dict, not in it.
OF_TORCH: dict[str, Any] = {
    "module": torch.nn.CrossEntropyLoss(),
    "class": torch.nn.ReLU,
    "function": torch.nn.functional.relu,
    "version": torch.torch_version.TorchVersion("2.0"),
}


@pytest.mark.parametrize("name", [*BESIDE, *OF_TORCH])
@pytest.mark.parametrize(("protocol", "zipped"), [(2, True), (2, False), (4, True), (5, True)])
def test_values_beside_a_state_dict(name: str, protocol: int, zipped: bool, tmp_path: Path) -> None:
    value = {**BESIDE, **OF_TORCH}[name]
    path = tmp_path / "x.pth"
    RAN.clear()
    saved = {"extra": value, "deeper": [{"x": (value,)}], "model": WEIGHTS}
    options: Any = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save(saved, path, **options)
    RAN.clear()
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.entries) == ["conv1.weight"] and checkpoint.part == "model"
    assert set(checkpoint.others) == {"extra", "deeper"}
    if name in BESIDE:
        torch.save({**WEIGHTS, "extra": value}, path, **options)
        RAN.clear()
        assert list(unwrapped(read_checkpoint(path).entries)) == ["conv1.weight"]
    assert not RAN


def test_python_functions_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    evil = Call(eval, "open('ran', 'w')")
    for value in ({"model": {}, "extra": evil}, {"model": {"a.b": 1}, "x": [(evil,)]}):
        refused(write(tmp_path / "x.pth", pickled(value)), "__builtin__.eval", "never runs")


@pytest.mark.parametrize(
    ("wrap", "part"),
    [
        (lambda s: s, None),
        *((lambda s, key=key: {key: s, "epoch": 3}, key) for key in (
            "model", "state_dict", "model_state_dict", "model_ema", "ema", "net", "network",
            "ema_state_dict", "weights", "my_best_weights",
        )),
        (lambda s: {"model": s, "ema": {"a.b": torch.zeros(1)}}, "model"),
        (lambda s: {"ema": {"module": s, "decay": 0.9}}, "ema.module"),
        (lambda s: {"model": {"state_dict": s}, "step": torch.tensor(3)}, "model.state_dict"),
        (lambda s: collections.defaultdict(dict, {"model": s}), "model"),
        (lambda s: argparse.Namespace(state_dict=s), "state_dict"),
        (lambda s: Config(state_dict=Config(s)), "state_dict"),
        (lambda s: {"state_dict": s, "rng": torch.get_rng_state(), "best": torch.tensor(0.9)},
         "state_dict"),
        (lambda s: {"model": {}, "state_dict": s}, "state_dict"),
        (lambda s: {"model": None, "net": s}, "net"),
        (lambda s: {"model": "resnet18", "weights": s}, "weights"),
    ],
)  # fmt: skip
def test_where_the_state_dict_lies(wrap: Any, part: str | None, tmp_path: Path) -> None:
    torch.save(wrap(WEIGHTS), tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert checkpoint.part == part and list(checkpoint.entries) == ["conv1.weight"]
    if part is not None:
        assert list(read_checkpoint(tmp_path / "x.pth", part).entries) == ["conv1.weight"]


NAMES = ["conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "fc.weight"]


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model.",
     "model.module._orig_mod.", "model.model.", "net.", "my_resnet.", "module.my_resnet.net.",
     "_fsdp_wrapped_module.", "model.backbone."],
)  # fmt: skip
def test_prefixes_in_any_combination(prefix: str) -> None:
    entries: dict[str, Any] = {f"{prefix}{name}": torch.ones(1) for name in NAMES}
    assert list(unwrapped(entries)) == NAMES
    assert list(unwrapped({"n_averaged": torch.tensor(1), "epoch": 3, **entries})) == NAMES
    inner = {f"{prefix}layer1._orig_mod.0.module.x": torch.ones(1), **entries}
    assert list(unwrapped(inner)) == ["layer1.0.x", *NAMES]


def test_tensors_beside_the_model_are_left_out_with_a_word() -> None:
    entries: dict[str, Any] = {f"model.{name}": torch.ones(1) for name in NAMES}
    warn_of_others(entries)  # no word where nothing is left out
    entries["criterion.weight"] = torch.ones(1)
    with pytest.warns(UserWarning, match=r"1 tensors beside the model, such as 'criterion.weight'"):
        warn_of_others(entries)
    assert list(unwrapped(entries)) == NAMES


def test_names_that_become_the_same_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"both 'conv1.weight'"):
        unwrapped({"conv1.weight": torch.ones(1), "module.conv1.weight": torch.ones(1)})
