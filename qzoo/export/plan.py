"""What all exports share: their options, checked; and the graph and metadata of most."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, fx, nn

from .._core.process import undisturbed
from ..artifact.format import Artifact
from ..artifact.picture_size import picture_size
from ..errors import ArgumentError
from ..metadata import read_metadata
from ..native.model import Int8Model, as_artifact, package_versions
from ..pictures.classes import class_names
from ..reference import ReferenceModel, build_reference
from ..reference.run import Watched
from ..transforms import preset_kwargs

aten = torch.ops.aten

#: Larger batches than this are refused by files that take any batch size; torch.export wants a
#: bound, and sizes beyond it would overflow 32-bit offsets.
MAX_BATCH = 4096


class ExportKeywords(TypedDict, total=False):
    """The options that every export takes, by name.

    Attributes:
        batch_size: The only number of images per call; None takes any (ExecuTorch: one).
        input_size: Height and width of the images in pixels, or one number for both; None takes
            what the model was made for.
        preprocess: Whether the model takes uint8 [N, H, W, 3] images and normalizes them itself,
            instead of normalized float32 [N, 3, H, W].
    """

    batch_size: int | None
    input_size: int | Sequence[int] | None
    preprocess: bool


@dataclass(frozen=True)
class ExportPlan:
    """What to export; `make_plan` makes one of the model and `ExportKeywords`.

    Attributes:
        artifact: The model's numbers.
        size: Height and width of the images, in pixels.
        batch_size: The only batch size that the file takes, or None for any.
        preprocess: Whether the graph takes uint8 [N, H, W, 3] images and normalizes them itself,
            instead of normalized float32 [N, 3, H, W].
    """

    artifact: Artifact
    size: tuple[int, int]
    batch_size: int | None
    preprocess: bool

    def graph(self, **options: Any) -> ReferenceModel:
        """Returns the reference model, with the preprocessing in front if asked for.

        Args:
            **options: Keywords of `build_reference`.
        """
        reference = build_reference(self.artifact, **options)
        if self.preprocess:
            _prepend_preprocessing(reference, self.normalization())
        return reference

    def images(self, batch: int | None = None) -> Tensor:
        """Returns blank images as the exported graph takes them.

        Args:
            batch: How many; None takes the fixed number, or 2 where any is allowed, because
                torch.export would take a single one for a constant.

        Raises:
            ArgumentError: More than torch.export's graphs take.
        """
        batch = batch or self.batch_size or 2
        if batch > MAX_BATCH:
            raise ArgumentError(f"batch_size may be at most {MAX_BATCH}, not {batch}.")
        if self.preprocess:
            return torch.zeros(batch, *self.size, 3, dtype=torch.uint8, device="cpu")
        return torch.zeros(batch, 3, *self.size, dtype=torch.float32, device="cpu")

    def export(self, module: nn.Module) -> Any:
        """Returns `torch.export`'s program of a module that takes `images`."""
        shapes = None
        if self.batch_size is None:
            shapes = ({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},)
        with torch.no_grad(), undisturbed():
            return torch.export.export(module, (self.images(),), dynamic_shapes=shapes)

    def normalization(self) -> tuple[Tensor, Tensor]:
        """Returns gain and offset per channel, float64 [3], from a pixel in 0..255 to the input."""
        assert self.artifact.info.transforms is not None
        preset = preset_kwargs(self.artifact.info.transforms)
        mean, std = (
            torch.tensor(preset[key], dtype=torch.float64, device="cpu") for key in ("mean", "std")
        )
        return 1 / (255 * std), -mean / std

    def metadata(self, **more: Any) -> dict[str, Any]:
        """Returns what the file should say about itself, JSON values."""
        info = self.artifact.info
        return {
            "producer": "qzoo",
            "architecture": info.architecture,
            "builder_kwargs": info.builder_kwargs,
            "backend": info.backend,
            "classes": class_names(info.classes),
            "transforms": info.transforms,
            "recipe": info.recipe,
            "metrics": info.metrics,
            "kept_in_float": self.artifact.float_layers,
            "input": {
                "dtype": "uint8" if self.preprocess else "float32",
                "layout": "NHWC" if self.preprocess else "NCHW",
                "batch_size": self.batch_size,
                "height": self.size[0],
                "width": self.size[1],
                "preprocessing_inside": self.preprocess,
            },
            "made_with": self.artifact.versions,
            "exported_with": package_versions(),
            **more,
        }

    def metadata_json(self, **more: Any) -> str:
        """Returns `metadata` as JSON text."""
        return json.dumps(self.metadata(**more), ensure_ascii=False)


