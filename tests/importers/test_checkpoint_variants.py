"""State dicts as users have them: every version, naming and wrapping, and those to refuse."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao import quantization as tq

from qzoo import ArgumentError, Artifact, ArtifactError, ModelInfo
from qzoo.errors import BackendWarning
from qzoo.importers.pth import read_checkpoint
from qzoo.importers.published import from_checkpoint
from qzoo.native.model import to_native
from tests.helpers import published as ph

SMALL = "shufflenet_v2_x0_5"


@functools.cache
def shared(name: str = SMALL, backend: str = "fbgemm") -> nn.Module:
    return ph.int8_model(name, backend)


@functools.cache
def shared_qat(name: str = SMALL, backend: str = "fbgemm") -> nn.Module:
    return ph.qat_model(name, backend)


def state_of(model: nn.Module) -> Any:
    """A copy of the state dict whose entries may be replaced."""
    state = model.state_dict()
    copied = OrderedDict(state)
    copied._metadata = copy.deepcopy(state._metadata)  # type: ignore[attr-defined]
    return copied


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Artifact]:
    def read(
        saved: Any,
        name: str = SMALL,
        backend: str | None = None,
        part: str | None = None,
        zipped: bool = True,
        guard: bool = True,
        **kwargs: Any,
    ) -> Artifact:
        path = tmp_path / "checkpoint.pth"
        torch.save(saved, path, _use_new_zipfile_serialization=zipped)
        with ph.without_quantized_tensors() if guard else contextlib.nullcontext():
            return from_checkpoint(read_checkpoint(path, part), ModelInfo(name, kwargs, backend))

    return read


def check_equal(artifact: Artifact, expected: nn.Module, engine: str) -> None:
    name = artifact.info.architecture
    x = ph.pictures(name)
    wanted = ph.logits(expected, x, engine)
    ph.assert_informative(wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Told of 8-bit activations on this engine, which both sides run alike here.
        warnings.filterwarnings("ignore", message=".*cut large sums", category=BackendWarning)
        model = to_native(artifact, engine)
    assert torch.equal(ph.logits(model, x, engine), wanted)


def test_the_guard_notices_every_way_to_a_quantized_tensor():
    dtype, functions = torch.qint8, torch._C._VariableFunctions
    for reach in (
        lambda: torch.quint8,
        lambda: torch.ops.quantized.add,
        lambda: torch.empty(2, dtype=dtype),
        lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, dtype),
        lambda: functions.quantize_per_tensor(torch.ones(2), 1.0, 0, dtype),
        lambda: torch.ops.aten.quantize_per_tensor(torch.ones(2), 1.0, 0, dtype),
        lambda: torch._make_per_tensor_quantized_tensor(torch.ones(2).char(), 1.0, 0),
    ):
        refused = pytest.raises((ph.QuantizedTensorUsed, AttributeError))
        with refused, ph.without_quantized_tensors():
            reach()
    assert torch.qint8 is dtype


# Int8 state dicts


@pytest.mark.parametrize("backend", ["x86", "onednn", "qnnpack"])
def test_every_backend(read, backend):
    model = ph.int8_model(SMALL, backend)
    artifact = read(model.state_dict(), backend=backend)
    assert artifact.info.backend == backend
    check_equal(artifact, model, backend)
    guessed = read(model.state_dict()).info.backend
    assert guessed == ("qnnpack" if backend == "qnnpack" else "fbgemm")


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("zipped", [True, False])
def test_versions_of_linear_layers(read, version, zipped):
    state = state_of(shared())
    weight, bias = state["fc._packed_params._packed_params"]
    if version < 3:
        inner = "fc" if version == 1 else "fc._packed_params"
        del state["fc._packed_params._packed_params"]
        state[f"{inner}.weight"], state[f"{inner}.bias"] = weight, bias
        state._metadata["fc"]["version"] = version
        if version == 1:
            del state["fc._packed_params.dtype"]
            del state._metadata["fc._packed_params"]
        else:
            state._metadata["fc._packed_params"]["version"] = version
    artifact = read(state, zipped=zipped)
    check_equal(artifact, shared(), "fbgemm")
    assert artifact.digest() == read(shared().state_dict()).digest()


def test_optional_parts_may_be_missing(read):
    whole = read(shared().state_dict())
    bare = {k: v for k, v in shared().state_dict().items() if not k.endswith(".dtype")}
    assert read(bare).digest() == whole.digest()  # no dtype, and a dict has no _metadata
    numbers = {k: v.item() if k.endswith(("scale", "zero_point")) else v for k, v in bare.items()}
    assert read(numbers).digest() == whole.digest()


def test_layers_without_bias(read):
    model: Any = ph.int8_model(SMALL)
    with ph.quiet():
        torch.backends.quantized.engine = "fbgemm"
        model.fc._packed_params.set_weight_bias(model.fc.weight(), None)
        model.conv1[0].set_weight_bias(model.conv1[0].weight(), None)
    artifact = read(model.state_dict())
    assert "fc.bias" not in artifact.tensors and "conv1.0.bias" not in artifact.tensors
    check_equal(artifact, model, "fbgemm")


@pytest.mark.parametrize("asymmetric", ["per_tensor", "per_channel"])
def test_weights_with_zero_points(read, asymmetric):
    observer: Any = (
        tq.PerChannelMinMaxObserver if asymmetric == "per_channel" else tq.MinMaxObserver
    )
    scheme = getattr(torch, f"{asymmetric}_affine")
    weight = observer.with_args(dtype=torch.qint8, qscheme=scheme)
    with ph.quiet():
        torch.backends.quantized.engine = "fbgemm"
        model: Any = ph.float_model(SMALL)
        model.fuse_model(is_qat=False)
        model.qconfig = tq.QConfig(activation=tq.default_observer, weight=weight)
        tq.prepare(model, inplace=True)(ph.pictures(SMALL))
        tq.convert(model, inplace=True)
    artifact = read(model.state_dict())
    assert any(key.endswith("zero_point") for key in artifact.tensors)
    check_equal(artifact, model, "fbgemm")


@pytest.mark.parametrize("wrap", ["model", "state_dict", "ema", "parallel", "eval_model"])
def test_training_checkpoints(read, wrap):
    state = shared().state_dict()
    wrapped = {f"module.{key}": value for key, value in state.items()}
    rest = {"epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    saved: dict[str, Any] = {
        "model": {**rest, "model": state},
        "state_dict": {**rest, "state_dict": state},
        "ema": {"model_ema": {"n_averaged": torch.tensor(3), **wrapped}, **rest},
        "parallel": wrapped,
        # torchvision's QAT script keeps the converted model beside the trained one.
        "eval_model": {"model": shared_qat().state_dict(), "eval_model": state, **rest},
    }
    part = {"ema": "model_ema", "eval_model": "eval_model"}.get(wrap)
    assert read(saved[wrap], part=part).digest() == read(state).digest()


@pytest.mark.parametrize("make", [ph.int8_model, ph.qat_model])
def test_number_of_classes_is_found(read, make):
    state = make(SMALL, num_classes=10).state_dict()
    artifact = read(state, guard=False)
    assert artifact.info.builder_kwargs == {"num_classes": 10}
    assert len(artifact.tensors["fc.weight"]) == 10
    assert read(state, guard=False, num_classes=10).digest() == artifact.digest()
    assert read(make(SMALL, num_classes=1).state_dict()).info.builder_kwargs == {"num_classes": 1}


@pytest.mark.parametrize("transform_input", [True, False])
def test_auxiliary_classifiers_are_dropped(read, transform_input):
    model = ph.int8_model("googlenet", transform_input=transform_input)
    state = state_of(model)
    assert "aux1.conv.conv.scale" in state
    without = {k: v for k, v in state.items() if not k.startswith("aux")}
    both = [read(s, "googlenet", transform_input=transform_input) for s in (state, without)]
    assert both[0].digest() == both[1].digest()
    assert both[0].info.builder_kwargs["aux_logits"] is False
    check_equal(both[0], model, "fbgemm")


# QAT state dicts


@pytest.mark.parametrize(
    ("backend", "observers"),
    [("fbgemm", True), ("onednn", False), ("qnnpack", True), ("qnnpack", False)],
)
def test_qat_becomes_what_convert_makes(read, backend, observers):
    model = copy.deepcopy(shared_qat(SMALL, backend))
    if not observers:
        model.apply(tq.disable_observer)
    artifact = read(model.state_dict())
    assert artifact.info.backend == backend
    check_equal(artifact, ph.converted(model, backend), backend)


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_qat_with_separate_observers_and_old_names(read, backend):
    with ph.quiet():
        torch.backends.quantized.engine = backend
        model: Any = ph.float_model(SMALL).train()
        model.fuse_model(is_qat=True)
        model.qconfig = tq.get_default_qat_qconfig(backend, version=0)  # before fused observers
        tq.prepare_qat(model, inplace=True)(ph.pictures(SMALL))
    state = model.eval().state_dict()
    expected = ph.converted(model, backend)
    check_equal(read(state), expected, backend)
    # Batch norm's names before version 2, observers' before version 3, and no epsilon yet.
    norm = {".bn.weight": ".gamma", ".bn.bias": ".beta", ".bn.running_": ".running_"}
    old = {}
    for key, value in state.items():
        if key.endswith("activation_post_process.eps"):
            continue
        for new_name, old_name in norm.items():
            key = key.replace(new_name, old_name)
        if ".weight_fake_quant." in key and backend == "fbgemm":
            key = key.replace("min_val", "min_vals").replace("max_val", "max_vals")
        old[key] = value
    check_equal(read(old), expected, backend)


def test_qat_checkpoint_of_torchvisions_script(read):
    saved = {
        "model": shared_qat().state_dict(),
        "eval_model": shared().state_dict(),
        "epoch": 1,
    }
    check_equal(read(saved), ph.converted(shared_qat(), "fbgemm"), "fbgemm")


# What is refused, in one sentence


def refused(
    read: Callable[..., Artifact],
    model: nn.Module,
    change: Callable[[dict[str, Any]], object],
    words: str,
) -> None:
    """Requires that the model's state dict is refused in one sentence once it was changed."""
    state = state_of(model)
    change(state)
    with pytest.raises(ArtifactError, match=words) as caught:
        read(state, guard=False)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def _without(*keys: str) -> Callable[[dict[str, Any]], object]:
    return lambda state: [state.pop(key) for key in keys]


