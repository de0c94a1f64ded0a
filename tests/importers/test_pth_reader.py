"""Real `torch.save` files, in both serializations, against PyTorch's own numbers."""

from __future__ import annotations

import argparse
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models.quantization as tvq
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qzoo.errors import ArtifactError
from qzoo.importers.pth import QuantizedArray, read_checkpoint

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
INT8 = ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "googlenet"]


@pytest.fixture(scope="module")
def int8_state_dicts() -> Iterator[dict[str, dict[str, Any]]]:
    engine = torch.backends.quantized.engine
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        extra: dict[str, dict[str, Any]] = {"googlenet": {"init_weights": False}}
        yield {n: getattr(tvq, n)(quantize=True, **extra.get(n, {})).state_dict() for n in INT8}
    torch.backends.quantized.engine = engine


@pytest.fixture(scope="module")
def qat_state_dict() -> Iterator[dict[str, Any]]:
    engine = torch.backends.quantized.engine
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = tvq.mobilenet_v3_large().train()
        model.fuse_model(is_qat=True)
        model.qconfig = torch.ao.quantization.get_default_qat_qconfig("qnnpack")
        torch.ao.quantization.prepare_qat(model, inplace=True)
        yield model.state_dict()
    torch.backends.quantized.engine = engine


def save(value: object, path: Path, zipped: bool = True, **options: Any) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
    return path


def assert_same(ours: object, theirs: object) -> None:
    if isinstance(theirs, torch.Tensor) and theirs.is_quantized:
        assert isinstance(ours, QuantizedArray)
        values = theirs.int_repr()
        assert ours.values.dtype == values.dtype
        assert ours.values.stride() == theirs.stride()
        assert torch.equal(ours.values, values)
        if theirs.qscheme() == torch.per_tensor_affine:
            assert ours.axis is None
            assert ours.scale.item() == theirs.q_scale()
            assert ours.zero_point.item() == theirs.q_zero_point()
        else:
            assert ours.axis == theirs.q_per_channel_axis()
            assert torch.equal(ours.scale, theirs.q_per_channel_scales())
            assert torch.equal(ours.zero_point, theirs.q_per_channel_zero_points())
        assert ours.scale.dtype == torch.float64
        assert ours.zero_point.dtype == torch.int64
    elif isinstance(theirs, torch.Tensor):
        assert isinstance(ours, torch.Tensor)
        assert ours.dtype == theirs.dtype
        assert not ours.requires_grad
        assert torch.equal(ours, theirs.detach())
    elif isinstance(theirs, torch.dtype):
        assert ours == str(theirs)
    elif isinstance(theirs, tuple):
        assert isinstance(ours, tuple)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs


def assert_same_state(path: Path, state: dict[str, Any]) -> None:
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.entries) == list(state)
    for key, value in state.items():
        assert_same(checkpoint.entries[key], value)
    assert checkpoint.metadata == dict(getattr(state, "_metadata", {}))


@FORMATS
@pytest.mark.parametrize("name", INT8)
def test_int8_state_dict(
    name: str, zipped: bool, int8_state_dicts: dict[str, Any], tmp_path: Path
) -> None:
    state = int8_state_dicts[name]
    assert state._metadata
    assert_same_state(save(state, tmp_path / "a b.pth", zipped), state)


