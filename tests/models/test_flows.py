"""The quantization flows that PyTorch users know, with the definitions as they stand."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn import quantized as nnq
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import qzoo
from tests.helpers.zoo import (
    ENGINES,
    SLIM,
    by_definition,
    eager_ptq,
    eager_qat,
    engine,
    float_model,
    quiet,
    small_images,
    uncalibrated,
)

ENGINE = "x86" if "x86" in ENGINES else ENGINES[0]
#: Quantization noise of random networks on random pictures; a layer gone wrong leaves 0 dB.
LEAST_DB = 5


def assert_follows(int8: Tensor, reference: Tensor, least_db: float) -> None:
    """Checks that int8 logits are those of the float model, up to quantization noise."""
    noise = (int8 - reference).square().mean()
    sqnr = 10 * float(torch.log10(reference.square().mean() / noise))
    assert sqnr > least_db, f"{sqnr:.1f} dB"


def assert_saves(model: nn.Module, images: Tensor, folder: Path) -> None:
    """Checks that an int8 model comes back from its artifact bit for bit."""
    path = folder / "model.safetensors"
    qzoo.save(model, path)
    with torch.no_grad(), quiet():
        expected, logits = model(images), qzoo.load(path)(images)
    assert torch.equal(logits, expected)
    assert float(logits.std()) > 0


@pytest.mark.parametrize("name", by_definition())
def test_eager_ptq(name: str, tmp_path: Path) -> None:
    model, images = float_model(name), small_images(name)
    int8 = eager_ptq(model, images, ENGINE)
    with torch.no_grad(), quiet():
        assert_follows(int8(images), model(images), LEAST_DB)
    assert_saves(int8, images, tmp_path)


@pytest.mark.parametrize("backend", ENGINES)
def test_eager_ptq_for_each_backend(backend: str, tmp_path: Path) -> None:
    model, images = float_model("resnet18", num_classes=7), small_images("resnet18")
    int8 = eager_ptq(model, images, backend)
    with engine(backend):
        assert_saves(int8, images, tmp_path)
        assert qzoo.Artifact.read(tmp_path / "model.safetensors").info.backend == backend


@pytest.mark.parametrize("name", by_definition())
def test_eager_qat_step(name: str, tmp_path: Path) -> None:
    images = small_images(name)
    assert_saves(eager_qat(float_model(name, slim=True), images, ENGINE), images, tmp_path)


@pytest.mark.parametrize("name", by_definition())
def test_fx_ptq(name: str) -> None:
    model, images = float_model(name, slim=True), small_images(name)
    with engine(ENGINE), quiet(), torch.no_grad():
        prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(ENGINE), (images,))
        prepared(images)
        int8 = convert_fx(prepared)
        assert_follows(int8(images), model(images), LEAST_DB)
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    quantized = [m for m in int8.modules() if isinstance(m, (nnq.Conv2d, nnq.Linear))]
    assert not [n for n, m in int8.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    unused = len(weighted) - len(quantized)  # GoogLeNet's auxiliary classifiers, not traced in eval
    assert unused == (6 if name == "googlenet" else 0)


@pytest.mark.parametrize("name", by_definition())
def test_pt2e_ptq(name: str) -> None:
    pytest.importorskip("torchao", reason="the pt2e extra is not installed")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    model, images = float_model(name, slim=True), small_images(name)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with quiet(), torch.no_grad():
        exported = torch.export.export(model, (images,)).module(check_guards=False)
        prepared = prepare_pt2e(exported, quantizer)
        prepared(images)
        int8 = convert_pt2e(prepared)
        assert_follows(int8(images), model(images), LEAST_DB)
    called = [str(n.target) for n in int8.graph.nodes if n.op == "call_function"]
    weighted = sum(t.startswith(("aten.conv2d", "aten.linear")) for t in called)
    assert weighted == sum("dequantize_per_channel" in t for t in called) > 0


@pytest.mark.parametrize("name", by_definition())
def test_int8_model_scripts_traces_and_copies(name: str) -> None:
    model, images = uncalibrated(name, **SLIM.get(name, {})), small_images(name)
    with quiet(), torch.no_grad():
        expected = model(images)
        scripted = torch.jit.script(model)(images)
        traced = torch.jit.trace(model, images, check_trace=False)(images)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(images), expected)
    # As in torchvision, the scripted models with auxiliary classifiers always give a tuple.
    scripted = scripted if isinstance(scripted, Tensor) else scripted[0]
    assert torch.equal(scripted, expected)
    assert torch.equal(traced, expected)
    assert torch.jit.is_scripting() is False
    assert qzoo.native.model.model_info(twin) == qzoo.native.model.model_info(model)