def _with(**entries: Any) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.update({k.replace("__", "."): v for k, v in entries.items()})


def _transposed(state: dict[str, Any]) -> None:
    weight = state["conv1.0.weight"]
    state["conv1.0.weight"] = torch.quantize_per_channel(
        weight.dequantize(), torch.full((3,), 0.01), torch.zeros(3).long(), 1, torch.qint8
    )


def _gray(state: dict[str, Any]) -> None:
    gray = torch.full((24, 1, 3, 3), 0.5)
    state["conv1.0.weight"] = torch.quantize_per_tensor(gray, 0.01, 0, torch.qint8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_gray, r"takes pictures of 1 channel\. One channel \(gray\) is not supported"),
        (_without("conv1.0.weight"), "lacks 'conv1.0.weight'"),
        (_without("conv1.0.scale"), "lacks 'conv1.0.scale'"),
        (_without("quant.zero_point"), "lacks 'quant.zero_point'"),
        (_without("fc._packed_params._packed_params"), "lacks 'fc.weight'"),
        (_with(conv9__weight=torch.ones(1)), "lacks, such as 'conv9.weight'"),
        (_with(conv1__0__scale=torch.tensor(float("nan"))), "'conv1.0' has the impossible scale"),
        (_with(conv1__0__scale=torch.tensor(-1.0)), "'conv1.0' has the impossible scale"),
        (_with(conv1__0__scale=torch.tensor([])), "'conv1.0.scale' .* not a single number"),
        (_with(conv1__0__scale="1"), "'conv1.0.scale' .* not a single number"),
        (_with(fc__zero_point=torch.tensor(256)), "zero point 256"),
        (_with(fc__zero_point=torch.tensor(-1)), "zero point -1"),
        (_with(fc__zero_point=torch.tensor(0.5)), "0.5, no integer"),
        (_with(fc__zero_point=torch.tensor(float("inf"))), "inf, no integer"),
        (_with(conv1__0__weight=torch.ones(24, 3, 3, 3)), "'conv1.0' is not an int8 tensor"),
        (_with(conv1__0__bias=torch.ones(24, dtype=torch.int32)), "'conv1.0' is not a float"),
        (_with(conv1__0__bias=torch.full((24,), float("nan"))), "'conv1.0' has a bias"),
        (_with(conv1__0__bias=torch.full((24,), 1e300, dtype=torch.float64)), "has a bias that is"),
        (_with(conv1__0__bias=torch.ones(25)), "'conv1.0' has a bias"),
        (_with(conv1__0__scale=torch.tensor(1e300, dtype=torch.float64)), "impossible scale"),
        (_with(conv1__0__scale=torch.ones(3)), "not a single number"),
        (_with(fc__zero_point=torch.tensor(1j)), "not a single number"),
        (_with(fc___packed_params__dtype=torch.ones(2)), "stores .* weights, not int8 ones"),
        (_with(fc___packed_params___packed_params=(torch.ones(1),)), "packed parameters"),
        (_with(fc___packed_params__dtype=torch.float16), "stores torch.float16 weights"),
        (_transposed, "another axis"),
    ],
)
def test_damaged_int8_state_dicts(read, change, words):
    refused(read, shared(), change, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("conv1.0.weight"), "lacks the tensor 'conv1.0.weight'"),
        (
            _without("conv1.0.activation_post_process.activation_post_process.min_val"),
            "lacks the tensor",
        ),
        (
            _with(conv1__0__weight_fake_quant__activation_post_process__min_val=torch.ones(7)),
            "has seen no data",
        ),
        (_with(conv1__0__bn__running_var=torch.ones(7)), "wrong shape"),
        (_with(conv1__0__bn__running_var=torch.full((24,), float("nan"))), "'conv1.0'"),
        (_with(conv1__0__weight=torch.full((24, 3, 3, 3), float("nan"))), "'conv1.0'"),
        (_with(conv1__0__weight=torch.ones(24)), "'conv1.0'"),
        (_with(conv1__0__weight=torch.ones(24, 1, 3, 3)), "One channel"),
        (_with(fc__bias=torch.ones(999)), "'fc.bias'"),
        (_with(fc__bias=torch.ones(1000, 1)), "'fc.bias'"),
        (_with(fc__bias=torch.ones(1000).to(torch.complex64)), "'fc.bias'"),
        *(
            (_with(fc__weight_fake_quant__activation_post_process__eps=eps), "eps' of the QAT")
            for eps in (torch.ones(2), torch.ones(0), torch.ones(1).int(), torch.ones(1) + 1j)
        ),
        (_with(conv9__weight_fake_quant__scale=torch.ones(1)), "'conv9' that this"),
        (
            _with(
                conv1__0__activation_post_process__activation_post_process__max_val=torch.tensor(
                    float("inf")
                )
            ),
            "'conv1.0'",
        ),
    ],
)
def test_damaged_qat_state_dicts(read, change, words):
    refused(read, shared_qat(), change, words)


