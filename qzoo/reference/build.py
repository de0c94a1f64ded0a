"""Reference models: an int8 model as explicit quantize and dequantize around ordinary float ops."""

from __future__ import annotations

import functools
import linecache
import weakref
from typing import Any

import torch
from torch import fx, nn
from torch.fx import graph_module

from .._core.finite import check_finite
from ..artifact.format import Artifact
from ..artifact.given import Int8Model, as_artifact
from ..errors import ArgumentError
from ..native.layers import with_idle_layers
from ..native.model import skeleton_of
from .from_graph import ReferenceWriter
from .trace import Recording, record


class ReferenceModel(fx.GraphModule):
    """An int8 model as a graph of ordinary float operations on explicitly dequantized integers.

    Calling it with NaN or infinity raises an ArgumentError, as on every runtime.

    Float32 [N, 3, H, W] in, float32 logits [N, classes] out, on any device. The buffers are the
    artifact's tensors under the artifact's names. Every node of the graph carries `meta["grid"]`,
    the `Grid` that its float values lie on or None; the node that rounds a recorded call's result
    carries that step's name ("layer1.0.conv1") as `meta["step"]`.
    """

    @property
    def artifact(self) -> Artifact:
        """The artifact that the model was built from, bit for bit."""
        return self.meta["artifact"]

    @functools.cached_property
    def recording(self) -> Recording:
        """The architecture's forward pass, which native models of it share.

        Raises:
            ArtifactError: The artifact is of no architecture of the zoo.
        """
        artifact = self.artifact
        skeleton = skeleton_of(artifact.info)
        return record(skeleton, with_idle_layers(skeleton, artifact.layers))

    def recompile(self) -> Any:
        """Makes the forward pass of the graph anew; see `torch.fx.GraphModule.recompile`."""
        code = super().recompile()
        if not self._forward_pre_hooks:  # which copying a graph module loses
            self.register_forward_pre_hook(_check_input)
        # PyTorch keeps the source of every graph until the process ends, for tracebacks: 90 KiB
        # of the smallest model each time that one is compiled. Here it goes with the model.
        source = type(self).forward.__code__.co_filename
        weakref.finalize(self, _forget_source, source).atexit = False
        return code


def _forget_source(name: str) -> None:
    loader = getattr(graph_module, "_loader", None)  # private, so it may be gone one day
    getattr(loader, "eval_cache", {}).pop(name, None)
    linecache.cache.pop(name, None)


def build_reference(
    model: Int8Model,
    *,
    ste: bool = False,
    explicit: bool = False,
    activations: torch.dtype = torch.uint8,
) -> ReferenceModel:
    """Builds the reference model of an artifact or of a native int8 model of the zoo.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes; a reference model is built
            anew from its artifact.
        ste: Whether gradients pass the roundings (straight-through estimator); the graph then
            holds fake-quantize calls in place of quantize and dequantize pairs.
        explicit: Whether operations that keep their input's grid (max pooling, split, shuffle,
            flatten) are followed by a quantize and dequantize of their own. It changes no value;
            some compilers recognise int8 operations by it.
        activations: torch.uint8, or torch.int8 for runtimes without unsigned activations; integers
            and zero points are then 128 less.

    Returns:
        The model in eval mode, on the CPU. On CUDA, convolutions round to 10 bits unless
        `torch.backends.cudnn.allow_tf32` is switched off, which costs agreement.

    Raises:
        ArtifactError: The model is not an int8 model of the zoo, or the artifact does not fit its
            architecture.
        ArgumentError: Activations of another dtype.
    """
    if activations not in (torch.uint8, torch.int8):
        raise ArgumentError(f"Activations are torch.uint8 or torch.int8, not {activations}.")
    artifact = as_artifact(model)
    writer = ReferenceWriter(artifact, ste, explicit, activations == torch.int8)
    writer.write()
    name = f"Reference_{artifact.info.architecture or 'model'}"
    reference = ReferenceModel(writer.root, writer.graph, name)
    reference.meta.update(artifact=artifact)
    return reference.eval()


def _check_input(_: nn.Module, args: tuple[Any, ...]) -> None:
    if not torch.compiler.is_compiling():
        check_finite(args[0])