def make_plan(
    model: Int8Model,
    batch_size: int | None = None,
    input_size: int | Sequence[int] | None = None,
    preprocess: bool = False,
) -> ExportPlan:
    """Checks the model and the options that all exports share; see `ExportKeywords`.

    Raises:
        ArgumentError: Sizes below what the model takes, or preprocessing of a model that carries
            no transforms.
        ArtifactError: The model is not an int8 model of the zoo.
    """
    artifact = as_artifact(model)
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise ArgumentError(
            f"batch_size must be a whole number above 0 or None, not {batch_size!r}."
        )
    if preprocess and artifact.info.transforms is None:
        raise ArgumentError(
            "This model carries no transforms, so its preprocessing cannot go into the file: save "
            "it with transforms=..., or export with preprocess=False."
        )
    return ExportPlan(artifact, _size(artifact, input_size), batch_size, preprocess)


def open_export(
    model: Int8Model, path: str | os.PathLike[str], suffix: str, options: ExportKeywords
) -> tuple[ExportPlan, Path]:
    """Checks what an export was asked for, before the work that it takes.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes.
        path: The file to write.
        suffix: What its name must end in.
        options: What the user said.

    Raises:
        ArgumentError: As for `make_plan`; or the folder does not exist, or the name has another
            ending.
        ArtifactError: The model is not an int8 model of the zoo.
    """
    target = Path(path)
    if target.suffix != suffix:
        raise ArgumentError(f"The file must end in {suffix}, which {target.name!r} does not.")
    if not target.parent.is_dir():
        raise ArgumentError(f"Cannot write {target}: the folder {target.parent} does not exist.")
    return make_plan(model, **options), target


def _size(artifact: Artifact, given: int | Sequence[int] | None) -> tuple[int, int]:
    height, width = picture_size(artifact, given)
    if artifact.info.architecture is not None:
        least = read_metadata(artifact.info.architecture)["min_size"]
        if height < least[0] or width < least[1]:
            raise ArgumentError(
                f"{artifact.info.architecture} takes images of at least {least[0]}x{least[1]} "
                f"pixels, not {height}x{width}."
            )
    artifact.graph.sized(height, width)
    return (height, width)


def _prepend_preprocessing(reference: ReferenceModel, normalization: tuple[Tensor, Tensor]) -> None:
    """Puts [N, H, W, 3] uint8 to normalized [N, 3, H, W] float32 in front of a graph, in place."""
    for name, values in zip(("pixel_gain", "pixel_offset"), normalization, strict=True):
        reference.register_buffer(name, values.float().reshape(1, 3, 1, 1), persistent=False)
    graph = reference.graph
    pixels = next(iter(graph.nodes))
    users = list(pixels.users)
    with graph.inserting_after(pixels):
        planes = graph.call_function(aten.permute.default, (pixels, [0, 3, 1, 2]))
    with graph.inserting_after(planes):
        real = graph.call_function(aten.to.dtype, (planes, torch.float32))
    with graph.inserting_after(real):
        gain = graph.get_attr("pixel_gain")
    with graph.inserting_after(gain):
        scaled = graph.call_function(aten.mul.Tensor, (real, gain))
    with graph.inserting_after(scaled):
        offset = graph.get_attr("pixel_offset")
    with graph.inserting_after(offset):
        x = graph.call_function(aten.add.Tensor, (scaled, offset))
    for node in (planes, real, gain, scaled, offset, x):
        node.meta["grid"] = None
    for user in users:
        user.replace_input_with(pixels, x)
    reference.recompile()


def layer_of(weight: Any) -> str:
    """Returns the name of the layer whose dequantized weight a node of a reference graph is."""
    return str(weight.args[0].target).removesuffix(".weight")


def node_shapes(reference: ReferenceModel, images: Tensor) -> dict[Any, list[int]]:
    """Returns the shape of every tensor in a graph, by node."""
    shapes: dict[Any, list[int]] = {}

    def watch(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor):
            shapes[node] = list(value.shape)

    with torch.no_grad():
        Watched(reference, watch).run(images)
    return shapes
