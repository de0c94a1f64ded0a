"""No call of qzoo changes the process it runs in."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from zoo_cases import BUILDERS, ENGINES, engine, small_images, uncalibrated

import qzoo

OTHER_ENGINE = next((e for e in ENGINES if e != torch.backends.quantized.engine), ENGINES[0])


def process_state() -> dict[str, Any]:
    return {
        "engine": torch.backends.quantized.engine,
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),
        "random": random.getstate(),
        "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "filters": copy.copy(warnings.filters),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "showwarning": warnings.showwarning,
    }


@pytest.fixture
def untouched() -> Iterator[Callable[[], None]]:
    """Gives a check that everything process-wide is as it was when the test began."""
    before = process_state()

    def check() -> None:
        for what, value in process_state().items():
            assert value == before[what], f"{what} was changed"

    yield check
    check()


@pytest.mark.parametrize("name", BUILDERS)
def test_int8_model_is_built_without_a_forward_pass_and_warns_once(
    name: str, untouched: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_forward(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a forward pass ran")

    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        patch.setattr(nn.Module, "__call__", no_forward)
        warnings.simplefilter("always")
        model = qzoo.get_model_builder(name)(quantize=True)
    assert [w.category for w in caught] == [qzoo.UncalibratedWarning]
    assert caught[0].filename == __file__, "the warning should point at the caller"
    assert name in str(caught[0].message)
    untouched()
    assert not model.training
    with torch.no_grad():
        logits = model(small_images(name))
    assert logits.shape == (2, 1000) and logits.dtype == torch.float32
    assert bool(torch.isfinite(logits).all())
    assert len(logits[0].unique()) > 20
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("backend", ENGINES)
def test_building_saving_and_loading_for_another_engine(
    backend: str, untouched: Callable[[], None], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    model = uncalibrated("shufflenet_v2_x0_5", backend=backend)
    untouched()
    qzoo.save(model, path)
    untouched()
    qzoo.load(path)
    untouched()
    qzoo.load(path, backend=OTHER_ENGINE)
    untouched()
    qzoo.Artifact.read(path).to_bytes()


def test_failures_restore_the_engine(untouched: Callable[[], None], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    qzoo.save(uncalibrated("resnet18", num_classes=4), path)
    artifact = qzoo.Artifact.read(path)
    del artifact.layers["layer1.0.conv1"]
    with pytest.raises(qzoo.ArtifactError):
        qzoo.artifact.native.to_native(artifact, OTHER_ENGINE)
    untouched()
    with pytest.raises(qzoo.QzooError):
        uncalibrated("resnet18", no_such_keyword=1)
    untouched()
    with pytest.raises(qzoo.QzooError):
        qzoo.load(path, backend="tpu")


def test_two_models_without_weights_are_equal_whatever_the_seed() -> None:
    torch.manual_seed(1)
    first = uncalibrated("resnet18")
    torch.manual_seed(2)
    second = uncalibrated("resnet18")
    images = small_images("resnet18")
    with torch.no_grad():
        assert torch.equal(first(images), second(images))


def test_defaults_of_the_process_do_not_leak_into_a_model(tmp_path: Path) -> None:
    images = small_images("resnet18")
    path = tmp_path / "model.safetensors"
    model = uncalibrated("resnet18")
    qzoo.save(model, path)
    with torch.no_grad():
        expected = model(images)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        built, loaded = uncalibrated("resnet18"), qzoo.load(path)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        assert torch.equal(built(images), expected)
        assert torch.equal(loaded(images), expected)


def test_float_models_draw_like_any_module() -> None:
    torch.manual_seed(3)
    first = qzoo.resnet18()
    second = qzoo.resnet18()
    assert not torch.equal(first.fc.weight, second.fc.weight)
    torch.manual_seed(3)
    assert torch.equal(qzoo.resnet18().fc.weight, first.fc.weight)


def test_the_engine_of_the_user_stays_selected() -> None:
    with engine(OTHER_ENGINE):
        uncalibrated("resnet18")
        assert torch.backends.quantized.engine == OTHER_ENGINE
