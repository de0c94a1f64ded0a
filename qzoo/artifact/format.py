"""The int8 artifact: one safetensors file of plain integers and a JSON header.

The layout is written down for other readers in docs/artifact.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from .._core import strict_json
from .._core.files import File, RefusedError, reading, write_atomically
from ..backends import BACKENDS
from ..errors import ArtifactError
from ..transforms import describe, preset_kwargs
from .layers import Layer, check_tensors, raise_small_scales
from .seen import check_seen
from .tensor_file import OtherKindError, read_tensors

FORMAT = "qzoo-int8"
#: The newest version that is read. Files are written in the oldest that can hold them: 1, or 2
#: where a layer is kept in float.
VERSION = 2
#: Characters of a layer's name; those of the zoo have up to 40.
MAX_NAME_LENGTH = 200
#: Layers of a model; those of the zoo have up to 600.
MAX_LAYERS = 10_000
#: The largest metric (most are percentages), and the longest class name, in characters.
MAX_METRIC = 1e9
MAX_CLASS_NAME = 1000


#: Fields of `ModelInfo` that a file has only where there is something to say.
OPTIONAL = frozenset({"seen"})


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, besides its numbers; qzoo's models carry it along.

    Attributes:
        architecture: The registry's name of the model ("resnet50").
        builder_kwargs: The model's own keywords that differ from their defaults, JSON values.
        backend: The backend that the numbers were chosen for; None for a float model.
        classes: Class names in the order of the logits, "imagenet-1k" for those of
            ImageNet-1K, or None where nobody named them.
        transforms: A preset as `ImageClassification.to_dict()` gives it, or None; the preset
            itself may be given, too.
        recipe: How the numbers were made, free form JSON.
        metrics: Data set name to metric name to figure, in percent.
        seen: "training" and "calibration" to the pictures that the model has seen for it, as
            `qzoo.artifact.seen` notes them; empty where nobody noted any.
    """

    architecture: str
    builder_kwargs: dict[str, Any] = field(default_factory=dict)
    backend: str | None = None
    classes: list[str] | str | None = None
    transforms: dict[str, Any] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Users may give the preset itself, and a data set's tuple of names.
        if callable(self.transforms):
            object.__setattr__(self, "transforms", describe(self.transforms))
        if isinstance(self.classes, tuple):
            object.__setattr__(self, "classes", list(self.classes))

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values, without optional ones that are empty."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if v or k not in OPTIONAL}


