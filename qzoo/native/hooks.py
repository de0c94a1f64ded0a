"""Watches the layers of a fused float model, FloatFunctionals among them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .markers import FloatFunctional


@contextlib.contextmanager
def output_hooks(
    fused: nn.Module, names: Sequence[str], watch: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    """Calls `watch(name, output)` after the named layers of a fused float model, inside a block.

    A tensor that `watch` returns takes the output's place. Hooks registered earlier run first.
    """
    handles = []
    try:
        for name in names:
            module: Any = fused.get_submodule(name)
            if type(module) is FloatFunctional:
                # Its operations are methods; all of them pass their result through this child.
                module = module.activation_post_process
            handles.append(
                module.register_forward_hook(lambda _, __, output, name=name: watch(name, output))
            )
        yield
    finally:
        for handle in handles:
            handle.remove()
