"""The int8 artifact: one safetensors file of plain integers and a JSON header.

The layout is written down for other readers in docs/artifact.md.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import save as to_safetensors

from .._core import strict_json
from .._core.files import File, RefusedError, reading, write_atomically
from ..backends import BACKENDS
from ..errors import ArtifactError
from ..pictures.preset import MAX_RESIZE, Preset
from .blueprints import fill, layers_of, require_recording, stored_blueprint
from .graph import MAX_NODES, Graph, Node
from .layers import WEIGHTED_OPS, Layer, check_tensors, raise_small_scales
from .seen import check_seen
from .tensor_file import OtherKindError, read_tensors
from .tensors import Tensors

FORMAT = "qzoo-int8"
#: What a model is called that has no architecture.
NO_BUILDER = "model of no builder"
#: The version that is written, and the newest that is read.
VERSION = 3
#: Characters of a layer's name; those of the zoo have up to 40.
MAX_NAME_LENGTH = 200
#: Layers of a model; those of the zoo have up to 600.
MAX_LAYERS = 10_000
#: Of the tensors that artifacts hold.
_DTYPES = (np.int8, np.uint8, np.float32, np.float64)
#: The largest metric (most are percentages), and the longest class name, in characters.
MAX_METRIC = 1e9
MAX_CLASS_NAME = 1000


#: Fields of `ModelInfo` that a file has only where there is something to say.
OPTIONAL = frozenset({"seen"})


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, besides its numbers; qzoo's models carry it along.

    Attributes:
        architecture: The registry's name of the model ("resnet50"); None for a graph that no
            builder makes.
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

    architecture: str | None
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
            from ..transforms import describe  # whoever has such an object, has PyTorch

            object.__setattr__(self, "transforms", describe(self.transforms))
        if isinstance(self.classes, tuple):
            object.__setattr__(self, "classes", list(self.classes))

    @property
    def name(self) -> str:
        """The architecture, in words where there is none."""
        return self.architecture or NO_BUILDER

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values, without optional ones that are empty."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if v or k not in OPTIONAL}


@dataclass(frozen=True)
class Artifact:
    """A quantized model as plain numbers.

    Attributes:
        info: What the model is.
        layers: Name to layer, in the order in which they run or are defined.
        tensors: `<layer>.weight` int8, `<layer>.weight_scale` float, ... (see docs/artifact.md);
            of `float_layers`, `<layer>.weight` float32. Given as arrays or tensors by name, kept
            as `Tensors`: a mapping to PyTorch's tensors.
        versions: Versions of the packages that made it.
        structure: The graph that layers and tensors belong to, without the tensors, where it is
            known; None where it is that of the architecture, which `graph` then finds.
    """

    info: ModelInfo
    layers: dict[str, Layer]
    tensors: MutableMapping[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    structure: Graph | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_info(self.info)
        object.__setattr__(self, "tensors", Tensors(self.tensors))
        if self.structure is None:  # else the graph checks them, and other operations besides
            check_tensors(self.layers, self.arrays)
            heads = [name for name, layer in self.layers.items() if layer.op == "linear"]
            logits = len(self.arrays[f"{heads[-1]}.weight"]) if heads else None
            _check_classes(self.info.classes, logits)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the tensors by value: what was read from one file shares one piece of memory.

        Handed to a process that `multiprocessing` spawns, PyTorch would pass a descriptor for each.
        """
        return Artifact, (self.info, self.layers, self.arrays, self.versions, self.structure)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """`tensors` as NumPy arrays."""
        assert isinstance(self.tensors, Tensors)
        return self.tensors.arrays

    @classmethod
    def from_graph(
        cls,
        nodes: Iterable[Node],
        tensors: Mapping[str, np.ndarray],
        info: ModelInfo,
        *,
        input_size: tuple[int, int] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> Artifact:
        """Makes an artifact of any graph.

        Args:
            nodes: In the order in which they run; docs/artifact.md lists the operations.
            tensors: What the nodes need, by name.
            info: What the model is; `ModelInfo(None, backend="onednn")` says that no builder
                makes it.
            input_size: Height and width of the only images that it takes, in pixels; None where
                it takes any that are not too small.
            versions: Of the packages that made it.

        Raises:
            ArtifactError: Something is missing, unknown, out of range, or does not fit together.
        """
        # Copies: what was checked stays what it is.
        arrays = {name: np.asarray(value).copy(order="C") for name, value in tensors.items()}
        if info.backend not in BACKENDS:
            raise ArtifactError(
                f"An artifact is for one of the backends {', '.join(BACKENDS)}, not "
                f"{str(info.backend)[:40]!r}: ModelInfo(..., backend='onednn')."
            )
        return cls._of(Graph.of(nodes, arrays, input_size), info, versions)

    @classmethod
    def _of(
        cls, graph: Graph, info: ModelInfo, versions: Mapping[str, str] | None = None
    ) -> Artifact:
        own = Tensors({k: v for k, v in graph.tensors.items() if not k.endswith(".table")})
        tables = {k: v for k, v in graph.tensors.items() if k.endswith(".table")}
        structure = dataclasses.replace(graph, tensors=tables)
        artifact = cls(info, layers_of(graph.nodes), own, dict(versions or {}), structure)
        logits = graph.shapes[graph.output.name][1]
        _check_classes(info.classes, logits if isinstance(logits, int) else None)
        artifact.__dict__["graph"] = graph  # checked already
        return artifact

    @functools.cached_property
    def graph(self) -> Graph:
        """Which operation feeds which, and the grid of every output.

        Raises:
            ArtifactError: The layers and tensors do not fit the architecture.
            MissingDependencyError: The architecture was built with unusual keywords, and PyTorch is
                not installed.
        """
        if self.structure is not None:
            return self.structure.with_numbers(self.layers, self.arrays)
        blueprint = stored_blueprint(self.info.name, self.info.builder_kwargs)
        if blueprint is None:
            require_recording(self.info.name, self.info.builder_kwargs)
            from ..reference.nodes import blueprint_of  # imports PyTorch

            blueprint = blueprint_of(self.info, self.layers)
        classes = self.info.builder_kwargs.get("num_classes", 1000)
        return Graph.of(*fill(blueprint, self.layers, self.arrays, classes))

    @property
    def float_layers(self) -> list[str]:
        """Names of the layers that keep float32 weights, in the architecture's order."""
        return [name for name, layer in self.layers.items() if layer.float]

    def header(self) -> dict[str, Any]:
        """Returns the JSON header, without the digest."""
        info = self.info.to_dict()
        names = {node.name for node in self.graph.nodes}
        if any(layer.op in WEIGHTED_OPS and n not in names for n, layer in self.layers.items()):
            # Auxiliary classifiers, which only training runs, are in no graph.
            info["builder_kwargs"]["aux_logits"] = False
        size = self.graph.size
        return {
            "format": FORMAT,
            "version": VERSION,
            **info,
            "input_size": None if size is None else list(size),
            "nodes": [node.to_json() for node in self.graph.nodes],
            "versions": self.versions,
        }

    def digest(self) -> str:
        """Returns the sha256 over header and tensors, which the file carries (hexadecimal)."""
        return _digest(self.header(), self.graph.tensors)

    def to_bytes(self) -> bytes:
        """Returns the file's content; the same numbers always give the same bytes."""
        header, tensors = self.header(), dict(self.graph.tensors)
        header["sha256"] = _digest(header, tensors)
        return to_safetensors(tensors, metadata={"qzoo": canonical_json(header)})

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


def _from_file(file: File) -> Artifact:
    try:
        metadata, arrays = read_tensors(file)
        if "qzoo" not in metadata:
            raise OtherKindError("has no entry 'qzoo'")
        return _parse(strict_json.parse(metadata["qzoo"]), arrays)
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


def _parse(header: Any, arrays: dict[str, np.ndarray]) -> Artifact:
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
    body = {"nodes", "input_size"} if version >= 3 else {"layers"}
    expected = names | body | {"format", "version", "versions", "sha256"}
    if odd := sorted(repr(k) for k in set(header) ^ expected if k not in OPTIONAL):
        raise ArtifactError(f"the header lacks or has too much of: {', '.join(odd)[:200]}.")
    _check_dtypes(arrays)
    digest = header.pop("sha256")
    if digest != _digest(header, arrays):
        raise ArtifactError(
            "the contents do not match their checksum, so a tensor or the header was changed or "
            "damaged; fetch or save the artifact again."
        )
    versions = header["versions"]
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        raise ArtifactError("the header's versions are not a table of texts.")
    info = ModelInfo(**{name: header[name] for name in names if name in header})
    if not isinstance(info.backend, str) or info.backend not in BACKENDS:
        raise ArtifactError(f"the header names the unknown backend {str(info.backend)[:40]!r}.")
    if version >= 3:
        return _parse_graph(header, arrays, info)
    return _parse_layers(header, arrays, info)


def _check_dtypes(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype not in _DTYPES:
            raise ArtifactError(
                f"tensor {name[:80]!r} has the dtype {array.dtype}, which no artifact holds."
            )


def _parse_graph(header: Any, arrays: dict[str, np.ndarray], info: ModelInfo) -> Artifact:
    """Reads what is new in version 3: nodes instead of layers."""
    nodes, size = header["nodes"], header["input_size"]
    if not isinstance(nodes, list) or len(nodes) > MAX_NODES:
        raise ArtifactError(f"the header's nodes are no list, or more than {MAX_NODES}.")
    if size is not None:
        if not _is_size(size):
            raise ArtifactError(f"the header has the impossible input size {str(size)[:40]}.")
        size = (size[0], size[1])
    graph = Graph.of(map(Node.from_json, nodes), arrays, size)
    artifact = Artifact._of(graph, info, header["versions"])
    stored = dict(artifact.arrays)
    raise_small_scales(artifact.layers, artifact.arrays)
    if any(stored[name] is not array for name, array in artifact.arrays.items()):
        del artifact.__dict__["graph"]  # which has other numbers now
    return artifact


def _is_size(size: Any) -> bool:
    return (
        isinstance(size, list)
        and len(size) == 2
        and all(type(n) is int and 0 < n <= MAX_RESIZE for n in size)
    )


def _parse_layers(header: Any, arrays: dict[str, np.ndarray], info: ModelInfo) -> Artifact:
    """Reads what versions 1 and 2 have: layers, of which the architecture makes the graph."""
    if not isinstance(header["layers"], dict):
        raise ArtifactError("the header's layers are not a table.")
    if len(header["layers"]) > MAX_LAYERS:
        raise ArtifactError(f"the header names more than {MAX_LAYERS} layers.")
    if any(len(name) > MAX_NAME_LENGTH for name in header["layers"]):
        raise ArtifactError(f"a layer's name has more than {MAX_NAME_LENGTH} characters.")
    if info.architecture is None:
        raise ArtifactError("the header names no architecture, which versions 1 and 2 need.")
    layers = {name: Layer.from_json(name, data) for name, data in header["layers"].items()}
    artifact = Artifact(info, layers, Tensors(arrays), header["versions"])
    raise_small_scales(layers, artifact.arrays)
    wanted = 2 if artifact.float_layers else 1
    if header["version"] != wanted:
        raise ArtifactError(
            f"the header says format version {header['version']}, but its layers are those of "
            f"version {wanted}: only version 2 keeps layers in float, and one at least."
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
        "architecture": info.architecture is None or isinstance(info.architecture, str),
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
        Preset.from_dict(info.transforms)
    check_seen(info.seen)


def _is_metric(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_METRIC  # type: ignore[arg-type]


def _check_classes(classes: list[str] | str | None, logits: int | None) -> None:
    """Checks that there is a name for each logit, where both are known."""
    if classes is None or logits is None:
        return
    names = 1000
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


def _digest(header: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256(canonical_json(header).encode("utf-8"))
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name}:torch.{tensor.dtype}:{list(tensor.shape)}".encode())
        sha.update(np.ascontiguousarray(tensor).data)
    return sha.hexdigest()
