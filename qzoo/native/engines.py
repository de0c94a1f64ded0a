"""PyTorch's quantized engines: which there are, which one runs a model, and who may change it."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator

import torch

from .._core.cpu import has_vnni
from ..backends import BACKENDS, SATURATING_ENGINES, get_backend
from ..errors import ArgumentError, BackendWarning


def available_engines() -> list[str]:
    """Returns the quantized engines that this machine's PyTorch offers, without "none"."""
    return [e for e in torch.backends.quantized.supported_engines if e in BACKENDS]


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
