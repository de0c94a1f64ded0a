"""Backends: the numeric configurations that int8 models are quantized for.

A *backend* (`fbgemm`, `x86`, `onednn`, `qnnpack`) says how numbers are chosen: the granularity of
the weight scales, the number of bits that activations use, the observers. PyTorch's *quantized
engine* of the same name is what multiplies them; `run_engine` picks another engine that can run the
same integers where this machine's PyTorch lacks the one asked for.
"""

from __future__ import annotations

import contextlib
import platform
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from .errors import ArgumentError, BackendWarning, UnknownNameError, did_you_mean


@dataclass(frozen=True)
class Backend:
    """One numeric configuration.

    Attributes:
        name: PyTorch's and torchvision's name of it, and of its engine.
        per_channel: Whether weights carry one scale per output channel (else one per tensor).
        reduce_range: Whether calibrated activations use 7 of the 8 bits, because the CPUs it was
            made for saturate 16-bit sums (no VNNI).
        fallbacks: Engines that can run the same integers, nearest numerics first.
    """

    name: str
    per_channel: bool
    reduce_range: bool
    fallbacks: tuple[str, ...]

    @property
    def activation_max(self) -> int:
        """The largest quantized activation: 127 with `reduce_range`, else 255."""
        return 127 if self.reduce_range else 255

    def qconfig(self) -> Any:
        """Returns PyTorch's default PTQ qconfig of this backend (histogram observers)."""
        from . import _torch_ao

        return _torch_ao.default_qconfig(self.name)

    def qat_qconfig(self) -> Any:
        """Returns PyTorch's default QAT qconfig of this backend (fused fake quantization)."""
        from . import _torch_ao

        return _torch_ao.default_qat_qconfig(self.name)


BACKENDS = MappingProxyType(
    {
        b.name: b
        for b in (
            Backend("fbgemm", True, True, ("x86", "onednn", "qnnpack")),
            Backend("x86", True, True, ("fbgemm", "onednn", "qnnpack")),
            Backend("onednn", True, False, ("x86", "fbgemm", "qnnpack")),
            Backend("qnnpack", False, False, ("x86", "fbgemm", "onednn")),
        )
    }
)

#: Engines whose depthwise kernels add pairs of products in 16 bits, where activations above 127 can
#: overflow and are cut off (vpmaddubsw), whatever the CPU offers.
SATURATING_ENGINES = ("fbgemm", "x86")

_engine_lock = threading.RLock()


def get_backend(name: str) -> Backend:
    """Returns the backend called `name`.

    Raises:
        UnknownNameError: There is no such backend; the message names the known ones.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise UnknownNameError(
            f"Unknown backend {name!r}: choose one of {', '.join(BACKENDS)}."
            + (did_you_mean(name, BACKENDS) if isinstance(name, str) else "")
        )
    return BACKENDS[name]


def available_engines() -> list[str]:
    """Returns the quantized engines that this machine's PyTorch offers, without "none"."""
    return [e for e in torch.backends.quantized.supported_engines if e in BACKENDS]


def has_vnni() -> bool:
    """Whether this CPU multiplies 8-bit integers without saturating 16-bit sums.

    True as well for other architectures than x86, which have no such instructions to avoid.
    """
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not x86 or any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni"))


def default_backend() -> str:
    """Returns the backend for new models here: `x86` where its engine exists, else the first one.

    Raises:
        ArgumentError: This PyTorch has no quantized engine at all.
    """
    engines = available_engines()
    if not engines:
        raise ArgumentError(_no_engine())
    return "x86" if "x86" in engines else engines[0]


def run_engine(backend: str, depthwise: bool = False) -> str:
    """Returns the engine that runs a model quantized for `backend` on this machine.

    That is the engine of the same name or, where this PyTorch lacks it, the nearest one that runs
    the same integers; then a `BackendWarning` says what may differ.

    Args:
        backend: The backend's name.
        depthwise: Whether the model has depthwise convolutions whose inputs use all 8 bits, which
            `SATURATING_ENGINES` take only where there is no other engine.

    Raises:
        UnknownNameError: There is no such backend.
        ArgumentError: This PyTorch has no quantized engine at all.
    """
    row = get_backend(backend)
    engines = available_engines()
    if backend in engines:
        return backend
    candidates = [engine for engine in row.fallbacks if engine in engines]
    if depthwise:
        candidates.sort(key=lambda engine: engine in SATURATING_ENGINES)
    for engine in candidates:
        if depthwise and engine in SATURATING_ENGINES:
            differ = "its depthwise convolutions cut large sums off, which can change answers."
        else:
            differ = (
                "the int8 weights, scales and zero points are the same, but a layer's output can "
                "differ by one step of its scale where the engines round differently."
            )
        warnings.warn(
            f"This machine's PyTorch has no {backend} engine, so the model runs on {engine}: "
            + differ,
            BackendWarning,
            stacklevel=3,
        )
        return engine
    raise ArgumentError(_no_engine())


def _no_engine() -> str:
    return (
        "This build of PyTorch has no quantized engine (torch.backends.quantized.supported_engines "
        "is empty), so int8 models cannot run natively; install an official PyTorch build."
    )


@contextlib.contextmanager
def quantized_engine(name: str) -> Iterator[None]:
    """Selects PyTorch's quantized engine inside a `with` block and restores the former one.

    The engine is a setting of the whole process, so blocks in several threads take turns.
    """
    with _engine_lock:
        before = torch.backends.quantized.engine
        if before == name:
            yield
            return
        torch.backends.quantized.engine = name
        try:
            yield
        finally:
            torch.backends.quantized.engine = before
