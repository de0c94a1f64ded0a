"""The arguments of the builders: what fits together, and what is refused with a clear sentence."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights, ResNet50_Weights

import qzoo
from qzoo.native import engines
from tests.helpers.zoo import BUILDERS, TORCHVISION, quiet, small_images, uncalibrated


@pytest.mark.parametrize("name", BUILDERS)
def test_signature_is_torchvisions_with_a_backend(name: str) -> None:
    builder = qzoo.get_model_builder(name)
    parameters = inspect.signature(builder).parameters
    assert list(parameters) == ["weights", "progress", "quantize", "backend", "kwargs"]
    own = [p for p in parameters.values() if p.name != "kwargs"]
    assert all(p.kind is p.KEYWORD_ONLY for p in own)
    assert [p.default for p in own] == [None, True, False, None]
    assert "Args:" in (builder.__doc__ or "")
    assert builder is getattr(qzoo, name)


@pytest.mark.parametrize("name", TORCHVISION)
def test_int8_weights_without_quantize_name_the_argument_to_change(name: str) -> None:
    member = qzoo.get_model_weights(name)["DEFAULT"]
    for weights in (member, member.name):
        with pytest.raises(qzoo.ArgumentError, match="int8 weights: pass quantize=True"):
            qzoo.get_model(name, weights=weights)


@pytest.mark.parametrize(
    "weights", [ResNet50_Weights.DEFAULT, "IMAGENET1K_V2", "ResNet50_Weights.IMAGENET1K_V1"]
)
def test_float_weights_with_quantize_name_the_argument_to_change(weights: object) -> None:
    with pytest.raises(qzoo.ArgumentError, match="float weights: pass quantize=False"):
        qzoo.resnet50(weights=weights, quantize=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weights": "IMAGENET1K_FBGEM_V2"}, "did you mean 'IMAGENET1K_FBGEMM_V2'"),
        ({"weights": ResNet18_Weights.DEFAULT}, "should be a member of ResNet50_QuantizedWeights"),
        ({"weights": 3}, "should be a member of ResNet50_QuantizedWeights"),
        ({"backend": "fbgem"}, "unknown backend 'fbgem'.*did you mean 'fbgemm'"),
        ({"backend": 7}, "unknown backend 7"),
        ({"weights": "DEFAULT", "num_classes": 10}, "1000 classes.*quantize=False"),
        ({"number_of_classes": 10}, "cannot build resnet50 with number_of_classes=10"),
        ({"num_classes": "ten"}, "cannot build resnet50"),
        ({"num_classes": -1}, "cannot build resnet50"),
        ({"groups": 0}, "cannot build resnet50"),
    ],
)
def test_wrong_arguments_of_an_int8_model(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(qzoo.QzooError, match=re.compile(message, re.IGNORECASE | re.DOTALL)):
        qzoo.resnet50(quantize=True, **kwargs)


@pytest.mark.parametrize("kwargs", [{"number_of_classes": 10}, {"num_classes": -1}])
def test_wrong_arguments_of_a_float_model(kwargs: dict[str, int]) -> None:
    with pytest.raises(qzoo.ArgumentError, match="Cannot build resnet18"):
        qzoo.resnet18(**kwargs)


def test_a_builder_without_int8_weights_says_so() -> None:
    with pytest.raises(qzoo.UnknownNameError, match="nobody has published int8 weights"):
        qzoo.resnet152(weights="DEFAULT", quantize=True)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Serves an artifact for GoogLeNet's published weights."""
    path = tmp_path / "googlenet.safetensors"
    model = uncalibrated("googlenet", aux_logits=False, transform_input=True)
    qzoo.save(model, path)
    monkeypatch.setattr(
        qzoo.GoogLeNet_QuantizedWeights, "artifact", lambda *_, **__: qzoo.Artifact.read(path)
    )


@pytest.mark.usefixtures("served")
def test_keywords_with_int8_weights() -> None:
    build = {"weights": "DEFAULT", "quantize": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error", qzoo.UncalibratedWarning)
        model = qzoo.googlenet(**build, num_classes=1000, aux_logits=False, transform_input=True)
    assert model(small_images("googlenet")).shape == (2, 1000)
    qzoo.googlenet(**build, dropout=0.2, init_weights=True)
    with pytest.raises(qzoo.ArgumentError, match="made with transform_input=True"):
        qzoo.googlenet(**build, transform_input=False)
    with pytest.raises(qzoo.ArgumentError, match=r"made with dropout=0\.2"):
        qzoo.googlenet(**build, dropout=0.7)
    with pytest.raises(qzoo.ArgumentError, match="Cannot build googlenet"):
        qzoo.googlenet(**build, transform_inputs=True)


@pytest.mark.parametrize("backend", list(qzoo.BACKENDS))
def test_a_missing_engine_falls_back_with_a_warning(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if backend not in engines.available_engines():
        pytest.skip(f"this PyTorch has no {backend} engine to take away")
    path = tmp_path / "model.safetensors"
    expected = uncalibrated("resnet18", backend=backend)
    qzoo.save(expected, path)
    others = [e for e in engines.available_engines() if e != backend]
    monkeypatch.setattr(engines, "available_engines", lambda: others)
    with pytest.warns(qzoo.BackendWarning, match=f"no {backend} engine, so the model runs on"):
        model = qzoo.load(path)
    with torch.no_grad():
        logits = model(small_images("resnet18"))
        reference = expected(small_images("resnet18"))
    # Engines round differently by a step here and there, and qnnpack multiplies differently.
    agreement = torch.nn.functional.cosine_similarity(logits, reference)
    assert float(agreement.min()) > 0.9
    qzoo.save(model, tmp_path / "again.safetensors")
    again = qzoo.Artifact.read(tmp_path / "again.safetensors")
    assert again.info.backend == backend
    assert again.digest() == qzoo.Artifact.read(path).digest()


def test_no_engine_at_all_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "available_engines", list)
    with pytest.raises(qzoo.ArgumentError, match="no quantized engine"):
        uncalibrated("resnet18")
    with pytest.raises(qzoo.ArgumentError, match="no quantized engine"):
        uncalibrated("resnet18", backend="x86")


@pytest.mark.parametrize("name", list(qzoo.BACKENDS))
def test_backend_rows_say_what_pytorchs_qconfigs_do(name: str) -> None:
    backend = qzoo.BACKENDS[name]
    for qconfig in (backend.qconfig(), backend.qat_qconfig()):
        with quiet():
            observer, weight = qconfig.activation(), qconfig.weight()
        observer = getattr(observer, "activation_post_process", observer)
        assert observer.reduce_range is backend.reduce_range
        scheme = getattr(weight, "activation_post_process", weight).qscheme
        assert ("channel" in str(scheme)) is backend.per_channel
