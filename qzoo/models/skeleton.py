"""Float models without numbers: their shapes, on PyTorch's meta device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..builder_kwargs import validate_builder_kwargs
from ..errors import ArgumentError
from ..registry import BUILD_ERRORS, ModelEntry, build_failure

#: Calls of torch functions while a skeleton is built; the largest model of the zoo needs 5,200.
MAX_BUILD_CALLS = 50_000
#: Parameters of a model that a file asks for; the largest of the zoo has 127 million.
MAX_PARAMETERS = 500_000_000


#: What fills weights with first values: on the meta device slow, and of no effect.
_DRAWS = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_})


def make_skeleton(entry: ModelEntry, kwargs: Mapping[str, Any]) -> nn.Module:
    """Makes a float module on the meta device: shapes only, nothing drawn or allocated.

    Args:
        entry: The model.
        kwargs: Its own keywords, which may come from a file of unknown origin: they are checked.

    Raises:
        ArgumentError: The keywords do not build this model, or one of absurd depth or size.
    """
    validate_builder_kwargs(entry.name, entry.construct, kwargs)
    drawing = {"init_weights": False} if entry.aux else {}
    try:
        with torch.device("meta"), _BoundedWork():
            model = entry.construct(**{**kwargs, **drawing}).eval()
    except BUILD_ERRORS as error:
        raise ArgumentError(build_failure(entry.name, kwargs, error)) from None
    if (size := sum(p.numel() for p in model.parameters())) > MAX_PARAMETERS:
        raise ArgumentError(
            f"Cannot build {entry.name} with these keywords: it would have {size:,} parameters, "
            f"and {MAX_PARAMETERS:,} are allowed."
        )
    return model


class _BoundedWork(TorchFunctionMode):
    """Ends a construction that goes on and on, as an artifact's keywords may make it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        if self.calls > MAX_BUILD_CALLS:
            raise ValueError("the model would have far more layers than any of the zoo")
        if func in _DRAWS:
            return args[0]
        return func(*args, **(kwargs or {}))
