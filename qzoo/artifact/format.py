"""The int8 artifact: one safetensors file of plain integers and a JSON header.

The layout is written down for other readers in docs/artifact.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ..backends import BACKENDS
from ..errors import ArtifactError
from ..transforms import preset_kwargs
from .layers import Layer, check_tensors

FORMAT = "qzoo-int8"
#: The newest version that is read. Files are written in the oldest that can hold them: 1, or 2
#: where a layer is kept in float.
VERSION = 2
#: The header of the largest model of the zoo takes 100 kB.
MAX_HEADER_BYTES = 16 * 2**20
#: Objects within objects; the format itself needs 4, the rest is for recipes.
MAX_HEADER_DEPTH = 32
#: Those of the zoo have up to 40 characters.
MAX_NAME_LENGTH = 200


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, besides its numbers; qzoo's models carry it along.

    Attributes:
        architecture: The registry's name of the model ("resnet50").
        builder_kwargs: The model's own keywords that differ from their defaults, JSON values.
        backend: The backend that the numbers were chosen for; None for a float model.
        classes: Class names in the order of the logits, "imagenet-1k" for those of
            ImageNet-1K, or None where nobody named them.
        transforms: A preset as `ImageClassification.to_dict()` gives it, or None.
        recipe: How the numbers were made, free form JSON.
        metrics: Data set name to metric name to figure, in percent.
    """

    architecture: str
    builder_kwargs: dict[str, Any] = field(default_factory=dict)
    backend: str | None = None
    classes: list[str] | str | None = None
    transforms: dict[str, Any] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


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
        _check_info(self.info)
        check_tensors(self.layers, self.tensors)
        _check_classes(self.info.classes, self.layers, self.tensors)

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
            **dataclasses.asdict(self.info),
            "layers": {name: layer.to_json() for name, layer in self.layers.items()},
            "versions": self.versions,
        }

    def digest(self) -> str:
        """Returns the sha256 over header and tensors, which the file carries (hexadecimal)."""
        return _digest(self.header(), self.tensors)

    def to_bytes(self) -> bytes:
        """Returns the file's content; the same numbers always give the same bytes."""
        header = {**self.header(), "sha256": self.digest()}
        return to_safetensors(self.tensors, metadata={"qzoo": _canonical(header)})

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the artifact to `path`, whole or not at all.

        Raises:
            ArtifactError: The file cannot be written.
        """
        write_atomically(Path(path), self.to_bytes())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Artifact:
        """Reads and verifies an artifact; runs no code from it.

        Raises:
            ArtifactError: The file is missing, truncated, changed, of a later version, or no
                artifact at all.
        """
        path = Path(path)
        try:
            if path.stat().st_size < 8:
                raise ArtifactError(f"{path} is truncated: it has fewer than 8 bytes.")
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
        except OSError as error:
            raise ArtifactError(
                f"Cannot read the artifact {path}: {error.strerror or error}."
            ) from None
        if length > MAX_HEADER_BYTES:
            raise ArtifactError(_not_an_artifact(path))
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as e:
            raise ArtifactError(
                f"{path} is not a readable artifact, perhaps truncated or damaged: {e}. "
                "Fetch or save it again."
            ) from None
        if "qzoo" not in metadata:
            raise ArtifactError(_not_an_artifact(path))
        try:
            return _parse(json.loads(metadata["qzoo"], parse_constant=_no_constant), tensors)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} has a damaged header: {error}.") from None


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
    if set(header) != expected:
        odd = sorted(repr(k) for k in set(header) ^ expected)
        raise ArtifactError(f"the header lacks or has too much of: {', '.join(odd)[:200]}.")
    if _depth(header) > MAX_HEADER_DEPTH:
        raise ArtifactError(f"the header is nested more than {MAX_HEADER_DEPTH} levels deep.")
    digest = header.pop("sha256")
    if digest != _digest(header, tensors):
        raise ArtifactError(
            "the contents do not match their checksum, so a tensor or the header was changed or "
            "damaged; fetch or save the artifact again."
        )
    if not isinstance(header["layers"], dict) or not isinstance(header["versions"], dict):
        raise ArtifactError("the header's layers or versions are not a table.")
    if any(len(name) > MAX_NAME_LENGTH for name in header["layers"]):
        raise ArtifactError(f"a layer's name has more than {MAX_NAME_LENGTH} characters.")
    layers = {name: Layer.from_json(name, data) for name, data in header["layers"].items()}
    info = ModelInfo(**{name: header[name] for name in names})
    if not isinstance(info.backend, str) or info.backend not in BACKENDS:
        raise ArtifactError(f"the header names the unknown backend {str(info.backend)[:40]!r}.")
    artifact = Artifact(info, layers, tensors, header["versions"])
    if version != artifact.version:
        raise ArtifactError(
            f"the header says format version {version}, but its layers are those of version "
            f"{artifact.version}: only version 2 keeps layers in float, and one at least."
        )
    return artifact


def _check_info(info: ModelInfo) -> None:
    classes = info.classes
    good_classes = classes is None or (
        classes == "imagenet-1k"
        if isinstance(classes, str)
        else isinstance(classes, list) and all(isinstance(c, str) for c in classes)
    )
    good_metrics = isinstance(info.metrics, dict) and all(
        isinstance(m, dict) and all(type(v) in (int, float) for v in m.values())
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


def _depth(value: Any) -> int:
    """Returns how many lists and objects a JSON value has within each other, without recursion."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, (dict, list))]:
        depth += 1
        level = [c for v in level for c in (v.values() if isinstance(v, dict) else v)]
    return depth


def _canonical(header: dict[str, Any]) -> str:
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
    sha = hashlib.sha256(_canonical(header).encode("utf-8"))
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        array: Any = tensor.contiguous().numpy()  # a buffer, whatever numpy's stubs say
        sha.update(array)
    return sha.hexdigest()


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that a header may hold")


def _not_an_artifact(path: Path) -> str:
    return (
        f"{path} is not a qzoo artifact; a published .pth file must be converted first "
        "(qzoo convert), a float model quantized first."
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that `path` holds either all of `content` or what it held before.

    Raises:
        ArtifactError: The folder is missing or read-only, or the disk is full.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C too must not leave the temporary file behind
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise ArtifactError(f"Cannot write {path}: {error.strerror or error}.") from None
