"""Models that PyTorch's PT2E flow quantized become artifacts with the same answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qzoo
from qzoo.importers.pt2e import from_pt2e
from qzoo.native.model import to_native
from qzoo.reference import build_reference
from qzoo.registry import list_models
from tests.helpers import zoo

flow = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")


def quantizer(kind: str, **options: Any) -> Any:
    if kind == "x86":
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        config = x86.get_default_x86_inductor_quantization_config(**options)
        return x86.X86InductorQuantizer().set_global(config)
    xnnpack = pytest.importorskip("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, **options)
    return xnnpack.XNNPACKQuantizer().set_global(config)


def pt2e(name: str, chosen: Any) -> tuple[nn.Module, Any, Tensor]:
    """Returns a float model, what PT2E made of it, and the images it was calibrated with."""
    kwargs = {"aux_logits": False} if name in zoo.WITH_AUX else {}
    model = zoo.float_model(name, **kwargs)
    size = 75 if name == "inception_v3" else 64
    images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(3))
    with zoo.quiet(), torch.no_grad():
        exported = torch.export.export(model, (images,)).module(check_guards=False)
        prepared = flow.prepare_pt2e(exported, chosen)
        prepared(images)
        return model, flow.convert_pt2e(prepared), images


def check(model: nn.Module, converted: Any, artifact: qzoo.Artifact, images: Tensor) -> None:
    """The artifact's models must answer as the PT2E model, as closely as float32 sums allow."""
    with torch.no_grad():
        wanted = converted(images)
        given = build_reference(artifact)(images), to_native(artifact)(images)
        full = model(images)
    wanted, full = (y if isinstance(y, Tensor) else y[0] for y in (wanted, full))
    for logits in given:
        off = (logits - wanted).abs().max()
        # As far as 8 bits are from the float model at the most.
        assert off <= 1.5 * (wanted - full).abs().max()
        for mine, theirs in zip(logits, wanted, strict=True):
            ahead = theirs - theirs[mine.argmax()]
            assert ahead.max() <= 2 * off  # the same class, or a tie


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_xnnpack_models_are_taken_over_exactly(name):
    model, converted, images = pt2e(name, quantizer("xnnpack"))
    artifact = from_pt2e(converted, model, classes=None)
    assert "changed" not in artifact.info.recipe
    assert artifact.info.architecture == name
    check(model, converted, artifact, images)
    with torch.no_grad():
        off = (build_reference(artifact)(images) - converted(images)).abs()
    # Sums in another order may round a tie the other way, which a few later layers spread.
    assert off.max() <= 2.01 * artifact.layers["fc"].scale


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_what_x86_leaves_in_float_needs_images(name):
    model, converted, images = pt2e(name, quantizer("x86"))
    with pytest.raises(qzoo.ArtifactError, match=r"no exact int8 form.*images="):
        from_pt2e(converted, model)
    artifact = from_pt2e(converted, model, images=images, backend="onednn")
    assert artifact.info.backend == "onednn"
    changed = artifact.info.recipe["changed"]
    head = "fc" if name == "resnet18" else "classifier.3"
    assert "float" in changed[head]
    check(model, converted, artifact, images)


def test_what_is_not_int8_is_refused_by_name():
    chosen = quantizer("x86")
    chosen.set_module_name_qconfig("layer1.0.conv1", None)
    model, converted, images = pt2e("resnet18", chosen)
    with pytest.raises(qzoo.ArtifactError, match=r"'layer1\.0\.conv1' was left in float"):
        from_pt2e(converted, model, images=images)


def test_reduced_ranges_are_taken_over_and_told():
    model, converted, images = pt2e("resnet18", quantizer("x86", reduce_range=True))
    with pytest.raises(qzoo.ArtifactError, match="no exact int8 form"):
        from_pt2e(converted, model)
    artifact = from_pt2e(converted, model, images=images)
    assert "clipped at 127" in artifact.info.recipe["changed"]["activations"]
    with torch.no_grad():
        logits, given = converted(images), to_native(artifact)(images)
    span = float(logits.max() - logits.min())
    assert artifact.layers["fc"].scale == pytest.approx(span / 127, rel=1e-6)
    # 7 bits in all the places that the graph leaves in float; a layer gone wrong leaves 0 dB.
    noise = (given - logits).square().mean()
    assert 10 * torch.log10(logits.square().mean() / noise) > 20


def test_layers_may_stay_float_where_that_is_wanted():
    chosen = quantizer("x86")
    chosen.set_module_name_qconfig("layer1.0.conv1", None)
    model, converted, images = pt2e("resnet18", chosen)
    artifact = from_pt2e(converted, model, images=images, keep_float=["layer1.0.conv1", "fc"])
    assert [n for n, layer in artifact.layers.items() if layer.float] == ["layer1.0.conv1"]
    assert artifact.tensors["layer1.0.conv1.weight"].dtype == torch.float32
    check(model, converted, artifact, images)


def test_ranges_are_measured_over_all_batches():
    model, converted, images = pt2e("resnet18", quantizer("x86"))
    at_once = from_pt2e(converted, model, images=images)
    twice = from_pt2e(converted, model, images=[images, images.flip(0)])
    assert twice.layers == at_once.layers
    wider = from_pt2e(converted, model, images=[images, 3 * images])
    assert wider.layers["fc"].scale > at_once.layers["fc"].scale


def test_other_models_are_refused():
    _, converted, images = pt2e("resnet18", quantizer("xnnpack"))
    with pytest.raises(qzoo.ArtifactError, match="architecture"):
        from_pt2e(converted, zoo.float_model("resnet34"))
    with pytest.raises(qzoo.ArtifactError, match="qzoo's builders"):
        from_pt2e(converted, nn.Linear(1, 1))
    model, converted, images = pt2e("resnet18", quantizer("x86"))
    with pytest.raises(qzoo.ArtifactError, match=r"does not take images of the shape"):
        from_pt2e(converted, model, images=images[:, :1])


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", ["x86", "xnnpack"])
@pytest.mark.parametrize("name", list_models())
def test_every_builder(name, kind):
    model, converted, images = pt2e(name, quantizer(kind))
    check(model, converted, from_pt2e(converted, model, images=images), images)
