"""Has other packages' code make float32 CPU tensors, whatever the process's defaults are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

#: Functions that make floating-point tensors, where they are not told otherwise.
_FLOATING = frozenset(
    {
        torch.empty, torch.empty_strided, torch.eye, torch.linspace, torch.logspace, torch.ones,
        torch.rand, torch.randn, torch.zeros,
    }
)  # fmt: skip
#: Functions that look at numbers to find a dtype.
_INFERRING = frozenset(
    {
        torch.arange, torch.as_tensor, torch.asarray, torch.full, torch.scalar_tensor, torch.tensor,
    }
)  # fmt: skip


#: Methods that name a dtype without an argument.
_CONVERTING = frozenset(
    {Tensor.bfloat16, Tensor.double, Tensor.half, Tensor.to, Tensor.type, Tensor.type_as}
)


class _Float32(TorchFunctionMode):
    """Makes float32 tensors, in this thread, where nobody names a dtype."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        values = (*args, *kwargs.values())
        if func in _CONVERTING or _any_of(torch.dtype, values):
            return func(*args, **kwargs)
        if func in _FLOATING:
            return func(*args, **{**kwargs, "dtype": torch.float32})
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or result.dtype != torch.get_default_dtype():
            return result
        if func in _INFERRING and not _any_of((Tensor, np.ndarray), values):
            return func(*args, **{**kwargs, "dtype": torch.float32})
        # Integers times a Python float, or divided, take the default dtype.
        if _any_of(Tensor, values) and not _any_of(Tensor, values, _is_real):
            args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
            return func(*args, **kwargs)
        return result


def _is_real(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex() or x.is_quantized


def _any_of(kind: Any, values: Any, condition: Callable[[Any], bool] = lambda _: True) -> bool:
    """Whether one of the values, nested in lists, is of a kind and meets a condition."""
    if isinstance(values, (list, tuple)):
        return any(_any_of(kind, value, condition) for value in values)
    return isinstance(values, kind) and condition(values)


@contextlib.contextmanager
def plain_defaults() -> Iterator[None]:
    """Has other packages' code in a block make float32 CPU tensors where it names nothing.

    The user's default dtype and device are neither used nor changed. It holds for the calling
    thread. Code of our own names dtype and device instead.
    """
    with contextlib.ExitStack() as modes:
        # Each of them takes a moment at every call of PyTorch, so only where it is needed.
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            modes.enter_context(_Float32())
        yield


@contextlib.contextmanager
def undisturbed_torch() -> Iterator[None]:
    """Runs other packages' code on plain defaults, and puts PyTorch's random state back."""
    with plain_defaults(), torch.random.fork_rng(devices=[]):
        yield