@FORMATS
def test_qat_state_dict(zipped: bool, qat_state_dict: dict[str, Any], tmp_path: Path) -> None:
    assert any(key.endswith("fake_quant_enabled") for key in qat_state_dict)
    assert_same_state(save(qat_state_dict, tmp_path / "qat.pth", zipped), qat_state_dict)


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_layout_and_dtype(zipped: bool, protocol: int, tmp_path: Path) -> None:
    weight = torch.randn(4, 6)
    per_tensor = torch.quantize_per_tensor(weight, 0.1, 3, torch.quint8)
    scales = torch.rand(4, dtype=torch.float64) + 0.01
    per_channel = torch.quantize_per_channel(weight, scales, torch.arange(4), 0, torch.qint8)
    bias = nn.Parameter(torch.randn(4))
    state = OrderedDict(
        {
            "v1.weight": per_tensor,
            "v1.bias": torch.quantize_per_tensor(bias.detach(), 0.01, 0, torch.qint32),
            "v2._packed_params.weight": per_channel,
            "v2._packed_params.bias": bias,
            "v2._packed_params.dtype": torch.qint8,
            "v3._packed_params._packed_params": (per_channel, bias),
            "v3.no_bias": (per_channel, None),
            "view": per_channel[1:3],
            "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
            "transposed": torch.arange(12).reshape(3, 4).T[1:],
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(2.5),
            "flags": torch.tensor([True, False]),
            "half": torch.randn(3).half(),
            "bfloat16": torch.randn(3).bfloat16(),
            "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
            "complex": torch.randn(3, dtype=torch.complex64),
            "number": 3,
            "negative": -(1 << 40),
            "real": 0.5,
            "text": "größe",
            "flag": True,
            "none": None,
        }
    )
    state._metadata = OrderedDict({"": {"version": 1}, "v3": {"version": 3}})  # type: ignore[attr-defined]
    assert_same_state(save(state, tmp_path / "x.pth", zipped, pickle_protocol=protocol), state)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    weight = torch.randn(4)
    path = save({"a": weight, "b": weight, "half": weight[2:]}, tmp_path / "x.pth")
    entries: Any = read_checkpoint(path).entries
    assert entries["a"] is entries["b"]
    entries["a"][2] = 7
    assert entries["half"][0] == 7
    assert read_checkpoint(path).entries["a"][2] != 7  # type: ignore[index]


@FORMATS
def test_training_checkpoint(zipped: bool, tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 1, 2])
    saved = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "model_ema": OrderedDict(n_averaged=torch.tensor(1)),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, device=torch.device("cuda", 1), names=["a"]),
    }
    path = save(saved, tmp_path / "x.pth", zipped)
    checkpoint = read_checkpoint(path)
    assert checkpoint.part == "model"
    assert checkpoint.others == ("optimizer", "lr_scheduler", "model_ema", "epoch", "args")
    assert list(checkpoint.entries) == ["weight", "bias"]
    assert checkpoint.metadata == {"": {"version": 1}}
    assert list(read_checkpoint(path, part="model_ema").entries) == ["n_averaged"]
    arguments = read_checkpoint(path, part="args").entries
    assert arguments == {"lr": 0.1, "device": "cuda:1", "names": ["a"]}
    assert "state" in read_checkpoint(path, part="optimizer").entries
    assert read_checkpoint(path, part="lr_scheduler").entries["milestones"] == {1: 2, 2: 1}
    with pytest.raises(ArtifactError, match="no dict under 'other'; it has model"):
        read_checkpoint(path, part="other")


class NoQuantized(TorchDispatchMode):
    """Raises at every operator that makes or takes a quantized tensor."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for value in (*args, result):
            if isinstance(value, torch.Tensor) and value.is_quantized:
                raise AssertionError(f"{func} used a quantized tensor")
        return result


@FORMATS
def test_reads_without_quantized_dtypes(
    zipped: bool,
    int8_state_dicts: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = save(int8_state_dicts["resnet18"], tmp_path / "x.pth", zipped)
    for name in ("qint8", "quint8", "qint32", "quint4x2", "per_tensor_affine", "QInt8Storage"):
        monkeypatch.delattr(torch, name)
    for name in ("_rebuild_tensor_v2", "_rebuild_qtensor", "_rebuild_parameter"):
        monkeypatch.delattr(torch._utils, name)
    engine = torch.backends.quantized.engine
    state = torch.random.get_rng_state()
    with NoQuantized(), warnings.catch_warnings():
        warnings.simplefilter("error")
        entries = read_checkpoint(path).entries
    assert isinstance(entries["conv1.weight"], QuantizedArray)
    assert torch.backends.quantized.engine == engine
    assert torch.equal(torch.random.get_rng_state(), state)


def test_default_device_is_not_used(tmp_path: Path) -> None:
    path = save(
        {"a": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}, tmp_path / "x"
    )
    with torch.device("meta"):
        array = read_checkpoint(path).entries["a"]
    assert isinstance(array, QuantizedArray)
    assert {array.values.device.type, array.scale.device.type} == {"cpu"}
