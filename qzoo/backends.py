"""Backends: the numeric configurations that int8 models are quantized for.

A *backend* (`fbgemm`, `x86`, `onednn`, `qnnpack`) says how numbers are chosen: the granularity of
the weight scales, the number of bits that activations use, the observers. PyTorch's *quantized
engine* of the same name is what multiplies them; `run_engine` picks another engine that can run the
same integers where this machine's PyTorch lacks the one asked for.
"""

from __future__ import annotations

import contextlib
import os
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
        return _eager().default_qconfig(self.name)

    def qat_qconfig(self) -> Any:
        """Returns PyTorch's default QAT qconfig of this backend (fused fake quantization)."""
        return _eager().default_qat_qconfig(self.name)


def _eager() -> Any:
    from .native.markers import require_torch_ao

    require_torch_ao("PyTorch's qconfig")
    from .native import eager

    return eager


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
    """Returns the backend that new models are quantized for on this machine unless one is named.

    That is `onednn`, whose activations use all 8 bits; CPUs without VNNI, whose 16-bit sums would
    saturate, get `x86`, which uses 7. Where this PyTorch lacks these engines, its first one.

    Raises:
        ArgumentError: This PyTorch has no quantized engine at all.
    """
    engines = available_engines()
    if not engines:
        raise ArgumentError(_no_engine())
    wanted = "onednn" if "onednn" in engines and has_vnni() else "x86"
    return wanted if wanted in engines else engines[0]


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


class _EngineLock:
    """Many threads may rely on the process's engine as it is, or a single one may change it.

    A thread may take it again while it holds it, in either way.
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._readers = 0
        self._waiting = 0
        self._changing = False
        self._own = threading.local()

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Keeps other threads from changing the engine inside a block."""
        if self._changes or self._reads:  # what it holds already is enough
            yield
            return
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps other threads from changing the engine, and from relying on it."""
        if self._changes:
            yield
            return
        # Two threads that held on to their share would wait for each other for ever.
        shares = self._reads
        if shares:
            self._leave()
        try:
            with self._free:
                self._waiting += 1  # or models that run all the time would never let it in
                try:
                    self._free.wait_for(lambda: not self._changing and not self._readers)
                finally:
                    self._waiting -= 1
                    self._free.notify_all()
                self._changing = self._own.changes = True
            try:
                yield
            finally:
                with self._free:
                    self._changing = self._own.changes = False
                    self._free.notify_all()
        finally:
            if shares:
                self._enter()

    @property
    def _reads(self) -> bool:
        return getattr(self._own, "reads", False)

    @property
    def _changes(self) -> bool:
        return getattr(self._own, "changes", False)

    def _enter(self) -> None:
        with self._free:
            self._free.wait_for(lambda: not self._changing and not self._waiting)
            self._readers += 1
        self._own.reads = True

    def _leave(self) -> None:
        self._own.reads = False
        with self._free:
            self._readers -= 1
            self._free.notify_all()


_engine_lock = _EngineLock()
if hasattr(os, "register_at_fork"):
    # A forked process has none of the threads that may have held it.
    os.register_at_fork(after_in_child=_engine_lock.__init__)  # type: ignore[misc]


@contextlib.contextmanager
def native_call() -> Iterator[None]:
    """Runs a native int8 model in a `with` block, on the engine that the user set.

    Packed weights stay with their engine, but the elementwise operations of a native model follow
    the process's at each call. Without this, they would follow the one that another thread packs
    weights for.

    Raises:
        ArgumentError: Only deterministic algorithms are allowed, and PyTorch takes a kernel for
            none.
    """
    with _engine_lock.shared():
        try:
            yield
        except RuntimeError as error:
            if "torch.use_deterministic_algorithms(True)" not in str(error):
                raise
            raise ArgumentError(
                "Under torch.use_deterministic_algorithms(True), PyTorch refuses to run linear "
                "int8 layers on the engines fbgemm and x86, though their results never vary: pass "
                'warn_only=True to it, load the model for another engine (backend="onednn" or '
                '"qnnpack"), or compile it for another runtime.'
            ) from error


@contextlib.contextmanager
def quantized_engine(name: str, elementwise: bool = False) -> Iterator[None]:
    """Selects PyTorch's quantized engine inside a `with` block and restores the former one.

    The engine is a setting of the whole process: where it must be changed, the block waits for the
    native models that run in other threads, and they wait for its end.

    Args:
        name: The engine.
        elementwise: Whether only elementwise operations run in the block. QNNPACK has its own; the
            other engines share one implementation, so that none of them need be changed to another.
    """

    def fits() -> bool:
        now = torch.backends.quantized.engine
        return now == name or (elementwise and "qnnpack" not in (now, name))

    with _engine_lock.shared():
        if fits():
            yield
            return
    with _engine_lock.exclusive():
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = name
        try:
            yield
        finally:
            torch.backends.quantized.engine = before
