"""Backends: the numeric configurations that int8 models are quantized for.

A *backend* (`fbgemm`, `x86`, `onednn`, `qnnpack`) says how numbers are chosen: the granularity of
the weight scales, the number of bits that activations use, the observers. PyTorch's *quantized
engine* of the same name is what multiplies them (`native/engines.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .errors import UnknownNameError, did_you_mean

#: What stood here once, and is PyTorch's.
_ENGINES = frozenset({"available_engines", "default_backend", "quantized_engine", "run_engine"})


def __getattr__(name: str) -> Any:
    if name not in _ENGINES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    from .native import engines

    return getattr(engines, name)


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
