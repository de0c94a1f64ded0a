"""Layers kept in float: what is stored, what is refused, what the native model makes of them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qzoo
from qzoo.artifact import format as artifact_format
from qzoo.artifact.layers import Layer
from qzoo.native.float_layer import FloatConv2d, FloatLayer, FloatLinear
from qzoo.native.model import from_native, to_native
from qzoo.sharing.convert import check_model, state_dict_bytes
from qzoo.sharing.model_card import make_card, make_config
from tests.helpers.artifact_fuzz import Mutator, ends_cleanly
from tests.helpers.artifact_parts import TINY, Parts, old_parts, put_together, take_apart
from tests.helpers.mixed import KEPT, Mixed, keep_float, mixed
from tests.helpers.zoo import eager_ptq, engine, float_model, quiet, small_images

case = functools.cache(mixed)


@pytest.fixture(scope="module")
def tiny() -> qzoo.Artifact:
    """A mobilenet_v2 of two blocks with a depthwise layer and the head in float."""
    model = float_model("mobilenet_v2", **TINY)
    int8 = from_native(eager_ptq(model, small_images("mobilenet_v2")))
    model.fuse_model()  # type: ignore[operator]
    return keep_float(int8, model, ["features.1.conv.0.0", "classifier.1"])


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with quiet(), torch.no_grad():
        return model(x)


# The file.


@pytest.mark.parametrize("name", KEPT)
def test_a_file_gives_every_bit_back(name: str, tmp_path: Path) -> None:
    m = case(name)
    path = tmp_path / "model.safetensors"
    m.artifact.write(path)
    again = qzoo.Artifact.read(path)
    assert again.to_bytes() == m.artifact.to_bytes() == path.read_bytes()
    assert again.graph.nodes == m.artifact.graph.nodes
    assert set(again.float_layers) == set(m.kept) and m.int8.float_layers == []
    assert again.float_layers == [n for n in again.layers if n in m.kept]
    loaded = qzoo.load(path)
    assert from_native(loaded).to_bytes() == path.read_bytes()
    assert torch.equal(logits(loaded, m.images), logits(to_native(m.artifact), m.images))
    assert f"{len(m.kept)} of them kept in float" in check_model(path)


def test_layout_is_the_documented_one(tiny: qzoo.Artifact) -> None:
    parts = take_apart(tiny.to_bytes())
    assert parts.header["version"] == 3
    for layer in parts.header["nodes"]:
        name = layer["name"]
        if name in tiny.float_layers:
            assert layer["float"] is True
            assert parts.tensors[f"{name}.weight"].dtype == torch.float32
            assert f"{name}.weight_scale" not in parts.tensors
            assert f"{name}.weight_zero_point" not in parts.tensors
            assert parts.tensors[f"{name}.bias"].dtype == torch.float32
        else:
            assert "float" not in layer


def test_files_of_version_2_are_read(tiny: qzoo.Artifact, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(put_together(old_parts(tiny)))
    assert qzoo.Artifact.read(path).to_bytes() == tiny.to_bytes()


def test_an_earlier_reader_refuses_it_clearly(
    tiny: qzoo.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path / "model.safetensors")
    monkeypatch.setattr(artifact_format, "VERSION", 2)
    with pytest.raises(qzoo.ArtifactError, match=r"version 3 is newer.*upgrade qzoo"):
        qzoo.load(tmp_path / "model.safetensors")


HEAD = "classifier.1"
INT8 = "features.1.conv.1"


def _version(value: int) -> Callable[[Parts], None]:
    return lambda p: p.header.update(version=value)


def _field(name: str, value: Any) -> Callable[[Parts], None]:
    return lambda p: p.header["layers"][name].update(float=value)


def _tensor(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[Parts], None]:
    return lambda p: p.tensors.update({name: value(p.tensors[f"{HEAD}.weight"])})


def _int8_only(p: Parts) -> None:
    """Takes the mark off both layers, but leaves their tensors and the version."""
    for layer in p.header["layers"].values():
        layer.pop("float", None)


def _set(value: float) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight.index_fill(0, torch.tensor([1]), value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_version(1), "format version 1.*version 2"),
        (_field(HEAD, False), "exactly the fields"),
        (_field(HEAD, 1), "exactly the fields"),
        (_field(HEAD, "true"), "exactly the fields"),
        (_field(HEAD, None), "exactly the fields"),
        (_field("quant", True), "exactly the fields"),
        (_field("features.2.skip_add", True), "exactly the fields"),
        (_field(INT8, True), f"{INT8}.*wrong dtype"),
        (_int8_only, "wrong dtype"),
        (_tensor(f"{HEAD}.weight_scale", lambda w: torch.ones(len(w))), "kept in float.*drop"),
        (_tensor(f"{HEAD}.weight_scale", lambda w: torch.tensor(1.0)), "kept in float.*drop"),
        (
            _tensor(f"{HEAD}.weight_zero_point", lambda w: torch.ones(len(w), dtype=torch.int8)),
            "kept in float.*drop",
        ),
        (_tensor(f"{HEAD}.weight", _set(math.nan)), "float weight that is not finite"),
        (_tensor(f"{HEAD}.weight", _set(math.inf)), "float weight that is not finite"),
        (_tensor(f"{HEAD}.weight", _set(-math.inf)), "float weight that is not finite"),
        (_tensor(f"{HEAD}.weight", lambda w: w.half()), "dtype"),
        (_tensor(f"{HEAD}.weight", lambda w: w.double()), "wrong dtype"),
        (_tensor(f"{HEAD}.weight", lambda w: w.char()), "wrong dtype"),
        (_tensor(f"{HEAD}.weight", lambda w: w[..., None, None]), "wrong dtype or shape"),
        (_tensor(f"{HEAD}.weight", lambda w: w[:, :-1].contiguous()), "weight shape"),
        (_tensor(f"{HEAD}.bias", lambda w: torch.full((len(w),), math.nan)), "bias.*not finite"),
        (_tensor(f"{HEAD}.bias", lambda w: torch.zeros(len(w) + 1)), "bias"),
        (lambda p: p.tensors.pop(f"{HEAD}.weight"), "lacks its weight"),
    ],
)
def test_contradictions_are_refused(
    change: Callable[[Parts], None], words: str, tiny: qzoo.Artifact, tmp_path: Path
) -> None:
    parts = old_parts(tiny)
    change(parts)
    path = tmp_path / "model.safetensors"
    path.write_bytes(put_together(parts))
    with pytest.raises(qzoo.ArtifactError, match=words) as caught:
        qzoo.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_version_2_without_such_a_layer_is_refused(tiny: qzoo.Artifact, tmp_path: Path) -> None:
    int8 = from_native(eager_ptq(float_model("mobilenet_v2", **TINY), small_images("mobilenet_v2")))
    parts = old_parts(int8)
    assert parts.header["version"] == 1
    parts.header["version"] = 2
    path = tmp_path / "model.safetensors"
    path.write_bytes(put_together(parts))
    with pytest.raises(qzoo.ArtifactError, match=r"format version 2.*one at least"):
        qzoo.load(path)


def test_only_layers_with_weights_can_be_float(tiny: qzoo.Artifact) -> None:
    for name in ("quant", "features.2.skip_add"):
        layers = {**tiny.layers, name: dataclasses.replace(tiny.layers[name], float=True)}
        with pytest.raises(qzoo.ArtifactError, match="only conv2d and linear"):
            dataclasses.replace(tiny, layers=layers)
    with pytest.raises(qzoo.ArtifactError, match="marked as float"):
        Layer("hardswish", float=True).check("x")


@pytest.mark.parametrize("kind", ["header", "tensors"])
def test_mutated_files_end_cleanly(kind: str, tiny: qzoo.Artifact, tmp_path: Path) -> None:
    path, mutator = tmp_path / "model.safetensors", Mutator(tiny.to_bytes(), seed=7)
    accepted = sum(ends_cleanly(path, getattr(mutator, kind)()) for _ in range(500))
    assert 10 <= accepted < 500


# The native model.


def watch(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns a table that each call of the model fills with its float layers' input and output."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, x: Tensor, y: Tensor) -> None:
        seen[name] = (x, y)

    for name, module in model.named_modules():
        if isinstance(module, FloatLayer):
            module.register_forward_hook(lambda _, x, y, name=name: note(name, x[0], y))
    return seen


@pytest.mark.parametrize("name", KEPT)
def test_native_layers_compute_what_the_float_model_does(name: str) -> None:
    """The truth is PyTorch's fused float layer, ReLU and all, and PyTorch's own rounding."""
    m: Mixed = case(name)
    native = to_native(m.artifact)
    seen = watch(native)
    logits(native, m.images)
    assert set(seen) == set(m.kept)
    for layer, (x, y) in seen.items():
        info = m.artifact.layers[layer]
        with quiet(), torch.no_grad():
            real = m.fused.get_submodule(layer)(x.dequantize())
            expected = torch.quantize_per_tensor(real, info.scale, info.zero_point, torch.quint8)
        assert y.dtype == torch.quint8 and expected.int_repr().unique().numel() > 2
        assert (y.q_scale(), y.q_zero_point()) == (info.scale, info.zero_point)
        assert torch.equal(y.int_repr(), expected.int_repr()), layer


def test_such_layers_change_the_answers() -> None:
    m = case("resnet18")
    mixed_logits = logits(to_native(m.artifact), m.images)
    assert not torch.equal(mixed_logits, logits(to_native(m.int8), m.images))


@pytest.mark.parametrize("name", KEPT)
def test_copies_and_state_dicts_carry_everything(name: str) -> None:
    m = case(name)
    native = to_native(m.artifact)
    expected = logits(native, m.images)
    content = m.artifact.to_bytes()
    for copied in (copy.deepcopy(native), native.float().eval()):
        assert from_native(copied).to_bytes() == content
        assert torch.equal(logits(copied, m.images), expected)
    # Into a model of the same structure with other numbers.
    tensors = {k: v * 0.5 if v.is_floating_point() else v for k, v in m.artifact.tensors.items()}
    layers = {
        k: dataclasses.replace(v, scale=v.scale * 2, zero_point=3) if v.float else v
        for k, v in m.artifact.layers.items()
    }
    other = to_native(dataclasses.replace(m.artifact, tensors=tensors, layers=layers))
    assert not torch.equal(logits(other, m.images), expected)
    with quiet(), engine("x86"):
        assert other.load_state_dict(native.state_dict()) == ([], [])
    for key in m.kept:
        assert from_native(other).layers[key] == m.artifact.layers[key]
    assert torch.equal(logits(other, m.images), expected)
    state = native.state_dict()
    del state[f"{m.kept[0]}.scale"]
    with quiet(), engine("x86"), pytest.raises(RuntimeError, match=rf"{m.kept[0]}\.scale"):
        other.load_state_dict(state)


def test_modules_can_be_pickled(tiny: qzoo.Artifact) -> None:
    module: Any = to_native(tiny).get_submodule(HEAD)
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again.weight, module.weight) and torch.equal(again.bias, module.bias)
    assert (again.scale, again.zero_point) == (module.scale, module.zero_point)


def test_loading_a_state_dict_leaves_the_artifact_alone(tiny: qzoo.Artifact) -> None:
    native, before = to_native(tiny), tiny.to_bytes()
    with torch.no_grad():
        for buffer in native.buffers():
            buffer.zero_()
    assert tiny.to_bytes() == before
    found = from_native(to_native(tiny))
    found.tensors[f"{HEAD}.weight"].zero_()
    assert tiny.to_bytes() == before


def test_native_models_show_and_script(tiny: qzoo.Artifact) -> None:
    native = to_native(tiny)
    kinds = {type(native.get_submodule(name)) for name in tiny.float_layers}
    assert kinds == {FloatConv2d, FloatLinear}
    assert "relu=True" in repr(native) and not list(native.parameters())
    x = small_images("mobilenet_v2")
    with quiet():
        scripted = torch.jit.script(native)
    assert torch.equal(logits(scripted, x), logits(native, x))


def test_numbers_that_are_none_are_not_saved(tiny: qzoo.Artifact, tmp_path: Path) -> None:
    native: Any = to_native(tiny)
    native.get_submodule(HEAD).weight.fill_(math.nan)
    with pytest.raises(qzoo.ArtifactError, match=f"{HEAD}.*not finite"):
        qzoo.save(native, tmp_path / "model.safetensors")
    native = to_native(tiny).half()
    with pytest.raises(qzoo.ArtifactError, match="wrong dtype"):
        qzoo.save(native, tmp_path / "model.safetensors")


# What is told of it.


def test_card_and_config_tell_of_it(tiny: qzoo.Artifact) -> None:
    content = tiny.to_bytes()
    weighted = sum(layer.op in ("conv2d", "linear") for layer in tiny.layers.values())
    assert f"float32 in 2 of {weighted} layers" in make_card(tiny, content, "mine")
    assert json.loads(make_config(tiny, content))["format_version"] == 3


def test_torchvisions_state_dict_cannot_hold_them(tiny: qzoo.Artifact) -> None:
    with pytest.raises(qzoo.ArtifactError, match=r"keeps 2 layers in float.*qzoo export"):
        state_dict_bytes(tiny)