def test_state_dicts_for_something_else(read):
    with pytest.raises(ArtifactError, match=r"lacks .*never converted or prepared for QAT"):
        read(ph.float_model(SMALL).state_dict())
    with pytest.raises(ArtifactError, match="another architecture"):
        read(shared().state_dict(), "resnet18")
    with pytest.raises(ArtifactError, match="has a weight of shape"):
        read(shared().state_dict(), "shufflenet_v2_x1_0")
    with pytest.raises(ArtifactError, match="has a weight of shape"):
        read(shared().state_dict(), num_classes=7)
    with pytest.raises(ArtifactError, match="lacks"):
        read({})
    no_classes = state_of(shared())
    empty = torch._empty_affine_quantized([0, 1024], scale=1.0, zero_point=0, dtype=torch.qint8)
    no_classes["fc._packed_params._packed_params"] = (empty, torch.empty(0))
    with pytest.raises(ArtifactError, match=r"shape \(0, 1024\)"):
        read(no_classes)
    with pytest.raises(ArtifactError, match="holds a tensor instead of a state dict"):
        read(torch.ones(3))
    with pytest.raises(ArgumentError, match="Cannot build"):
        read(shared().state_dict(), surprise=True)
    with ph.quiet():
        unseen: Any = ph.float_model(SMALL).train()
        unseen.fuse_model(is_qat=True)
        unseen.qconfig = tq.get_default_qat_qconfig("fbgemm")
        tq.prepare_qat(unseen, inplace=True)
    with pytest.raises(ArtifactError, match="has seen no data"):
        read(unseen.state_dict())
