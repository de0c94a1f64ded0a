"""Watches the layers of a fused float model, the FloatFunctionals of `torch.ao` among them.

One of the `_torch_ao*.py` files, the only ones that touch `torch.ao`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional


@contextlib.contextmanager
def output_hooks(
    fused: nn.Module, names: Sequence[str], watch: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    """Calls `watch(name, output)` after the named layers of a fused float model, inside a block.

    A tensor that `watch` returns takes the output's place.
    """
    undo: list[Callable[[], None]] = []
    try:
        for name in names:
            module: Any = fused.get_submodule(name)
            if type(module) is FloatFunctional:
                # Its operations are methods; all of them pass their result through this child.
                undo.append(functools.partial(_restore, module, module.activation_post_process))
                _restore(module, _Watch(name, watch))
            else:
                handle = module.register_forward_hook(
                    lambda _, __, output, name=name: watch(name, output)
                )
                undo.append(handle.remove)
        yield
    finally:
        for step in undo:
            step()


class _Watch(nn.Module):
    def __init__(self, name: str, watch: Callable[[str, Tensor], Tensor | None]) -> None:
        super().__init__()
        self.name, self.watch = name, watch

    def forward(self, x: Tensor) -> Tensor:
        replaced = self.watch(self.name, x)
        return x if replaced is None else replaced


def _restore(functional: Any, before: nn.Module) -> None:
    functional.activation_post_process = before
