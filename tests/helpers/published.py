"""Checkpoints as torchvision makes and loads them, with weights that tell pictures apart."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as tq
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import quantization as tv

from tests.helpers import zoo

#: torchvision's 12 quantized builders and the backend of the weights that each publishes last.
BUILDERS = {
    "googlenet": "fbgemm",
    "inception_v3": "fbgemm",
    "mobilenet_v2": "qnnpack",
    "mobilenet_v3_large": "qnnpack",
    "resnet18": "fbgemm",
    "resnet50": "fbgemm",
    "resnext101_32x8d": "fbgemm",
    "resnext101_64x4d": "fbgemm",
    "shufflenet_v2_x0_5": "fbgemm",
    "shufflenet_v2_x1_0": "fbgemm",
    "shufflenet_v2_x1_5": "fbgemm",
    "shufflenet_v2_x2_0": "fbgemm",
}
#: Pretrained GoogLeNet and Inception change their input's normalization.
TRANSFORMED = {"googlenet", "inception_v3"}


def side(name: str) -> int:
    """Height and width of the pictures that a model is tried with; Inception needs 75 pixels."""
    return 75 if name == "inception_v3" else 64


def pictures(name: str, count: int = 2, seed: int = 0) -> Tensor:
    """Normalized pictures [count, 3, side, side] of coarse and fine noise."""
    generator = torch.Generator().manual_seed(seed)
    size = side(name)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    fine = torch.randn(count, 3, size, size, generator=generator)
    return nn.functional.interpolate(coarse, size=(size, size)) + 0.3 * fine


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides PyTorch's notices, and gives back engine and random state."""
    engine = torch.backends.quantized.engine
    with zoo.engine(engine), zoo.quiet(), torch.random.fork_rng(devices=[]):
        yield


