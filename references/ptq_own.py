"""Methods that run in PyTorch: the float model, torchvision's recipe and qzoo's."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from ptq_case import Call, Case, Quantized, mib, timed
from torch import Tensor
from torch.utils.data import Subset

import qzoo
from qzoo.backends import quantized_engine, run_engine
from qzoo.metadata import read_metadata
from qzoo.native.model import from_native, save
from qzoo.quantize import ptq

#: Images that torchvision's script calibrates on: 32 batches of 32.
TORCHVISION_IMAGES = 1024


def float_model(case: Case) -> Quantized:
    """Returns the model as it is."""
    return Quantized(case.model, mib(case.checkpoint), 0.0, 0.0, "torch")


def torchvision_ptq(case: Case, backend: str | None = None) -> Quantized:
    """Does what torchvision's own script does; None takes the backend it publishes the model for.

    It calibrates on the first images of a folder sorted by class. That it shows them through the
    training augmentation is left out, in its favour.

    Source: https://github.com/pytorch/vision/blob/main/references/classification/
    train_quantization.py.
    """
    backend = backend or torchvision_backend(case.name)
    targets = case.train.targets
    by_class = Subset(case.train, sorted(range(len(targets)), key=lambda i: int(targets[i])))
    return _native(case, by_class, backend=backend, recipe="torchvision", images=TORCHVISION_IMAGES)


def qzoo_ptq(case: Case, recipe: str) -> Quantized:
    """Calls `qzoo.quantize.ptq` with one of its recipes."""
    return _native(case, case.train, recipe=recipe)


def torchvision_backend(name: str) -> str:
    """Returns the backend that torchvision publishes a model for; fbgemm where it does not."""
    for entry in read_metadata(name)["weights"].values():
        if "ImageNet-1K" in entry["metrics"]:
            return str(entry["backend"])
    return "fbgemm"


def _native(case: Case, data: Any, **kwargs: Any) -> Quantized:
    kwargs = {"images": len(case.images), "seed": case.calibration.seed, **kwargs}
    model, wall, cpu = timed(lambda: ptq(case.model, data, progress=False, **kwargs))
    path = case.folder / f"{kwargs['recipe']}.safetensors"
    save(model, path)
    artifact = from_native(model)
    backend = str(artifact.info.backend)
    taken = str(artifact.info.recipe["calibration_sha256"])

    def run(images: Tensor) -> Tensor:
        # Additions and the like follow the engine of the process, not that of the model.
        with quantized_engine(engine):
            return torch.as_tensor(model(images))

    engine = run_engine(backend)
    settings = ", ".join(f"{k}={v}" for k, v in kwargs.items())
    again = None
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        again = Call(qzoo.compile(artifact, "onnxruntime", threads=case.threads))
    return Quantized(Call(run), mib(path), wall, cpu, "torch", backend, settings, taken, again)
