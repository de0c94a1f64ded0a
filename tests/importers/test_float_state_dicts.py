"""Float state dicts as people have them: recognized, checked and loaded, or refused."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

import qzoo
from qzoo.importers.architecture import recognize
from qzoo.importers.checkpoint import is_float_checkpoint, load_float, save_float
from qzoo.native.model import model_info
from qzoo.sharing.convert import convert_checkpoint, read_any, state_dict_bytes
from tests.helpers import zoo

SMALL = "shufflenet_v2_x0_5"
IMAGES = zoo.small_images(SMALL)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A float model of torchvision, of 10 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return zoo.vary(torchvision.models.shufflenet_v2_x0_5(num_classes=10)).eval()


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(ours(IMAGES), theirs(IMAGES))


def saved(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


# Which model it is


def shapes_of(name: str, **kwargs: Any) -> dict[str, torch.Tensor]:
    extra = {"init_weights": False} if name in zoo.WITH_AUX else {}
    with torch.device("meta"):
        return getattr(torchvision.models, name)(**kwargs, **extra).state_dict()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet18", {}),
        ("resnet50", {"width_per_group": 96}),
        ("resnet101", {"groups": 4, "width_per_group": 32}),
        ("wide_resnet50_2", {}),
        ("mobilenet_v2", {"width_mult": 0.35}),
        ("mobilenet_v2", {"width_mult": 0.75}),
        ("mobilenet_v2", {"width_mult": 1.4}),
        ("mobilenet_v3_large", {"width_mult": 0.75}),
        ("mobilenet_v3_small", {"width_mult": 0.5, "reduced_tail": True}),
        ("mobilenet_v3_small", {"reduced_tail": True}),
    ],
)
def test_architecture_and_width_are_told_from_the_shapes(name: str, kwargs: dict[str, Any]) -> None:
    entries = shapes_of(name, num_classes=7, **kwargs)
    assert recognize(entries) == (name, kwargs)
    assert recognize(entries, name) == (name, kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs", "told"),
    [
        ("mobilenet_v2", {"width_mult": 0.5}, {}),
        ("googlenet", {"aux_logits": True}, {"transform_input": False}),
        ("googlenet", {"aux_logits": False}, {"transform_input": True}),
        ("mobilenet_v2", {"inverted_residual_setting": [[1, 16, 1, 1], [6, 24, 2, 2]]}, {
            "model": "mobilenet_v2", "inverted_residual_setting": [[1, 16, 1, 1], [6, 24, 2, 2]],
        }),
    ],
)  # fmt: skip
def test_torchvisions_weights_come_back(
    name: str, kwargs: dict[str, Any], told: dict[str, Any], tmp_path: Path
) -> None:
    extra = {"init_weights": False} if name in zoo.WITH_AUX else {}
    with torch.random.fork_rng(devices=[]):
        theirs = getattr(torchvision.models, name)(num_classes=3, **kwargs, **extra)
    path = saved(theirs.state_dict(), tmp_path / "mine.pth")
    random = torch.get_rng_state()
    ours = load_float(path, **told)
    assert torch.equal(torch.get_rng_state(), random) and not ours.training
    state = theirs.state_dict()
    for key, value in ours.state_dict().items():
        assert torch.equal(value, state[key]) and value.dtype == state[key].dtype
    assert {key.partition(".")[0] for key in state.keys() - ours.state_dict().keys()} <= {
        "aux1",
        "aux2",
    }
    info = model_info(ours)
    assert info.architecture == name and info.builder_kwargs["num_classes"] == 3
    assert all(parameter.requires_grad for parameter in ours.parameters())
    save_float(ours, tmp_path / "again.safetensors")
    assert model_info(load_float(tmp_path / "again.safetensors")) == info


def test_what_no_shape_tells_must_be_said(tmp_path: Path) -> None:
    path = saved(
        {k: torch.zeros(v.shape) for k, v in shapes_of("googlenet").items()}, tmp_path / "g"
    )
    with pytest.raises(qzoo.ArgumentError, match=r"g: .* --transform-input \(transform_input=True"):
        load_float(path)


# How it is stored


def lightning(state: dict[str, Any]) -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 7,
        "pytorch-lightning_version": "2.0",
        "state_dict": {f"model.{key}": value for key, value in state.items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}],
        "hyper_parameters": {"lr": np.float64(0.1), "path": Path("x")},
    }


WRAPPINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "state dict": lambda s: s,
    "model": lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": np.int64(3)},
    "Lightning": lightning,
    "compiled and parallel": lambda s: {
        "state_dict": {f"module._orig_mod.model.{k}": v for k, v in s.items()}
    },
    "average": lambda s: {
        "ema": {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}}
    },
    "bare tensors beside": lambda s: {**s, "epoch": 3, "best": np.float32(0.5)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_training_checkpoints(wrapping: str, model: nn.Module, tmp_path: Path) -> None:
    path = saved(WRAPPINGS[wrapping](dict(model.state_dict())), tmp_path / "mine.pth")
    ours = load_float(path)
    assert is_float_checkpoint(path) and same(ours, model)
    assert model_info(ours).builder_kwargs == {"num_classes": 10}


def test_parts_names_and_transforms(model: nn.Module, tmp_path: Path) -> None:
    other = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    path = saved({"model": other, "model_ema": model.state_dict()}, tmp_path / "mine.pth")
    names = [str(i) for i in range(10)]
    transforms = qzoo.transforms.ImageClassification(crop_size=32).to_dict()
    ours = load_float(path, part="model_ema", classes=names, transforms=transforms)
    assert same(ours, model)
    info = model_info(ours)
    assert (info.classes, info.transforms) == (names, transforms)
    with pytest.raises(qzoo.ArtifactError, match="10 logits and 2 class names"):
        load_float(path, classes=["a", "b"])
    with pytest.raises(qzoo.ArgumentError, match="of 10 classes, not of 7"):
        load_float(path, num_classes=7)


def test_safetensors_without_a_description(model: nn.Module, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert is_float_checkpoint(tmp_path / "m.safetensors")
    assert same(load_float(tmp_path / "m.safetensors"), model)
    with pytest.raises(qzoo.ArgumentError, match="has no parts"):
        load_float(tmp_path / "m.safetensors", part="model")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(
    dtype: torch.dtype, model: nn.Module, tmp_path: Path
) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}  # old files
    ours = load_float(saved(state, tmp_path / "m.pth"))
    for key, value in state.items():
        assert torch.equal(ours.state_dict()[key], value.float())


def test_conversion_both_ways(model: nn.Module, tmp_path: Path) -> None:
    path = saved(model.state_dict(), tmp_path / "mine.pth")
    found: Any = read_any(path, like="ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1", backend=None)
    assert same(found, model) and model_info(found).transforms["crop_size"] == 224
    (tmp_path / "back.pth").write_bytes(state_dict_bytes(found))
    model.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True))
    with pytest.raises(qzoo.ArgumentError, match="drop backend"):
        read_any(path, backend="x86")
    with pytest.raises(qzoo.ArtifactError, match="never converted or prepared for QAT"):
        convert_checkpoint(path)


# What is refused


def _without(*keys: str) -> Callable[[dict[str, Any]], object]:
    return lambda state: [state.pop(key) for key in keys]


def _with(**entries: Any) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.update({k.replace("__", "."): v for k, v in entries.items()})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("fc.bias"), "it lacks 1 tensors (such as 'fc.bias')"),
        (_without("conv1.1.running_mean", "fc.weight"), "lacks 2 tensors"),
        (_with(fc__extra=torch.ones(1)), "it has 1 too many (such as 'fc.extra')"),
        (_with(fc__bias=torch.ones(11)), "'fc.bias' has the shape (11,), not (10,)"),
        (_with(fc__bias=torch.ones(10, 1)), "'fc.bias' has the shape"),
        (_with(fc__bias=torch.ones(10, dtype=torch.int32)), "holds torch.int32, not torch.float32"),
        (_with(fc__bias=torch.ones(10, dtype=torch.complex64)), "holds torch.complex64"),
        (_with(fc__bias=torch.ones(10, dtype=torch.bool)), "holds torch.bool"),
        (_with(fc__bias=torch.ones(10).to(torch.float8_e5m2)), "holds torch.float8_e5m2"),
        (_with(conv1__1__num_batches_tracked=torch.tensor(1.5)), "not torch.int64"),
        (_with(fc__bias=np.ones(10)), "'fc.bias' is no tensor, but <numpy"),
        (_with(fc__bias=None), "'fc.bias' is no tensor, but None"),
        (_with(fc__bias=[1.0] * 10), "'fc.bias' is no tensor"),
        (_with(fc__weight=torch.ones(0, 1024)), "shape (0, 1024)"),
        (_with(fc__weight=torch.ones(10, 1023)), "fit no model of the zoo"),
        (_with(conv1__0__weight=torch.ones(24, 1, 3, 3)), "One channel (gray) is not supported"),
        (_with(conv1__0__weight=torch.ones(24, 4, 3, 3)), "4 channels are not supported"),
        (_with(conv1__0__weight=torch.ones(25, 3, 3, 3)), "fit no model of the zoo"),
        (_with(conv1__0__weight=torch.eye(3).to_sparse()), "sparse"),
        (_with(module__fc__bias=torch.ones(10)), "both 'fc.bias'"),
    ],
)  # fmt: skip
def test_damaged_state_dicts(
    change: Callable[[dict[str, Any]], object], words: str, model: nn.Module, tmp_path: Path
) -> None:
    state = OrderedDict(model.state_dict())
    change(state)
    path = saved(state, tmp_path / "mine.pth")
    with pytest.raises((qzoo.ArtifactError, qzoo.ArgumentError)) as caught:
        load_float(path)
    message = str(caught.value)
    assert words in message and str(path) in message
    assert "\n" not in message and len(message) < 600


def test_the_model_may_be_named(model: nn.Module, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    assert same(load_float(saved(state, tmp_path / "m"), model=SMALL), model)
    with pytest.raises(qzoo.ArtifactError, match=r"does not fit resnet18: it lacks"):
        load_float(tmp_path / "m", model="resnet18")
    with pytest.raises(qzoo.UnknownNameError, match="Did you mean"):
        load_float(tmp_path / "m", model="resnet19")
    state["conv1.0.weight"] = torch.ones(24, 1, 3, 3)
    with pytest.raises(qzoo.ArtifactError, match="One channel"):
        load_float(saved(state, tmp_path / "m"), model=SMALL)
    with pytest.raises(qzoo.ArgumentError, match="no input to transform"):
        load_float(saved(model.state_dict(), tmp_path / "m"), transform_input=True)
    with pytest.raises(qzoo.ArgumentError, match="has no keyword 'depth'"):
        load_float(tmp_path / "m", depth=3)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"teacher": {"a.b": torch.ones(1)}, "student": {"a.b": torch.ones(1)}, "epoch": 3},
         "Its keys are 'teacher', 'student', 'epoch'; expected are those of model.state_dict()"),
        ({}, "Its keys are none"),
        ({"epoch": 3, "lr": 0.1}, "Its keys are 'epoch', 'lr'"),
        ({"weight": torch.ones(2)}, "Its keys are 'weight'"),
        ([torch.ones(1)], "holds a list instead of a state dict"),
        (torch.ones(1), "holds a tensor instead of a state dict"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear, which qzoo never runs"),
        ({"model": nn.Linear(1, 1)}, "never runs"),
    ],
)  # fmt: skip
def test_files_without_a_state_dict_name_what_is_there(
    value: Any, words: str, tmp_path: Path
) -> None:
    path = saved(value, tmp_path / "x.pth")
    assert not is_float_checkpoint(path)
    with pytest.raises(qzoo.ArtifactError) as caught:
        load_float(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_int8_and_qat_are_told_apart(tmp_path: Path) -> None:
    int8 = qzoo.get_weight("ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1")
    path = saved(int8.get_state_dict(), tmp_path / "int8.pth")
    assert not is_float_checkpoint(path)
    with pytest.raises(qzoo.ArtifactError, match="of an int8 model or of one prepared for QAT"):
        load_float(path)
    with pytest.raises(qzoo.ArtifactError, match="it is an int8 artifact"):
        load_float(int8.file())  # type: ignore[attr-defined]


# Files that say what they are, and lie


def described(path: Path, model: nn.Module, **changes: Any) -> Path:
    info = {"architecture": SMALL, "builder_kwargs": {"num_classes": 10}, **changes}
    info = {k: v for k, v in info.items() if v is not ...}
    safetensors.torch.save_file(
        dict(model.state_dict()), path, metadata={"qzoo-float": json.dumps(info)}
    )
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"builder_kwargs": {"weights": "DEFAULT"}}, "no keyword 'weights'"),
        ({"builder_kwargs": {"num_classes": 10, "pretrained": True}}, "no keyword 'pretrained'"),
        ({"builder_kwargs": {"quantize": True}}, "no keyword 'quantize'"),
        ({"builder_kwargs": {"progress": False}}, "no keyword 'progress'"),
        ({"builder_kwargs": {"num_classes": 10**6}}, "num_classes"),
        ({"builder_kwargs": {"num_classes": 10**5}}, "shape"),
        ({"builder_kwargs": {"num_classes": "10"}}, "num_classes"),
        ({"builder_kwargs": [1]}, "'builder_kwargs' has the wrong type"),
        ({"architecture": "resnet18", "builder_kwargs": {"groups": "x"}}, "groups"),
        ({"architecture": "resnet50", "builder_kwargs": {"width_per_group": 10**9}}, "width_per"),
        ({"architecture": "mobilenet_v2",
          "builder_kwargs": {"inverted_residual_setting": [[1, 16, 10**6, 1]]}}, "inverted_res"),
        ({"architecture": "mobilenet_v2", "builder_kwargs": {"width_mult": 1e9}}, "width_mult"),
        ({"architecture": ["resnet18"]}, "'architecture' has the wrong type"),
        ({"architecture": ...}, "fields of a model"),
        ({"transforms": "text"}, "'transforms' has the wrong type"),
        ({"transforms": {"preset": "ImageClassification"}}, "not a preset"),
        ({"classes": 3}, "'classes' has the wrong type"),
        ({"classes": ["a"]}, "10 logits and 1 class names"),
        ({"metrics": {"a": 1}}, "'metrics' has the wrong type"),
        ({"surprise": 1}, "fields of a model"),
    ],
)  # fmt: skip
def test_descriptions_that_lie(
    changes: dict[str, Any],
    words: str,
    model: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qzoo.hub.fetch", lambda *a, **k: pytest.fail("a download began"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("no"))
    path = described(tmp_path / "m.safetensors", model, **changes)
    with pytest.raises(qzoo.ArtifactError) as caught:
        load_float(path)
    message = str(caught.value)
    assert words in message and str(path) in message and "\n" not in message


def test_a_file_that_says_what_it_is_takes_no_options(model: nn.Module, tmp_path: Path) -> None:
    path = described(tmp_path / "m.safetensors", model)
    assert same(load_float(path), model)
    assert same(load_float(path, model=SMALL), model)
    with pytest.raises(qzoo.ArgumentError, match="says itself what it is: drop num_classes"):
        load_float(path, model=SMALL, num_classes=10)
    with pytest.raises(qzoo.ArgumentError, match=f"holds a {SMALL}, not a resnet18"):
        load_float(path, model="resnet18")


def test_odd_files(tmp_path: Path, model: nn.Module) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>")
    whole = described(tmp_path / "m.safetensors", model).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-9])
    for name, words in (
        ("pipe", "no regular file"),
        ("empty", "it is empty"),
        ("page.pth", "it is a web page"),
        ("cut.safetensors", "truncated or damaged"),
        (".", "is a folder that holds"),
        ("gone.pth", "does not exist; check the path"),
    ):
        with pytest.raises(qzoo.ArtifactError, match=words):
            load_float(tmp_path / name)
        assert not (tmp_path / name).is_file() or not is_float_checkpoint(tmp_path / name)
