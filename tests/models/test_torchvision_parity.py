"""The twelve models that torchvision quantizes too: same numbers, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision.models.quantization as tvq
from torch import nn
from torchvision.models import WeightsEnum

import qzoo
from tests.helpers.zoo import (
    ENGINES,
    TORCHVISION,
    WITH_AUX,
    eager_ptq,
    eager_qat,
    engine,
    quiet,
    small_images,
    uncalibrated,
    vary,
    with_large,
)


def torchvision_model(name: str, **kwargs: Any) -> nn.Module:
    if name in WITH_AUX and not kwargs.get("quantize") and "weights" not in kwargs:
        kwargs = {"init_weights": False, **kwargs}
    with quiet():
        return getattr(tvq, name)(**kwargs).eval()


def assert_same_logits(ours: nn.Module, theirs: nn.Module, name: str) -> None:
    images = small_images(name)
    if name.startswith("shufflenet"):
        # PyTorch's int8 mean refuses the 1x1 maps of 32 pixels, which torchvision's forward needs.
        images = torch.nn.functional.interpolate(images, 64)
    with quiet(), torch.no_grad():
        logits, expected = ours(images), theirs(images)
    assert torch.equal(logits, expected)
    assert bool(torch.isfinite(logits).all())
    assert float(logits.std()) > 0, "equal logits of a model that says nothing prove nothing"


@pytest.mark.parametrize("name", TORCHVISION)
def test_float_model_with_the_same_state_gives_equal_logits(name: str) -> None:
    theirs = vary(torchvision_model(name))
    kwargs = {"init_weights": False} if name in WITH_AUX else {}
    ours = qzoo.get_model(name, **kwargs).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert_same_logits(ours, theirs, name)


def torchvision_backend(name: str) -> str:
    backend = "qnnpack" if name.startswith("mobilenet") else "fbgemm"
    if backend not in ENGINES:
        pytest.skip(f"torchvision cannot build this model without the {backend} engine")
    return backend


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large", "shufflenet_v2_x0_5"])
def test_int8_model_takes_the_state_of_torchvisions_builder(name: str) -> None:
    backend = torchvision_backend(name)
    with engine(backend):
        theirs = torchvision_model(name, quantize=True)
        ours = uncalibrated(name, backend=backend)
        assert set(ours.state_dict()) == set(theirs.state_dict())
        with quiet():
            ours.load_state_dict(theirs.state_dict())
        if name != "mobilenet_v3_large":  # its observers never saw a picture: all logits are 0
            assert_same_logits(ours, theirs, name)


@pytest.mark.parametrize("name", with_large([n for n in TORCHVISION if n != "mobilenet_v3_large"]))
def test_int8_model_takes_the_state_of_torchvisions_quantization(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = torchvision_backend(name)
    theirs = vary(torchvision_model(name))
    # What its builder does with quantize=True, but for the 299x299 random picture it runs on.
    monkeypatch.setattr(tvq.utils.torch, "rand", lambda *size: small_images(name, 1))
    with engine(backend):
        with quiet():
            tvq.utils.quantize_model(theirs, backend)
        monkeypatch.undo()
        ours = uncalibrated(name, backend=backend)
        assert set(ours.state_dict()) == set(theirs.state_dict())
        with quiet():
            ours.load_state_dict(theirs.state_dict())
        assert_same_logits(ours, theirs, name)


def test_mobilenet_v3_takes_the_state_of_torchvisions_trained_model() -> None:
    name = "mobilenet_v3_large"
    theirs = eager_qat(vary(torchvision_model(name)), small_images(name), ENGINES[0])
    with engine(ENGINES[0]):
        ours = uncalibrated(name, backend=ENGINES[0])
        assert set(ours.state_dict()) == set(theirs.state_dict())
        with quiet():
            ours.load_state_dict(theirs.state_dict())
        assert_same_logits(ours, theirs, name)


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_large"])
def test_int8_logits_are_equal_under_every_engine(name: str, backend: str) -> None:
    theirs = eager_ptq(vary(torchvision_model(name)), small_images(name), backend)
    with engine(backend):
        ours = uncalibrated(name, backend=backend)
        with quiet():
            ours.load_state_dict(theirs.state_dict())
        assert_same_logits(ours, theirs, name)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, torch.Tensor]]:
    """Stands for the float checkpoints on torchvision's server: enum name to state dict."""
    states: dict[str, dict[str, torch.Tensor]] = {}

    def get_state_dict(self: WeightsEnum, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        assert kwargs["check_hash"] is True
        return dict(states[type(self).__name__])

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    return states


def publish(name: str, published: dict[str, dict[str, torch.Tensor]]) -> WeightsEnum:
    member = qzoo.registry.get_entry(name).float_weights["IMAGENET1K_V1"]
    published[type(member).__name__] = vary(torchvision_model(name)).state_dict()
    return member


@pytest.mark.parametrize("name", [n for n in TORCHVISION if n != "resnext101_64x4d"])
def test_pretrained_float_weights_load_as_in_torchvision(name: str, published: Any) -> None:
    member = publish(name, published)
    draws = torch.get_rng_state()
    ours = qzoo.get_model(name, weights=member).eval()
    assert torch.equal(torch.get_rng_state(), draws)
    theirs = torchvision_model(name, weights=member)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same_logits(ours, theirs, name)


@pytest.mark.parametrize("name", WITH_AUX)
@pytest.mark.parametrize("kwargs", [{"aux_logits": True}, {"transform_input": False}])
def test_auxiliary_classifiers_and_input_transform_as_in_torchvision(
    name: str, kwargs: dict[str, bool], published: Any
) -> None:
    member = publish(name, published)
    ours = qzoo.get_model(name, weights=member, **kwargs).eval()
    theirs = torchvision_model(name, weights=member, **kwargs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert (ours.aux_logits, ours.transform_input) == (theirs.aux_logits, theirs.transform_input)
    assert_same_logits(ours, theirs, name)


@pytest.mark.parametrize(
    "name", ["resnet18", "googlenet", "inception_v3", "mobilenet_v2", "shufflenet_v2_x0_5"]
)
def test_another_number_of_classes_keeps_the_backbone(name: str, published: Any) -> None:
    member = publish(name, published)
    state = published[type(member).__name__]
    torch.manual_seed(5)
    ours = qzoo.get_model(name, weights=member, num_classes=10).eval()
    fresh = set()
    for key, value in ours.state_dict().items():
        if value.shape == state[key].shape:
            assert torch.equal(value, state[key])
        else:
            fresh.add(key)
            assert value.shape == (10, *state[key].shape[1:])
    head = {k for k in ours.state_dict() if state[k].dim() and len(state[k]) == 1000}
    assert fresh == head and len(head) == 2
    assert ours(small_images(name)).shape == (2, 10)
    torch.manual_seed(6)
    other = qzoo.get_model(name, weights=member, num_classes=10)
    key = sorted(fresh)[-1]
    assert not torch.equal(other.state_dict()[key], ours.state_dict()[key])


def test_float_weights_that_do_not_fit_are_refused(published: Any) -> None:
    member = publish("mobilenet_v2", published)
    with pytest.raises(qzoo.ArgumentError, match="do not fit a model with these keywords"):
        qzoo.mobilenet_v2(weights=member, width_mult=0.5)