@dataclass(frozen=True)
class Artifact:
    """A quantized model as plain numbers.

    Attributes:
        info: What the model is.
        layers: Module name to layer, in the architecture's order.
        tensors: `<layer>.weight` int8, `<layer>.weight_scale` float, ... (see docs/artifact.md);
            of `float_layers`, `<layer>.weight` float32.
        versions: Versions of the packages that made it.
    """

    info: ModelInfo
    layers: dict[str, Layer]
    tensors: dict[str, Tensor]
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_info(self.info)
        check_tensors(self.layers, self.tensors)
        _check_classes(self.info.classes, self.layers, self.tensors)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the tensors by value: what was read from one file shares one piece of memory.

        Handed to a process that `multiprocessing` spawns, PyTorch would pass a descriptor for each.
        """
        arrays = {name: tensor.contiguous().numpy() for name, tensor in self.tensors.items()}
        return _unpickled, (self.info, self.layers, arrays, self.versions)

    @property
    def float_layers(self) -> list[str]:
        """Names of the layers that keep float32 weights, in the architecture's order."""
        return [name for name, layer in self.layers.items() if layer.float]

    @property
    def version(self) -> int:
        """The format version that a file of this artifact has."""
        return 2 if self.float_layers else 1

    def header(self) -> dict[str, Any]:
        """Returns the JSON header, without the digest."""
        return {
            "format": FORMAT,
            "version": self.version,
            **self.info.to_dict(),
            "layers": {name: layer.to_json() for name, layer in self.layers.items()},
            "versions": self.versions,
        }

    def digest(self) -> str:
        """Returns the sha256 over header and tensors, which the file carries (hexadecimal)."""
        return _digest(self.header(), self.tensors)

    def to_bytes(self) -> bytes:
        """Returns the file's content; the same numbers always give the same bytes."""
        header = {**self.header(), "sha256": self.digest()}
        return to_safetensors(self.tensors, metadata={"qzoo": canonical_json(header)})

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the artifact to `path`, whole or not at all.

        Raises:
            ArtifactError: The file cannot be written.
        """
        write_atomically(path, self.to_bytes())

    @classmethod
    def read(cls, path: str | os.PathLike[str] | File) -> Artifact:
        """Reads and verifies an artifact; runs no code from it.

        The tensors have memory of their own: whatever becomes of the file, they stay as they were
        when their checksum was verified.

        Args:
            path: The file, or the file itself where it is open already.

        Raises:
            ArtifactError: The file is missing, truncated, changed, of a later version, or no
                artifact at all.
        """
        with reading(path) as file:
            return _from_file(file)


def _unpickled(
    info: ModelInfo, layers: dict[str, Layer], arrays: dict[str, Any], versions: dict[str, str]
) -> Artifact:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Artifact(info, layers, tensors, versions)


def _from_file(file: File) -> Artifact:
    try:
        metadata, tensors = read_tensors(file)
        if "qzoo" not in metadata:
            raise OtherKindError("has no entry 'qzoo'")
        return _parse(strict_json.parse(metadata["qzoo"]), tensors)
    except OtherKindError:
        raise ArtifactError(
            f"{file.path} is not a qzoo artifact; a published .pth file must be converted first "
            "(qzoo convert), a float model quantized first."
        ) from None
    except RefusedError as error:
        raise ArtifactError(f"{file.path} {error}.") from None
    except ArtifactError as error:
        raise ArtifactError(f"{file.path}: {error}") from None
    except ValueError as error:
        raise ArtifactError(f"{file.path} has a damaged header: {error}.") from None


def _parse(header: Any, tensors: dict[str, Tensor]) -> Artifact:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ArtifactError("the header is not that of a qzoo artifact.")
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise ArtifactError("the header names no format version.")
    if version > VERSION:
        raise ArtifactError(
            f"format version {version} is newer than this qzoo reads ({VERSION}); upgrade qzoo."
        )
    names = {f.name for f in dataclasses.fields(ModelInfo)}
    expected = names | {"format", "version", "layers", "versions", "sha256"}
    if odd := sorted(repr(k) for k in set(header) ^ expected if k not in OPTIONAL):
        raise ArtifactError(f"the header lacks or has too much of: {', '.join(odd)[:200]}.")
    digest = header.pop("sha256")
    if digest != _digest(header, tensors):
        raise ArtifactError(
            "the contents do not match their checksum, so a tensor or the header was changed or "
            "damaged; fetch or save the artifact again."
        )
    versions = header["versions"]
    if not isinstance(header["layers"], dict) or not isinstance(versions, dict):
        raise ArtifactError("the header's layers or versions are not a table.")
    if not all(isinstance(version, str) for version in versions.values()):
        raise ArtifactError("the header's versions are not texts.")
    if len(header["layers"]) > MAX_LAYERS:
        raise ArtifactError(f"the header names more than {MAX_LAYERS} layers.")
    if any(len(name) > MAX_NAME_LENGTH for name in header["layers"]):
        raise ArtifactError(f"a layer's name has more than {MAX_NAME_LENGTH} characters.")
    layers = {name: Layer.from_json(name, data) for name, data in header["layers"].items()}
    info = ModelInfo(**{name: header[name] for name in names if name in header})
    if not isinstance(info.backend, str) or info.backend not in BACKENDS:
        raise ArtifactError(f"the header names the unknown backend {str(info.backend)[:40]!r}.")
    artifact = Artifact(info, layers, tensors, header["versions"])
    raise_small_scales(layers, artifact.tensors)
    if version != artifact.version:
        raise ArtifactError(
            f"the header says format version {version}, but its layers are those of version "
            f"{artifact.version}: only version 2 keeps layers in float, and one at least."
        )
    return artifact


def check_info(info: ModelInfo) -> None:
    """Checks that the fields have the types that they should have.

    Raises:
        ArtifactError: A field has another type.
    """
    classes = info.classes
    good_classes = classes is None or (
        classes == "imagenet-1k"
        if isinstance(classes, str)
        else isinstance(classes, list)
        and all(isinstance(c, str) and len(c) <= MAX_CLASS_NAME for c in classes)
    )
    good_metrics = isinstance(info.metrics, dict) and all(
        isinstance(m, dict) and all(_is_metric(v) for v in m.values())
        for m in info.metrics.values()
    )
    checks = {
        "architecture": isinstance(info.architecture, str),
        "builder_kwargs": isinstance(info.builder_kwargs, dict),
        "classes": good_classes,
        "transforms": info.transforms is None or isinstance(info.transforms, dict),
        "recipe": isinstance(info.recipe, dict),
        "metrics": good_metrics,
    }
    for name, good in checks.items():
        if not good:
            raise ArtifactError(f"the field {name!r} has the wrong type.")
    if info.transforms is not None:
        preset_kwargs(info.transforms)
    check_seen(info.seen)


def _is_metric(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_METRIC  # type: ignore[arg-type]


def _check_classes(
    classes: list[str] | str | None, layers: dict[str, Layer], tensors: dict[str, Tensor]
) -> None:
    """Checks that there is a name for each logit; the head is the last linear layer."""
    heads = [name for name, layer in layers.items() if layer.op == "linear"]
    if classes is None or not heads:
        return
    logits, names = len(tensors[f"{heads[-1]}.weight"]), 1000
    if isinstance(classes, list):
        names = len(classes)
    if names != logits:
        raise ArtifactError(
            f"the model has {logits} logits and {names} class names; save it with classes=[...] "
            "that name each, or classes=None."
        )


def canonical_json(header: dict[str, Any]) -> str:
    """Returns the one JSON text of a header.

    Raises:
        ArtifactError: It holds something that is not plain JSON.
    """
    try:
        text = json.dumps(header, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        text.encode()  # a lone surrogate is text that no file can hold
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"This model cannot be described in an artifact, because its builder arguments, "
            f"recipe or transforms hold something that is not plain JSON: {error}."
        ) from None


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256(canonical_json(header).encode("utf-8"))
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        array: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        sha.update(array)  # a buffer, whatever numpy's stubs say
    return sha.hexdigest()