@contextlib.contextmanager
def cheap_init() -> Iterator[None]:
    """Leaves torchvision's weights to `_fill`, which is much quicker than its initialization."""
    names = ["kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "trunc_normal_"]
    before = {name: getattr(nn.init, name) for name in names}
    for name in names:
        setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(nn.init, name, function)


def _fill(model: nn.Module) -> None:
    """Gives every layer weights of Kaiming's variance, cut out of one block of noise."""
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(1))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            count = parameter.numel()
            block = noise.repeat(count // len(noise) + 1)[:count].view(parameter.shape)
            parameter.data = block * (2 / parameter[0].numel()) ** 0.5
        elif parameter.numel():
            parameter.data = noise[: parameter.numel()] * 0.1
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.add_(1.0)


def float_model(name: str, **kwargs: Any) -> nn.Module:
    """A quantizable float model of torchvision whose batch norms know the scale of their inputs."""
    extra: dict[str, Any] = dict(kwargs)
    if name in TRANSFORMED:
        extra = {"transform_input": True, "init_weights": False, "aux_logits": True, **extra}
    with cheap_init():
        model = getattr(tv, name)(quantize=False, **extra)
    if name == "inception_v3":  # its published file lacks the auxiliary classifier
        model.aux_logits, model.AuxLogits = False, None
    _fill(model)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(pictures(name, 4, seed=2))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def int8_model(name: str, backend: str | None = None, **kwargs: Any) -> nn.Module:
    """A model that torchvision's own classes and PyTorch's own PTQ made int8."""
    with quiet():
        backend = backend or BUILDERS[name]
        torch.backends.quantized.engine = backend
        model: Any = float_model(name, **kwargs)
        model.fuse_model(is_qat=False)
        model.qconfig = tq.get_default_qconfig(backend)
        if backend == "fbgemm":  # the published files were made with min-max observers
            model.qconfig = tq.QConfig(
                activation=tq.default_observer, weight=tq.default_per_channel_weight_observer
            )
        tq.prepare(model, inplace=True)
        with torch.no_grad():
            model(pictures(name, 4, seed=2))
        return tq.convert(model, inplace=True)


def qat_model(name: str, backend: str = "qnnpack", steps: int = 2, **kwargs: Any) -> nn.Module:
    """A model prepared for QAT whose observers and batch norms have seen pictures."""
    with quiet():
        torch.backends.quantized.engine = backend
        model: Any = float_model(name, **kwargs).train()
        model.fuse_model(is_qat=True)
        model.qconfig = tq.get_default_qat_qconfig(backend)
        tq.prepare_qat(model, inplace=True)
        with torch.no_grad():
            for seed in range(steps):
                model(pictures(name, 4, seed=seed))
        return model.eval()


def converted(model: nn.Module, backend: str) -> nn.Module:
    """PyTorch's own conversion of a QAT model, run under `backend`'s engine."""
    with quiet():
        torch.backends.quantized.engine = backend
        return tq.convert(model.eval(), inplace=False)


def loaded(model: nn.Module, state: Any, engine: str) -> nn.Module:
    """The model with the state dict loaded, which packs weights for the current engine."""
    with quiet():
        torch.backends.quantized.engine = engine
        model.load_state_dict(state)
    return model


def logits(model: nn.Module, x: Tensor, engine: str) -> Tensor:
    """The model's outputs under PyTorch's quantized engine `engine`."""
    with quiet(), torch.inference_mode():
        torch.backends.quantized.engine = engine
        result: Any = model(x)
        return result


def assert_informative(y: Tensor) -> None:
    """Checks that the logits tell classes and pictures apart, or else equality proves little."""
    assert y.isfinite().all()
    assert y.unique().numel() > 10, "the logits hardly vary"
    assert (y[0] != y[1]).float().mean() > 0.2, "the logits hardly depend on the picture"


class QuantizedTensorUsed(AssertionError):
    """A quantized dtype, tensor or operator of PyTorch was reached for."""


def _forbidden(name: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise QuantizedTensorUsed(name)

    return refuse


class _Removed:
    """Stands where `torch.ops.quantized` was."""

    def __getattr__(self, name: str) -> Any:
        raise QuantizedTensorUsed(f"torch.ops.quantized.{name}")


class _NoQuantizedFunctions(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if "quantize" in name or name in ("int_repr", "q_scale", "q_zero_point", "qscheme"):
            raise QuantizedTensorUsed(name)
        return func(*args, **(kwargs or {}))


class _NoQuantizedOps(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = result if isinstance(result, (tuple, list)) else (result,)
        if (
            _is_quantized_op(func)
            or kwargs.get("dtype") in _DTYPES.values()
            or any(isinstance(value, Tensor) and value.is_quantized for value in made)
        ):
            raise QuantizedTensorUsed(func.name())
        return result


@functools.cache
def _is_quantized_op(func: Any) -> bool:
    return "quantize" in func.name()


_DTYPES = {
    name: getattr(torch, name) for name in ("qint8", "quint8", "qint32", "quint4x2", "quint2x4")
}
_SCHEMES = (
    "per_tensor_affine",
    "per_channel_affine",
    "per_tensor_symmetric",
    "per_channel_symmetric",
    "per_channel_affine_float_qparams",
)
_STORAGES = ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage", "QUInt2x4Storage")


@contextlib.contextmanager
def without_quantized_tensors() -> Iterator[None]:
    """A PyTorch without quantized dtypes, schemes, storages, constructors and operators."""
    constructors = [
        name
        for name in dir(torch)
        if ("quantiz" in name and callable(getattr(torch, name)) and name != "quantization")
    ]
    methods = ["int_repr", "q_scale", "q_zero_point", "q_per_channel_scales", "qscheme"]
    with pytest.MonkeyPatch.context() as patch:
        for name in (*_DTYPES, *_SCHEMES, *_STORAGES):
            patch.delattr(torch, name)
        for name in (*constructors, "_empty_affine_quantized", "fake_quantize_per_tensor_affine"):
            patch.setattr(torch, name, _forbidden(name))
        for name in (*methods, "dequantize", "q_per_channel_zero_points"):
            patch.setattr(Tensor, name, _forbidden(name))
        patch.setattr(torch.ops, "quantized", _Removed())
        with _NoQuantizedFunctions(), _NoQuantizedOps():
            yield
