"""Importing this module turns the process into one whose PyTorch has no `torch.ao`.

Later imports of `torch.ao`, `torch.quantization` and torchvision's quantized models fail, the
quantized dtypes are gone, and functions that make quantized tensors raise. What PyTorch's own
packages take from there today is imported before.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any

import torch
import torch.overrides
import torchvision  # noqa: F401  imports the names in question today

GONE = ("torch.ao", "torch.quantization", "torchvision.models.quantization")
# PyTorch's and torchao's own compilers name them at import.
for module in ("torch._inductor.lowering", "torchao.quantization.pt2e.quantize_pt2e"):
    importlib.import_module(module)
torch.overrides.get_overridable_functions()


class _Gone(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        if name.startswith(GONE):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("this PyTorch has no quantized tensors")


for name in [name for name in sys.modules if name.startswith(GONE)]:
    del sys.modules[name]
del torch.ao
sys.meta_path.insert(0, _Gone())
for name in dir(torch):
    if name.startswith(("quantize_per", "_make_per", "_empty_affine", "_empty_per_channel")):
        setattr(torch, name, _refuse)
for name in ("qint8", "quint8", "qint32", "quint4x2", "quint2x4"):
    delattr(torch, name)
torch.Tensor.int_repr = torch.Tensor.q_scale = torch.Tensor.q_zero_point = _refuse  # type: ignore
