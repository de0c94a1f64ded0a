"""From files of every kind that holds a model to artifacts, and back to state dicts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeGuard

from .._core import strict_json
from .._core.files import File, RefusedError, reading
from .._core.given import is_module
from .._core.keywords import chosen, takes
from .._core.optional import require_torch
from ..artifact.blueprints import Blueprint, fill, stored_blueprint
from ..artifact.format import Artifact, ModelInfo, canonical_json, check_info
from ..artifact.given import Int8Model, as_artifact
from ..artifact.layers import BARE_OPS
from ..artifact.tensor_file import read_metadata, read_tensors
from ..errors import ArgumentError, ArtifactError, MissingDependencyError, UnknownNameError, listed
from ..importers.architecture import guess_architecture, recognize, transform_input_keyword
from ..importers.float_files import FLOAT_HEADER, is_float_checkpoint
from ..importers.pth import Checkpoint, read_arrays
from ..importers.published import from_checkpoint
from ..metadata import architectures
from ..metadata import read_metadata as facts_of
from ..published import PublishedWeights, all_weights, find_weights, hash_in_name
from ..registry import get_weight, model_name
from .pretrained import find_artifact

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Unpack

#: Under what the metadata of a state dict, and the header of an artifact, say what they hold.
_INT8 = "qzoo"

__all__ = [
    "all_weights",
    "check_model",
    "convert_checkpoint",
    "describe",
    "guess_architecture",
    "is_artifact",
    "published_member",
    "read_any",
    "read_model",
    "state_dict_bytes",
]


@dataclass(frozen=True)
class Told:
    """What the user says of a checkpoint; None leaves it to the file.

    Attributes:
        model: The registry's name of the architecture; else it is guessed from the weights.
        num_classes: Of the classifier; else what the file holds.
        backend: That the numbers were chosen for; else what the file notes or, where it does not, a
            guess from the granularity of scales.
        classes: Names in the order of the logits.
        part: Key of the state dict in a training checkpoint.
        transform_input: Whether a GoogLeNet or Inception changes its input's normalization, which
            no state dict tells.
        like: Full name of int8 weights whose transforms the model shares.
    """

    model: str | None = None
    num_classes: int | None = None
    backend: str | None = None
    classes: list[str] | None = None
    part: str | None = None
    transform_input: bool | None = None
    like: str | None = None


class ToldKeywords(TypedDict, total=False):
    """The fields of `Told`, as keywords."""

    model: str | None
    num_classes: int | None
    backend: str | None
    classes: list[str] | None
    part: str | None
    transform_input: bool | None
    like: str | None


def is_artifact(path: Path) -> bool:
    """Says whether a file is an artifact, or a folder one of a shared model, by its first bytes."""
    if path.is_dir() or path.suffix == ".safetensors":
        return True
    try:
        with File(path) as file:
            return _begins_like_one(file)
    except OSError:
        return False


def _begins_like_one(file: File) -> bool:
    if file.path.suffix == ".safetensors":
        return True
    head = file.read_bytes(0, min(9, file.size))
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32


def _holds_bare_tensors(file: File) -> bool:
    """Says whether a safetensors file is a state dict that does not say what it is."""
    try:
        return not any(key.startswith("qzoo") for key in read_metadata(file))
    except RefusedError:
        return False


@takes(Told)
def read_any(
    path: str | os.PathLike[str] | File, **options: Unpack[ToldKeywords]
) -> Artifact | nn.Module:
    """Reads an int8 model, as `read_model` does, or a float one, as `load_float` does.

    Args:
        path: The file or folder, or the file itself where it is open already.
        **options: See `Told`; `backend` is for int8 models, and `like` of a float one may name
            float weights.

    Raises:
        ArtifactError: The file is missing, damaged, or holds no model.
        ArgumentError: The architecture cannot be told, or options do not fit the file.
        MissingDependencyError: It is a float model, which is a PyTorch module.
    """
    if not isinstance(path, File) and Path(path).is_dir():
        return read_model(path, **options)
    with reading(path) as file:
        if not is_float_checkpoint(file, options.get("part")):
            return read_model(file, **options)
        if options.pop("backend", None) is not None:
            raise ArgumentError(
                f"{file.path} holds float weights, which are for no backend: drop backend."
            )
        require_torch(f"Reading the float model {file.path}")
        from ..importers.checkpoint import load_float

        like = options.pop("like", None)
        transforms = None if like is None else get_weight(like).transforms
        return load_float(file, transforms=transforms, **options)


@takes(Told)
def read_model(path: str | os.PathLike[str] | File, **options: Unpack[ToldKeywords]) -> Artifact:
    """Reads an artifact, a folder of `save_pretrained`, or a checkpoint (`convert_checkpoint`).

    Raises:
        ArtifactError: The file is missing, damaged, or holds no int8 model.
        ArgumentError: Options given for an artifact, which says all of that itself.
    """
    given = sorted(key for key, value in options.items() if value is not None)
    with contextlib.ExitStack() as stack:
        if not isinstance(path, File) and Path(path).is_dir():
            read = functools.partial(find_artifact, path)
        else:
            file = stack.enter_context(reading(path))
            if not _begins_like_one(file) or _holds_bare_tensors(file):
                return convert_checkpoint(file, **options)
            read = functools.partial(Artifact.read, file)
        if given:
            name = path.path if isinstance(path, File) else path
            raise ArgumentError(
                f"{name} is an artifact, which says itself what it is: drop {', '.join(given)}."
            )
        return read()


@takes(Told)
def convert_checkpoint(
    path: str | os.PathLike[str] | File, **told: Unpack[ToldKeywords]
) -> Artifact:
    """Makes an artifact of a published file, or of a user's own state dict.

    A file that torchvision has published is known by its hash, and needs no options.

    Args:
        path: The file, of torch.save or safetensors, or the file itself where it is open already;
            its state dict is that of a converted model or of one prepared for QAT.
        **told: What the file does not say itself, see `Told`.

    Raises:
        ArtifactError: The file is missing, damaged, or holds no int8 model.
        ArgumentError: The architecture cannot be guessed, or options do not fit it.
        UnknownNameError: An unknown model, backend or weights.
    """
    said = chosen(Told, None, told)
    with reading(path) as file:
        member = published_member(file) if said == Told() else None
        if member is not None:
            return member.read(file)
        if said.part is None and _begins_like_one(file):
            checkpoint = Checkpoint(dict(read_tensors(file).arrays), {})
        else:
            checkpoint = read_arrays(file, said.part)
    return from_checkpoint(checkpoint, _info(checkpoint, said, file), consume=True)


def _info(checkpoint: Checkpoint, said: Told, file: File) -> ModelInfo:
    """Returns what the model is, by its weights, the user's word and the file's note."""
    name, kwargs = recognize(checkpoint.entries, said.model)
    noted = _noted(checkpoint, name, file)
    if said.num_classes is not None:
        kwargs["num_classes"] = said.num_classes
    transform_input = said.transform_input
    if transform_input is None:
        transform_input = noted.builder_kwargs.get("transform_input")
    transforms = noted.transforms
    if said.like is not None:
        transforms = _int8_weights(said.like).transforms
    return dataclasses.replace(
        noted,
        builder_kwargs=kwargs | transform_input_keyword(name, transform_input),
        backend=said.backend or noted.backend,
        classes=said.classes or noted.classes,
        transforms=transforms,
        recipe=noted.recipe or {"converted_from": file.path.name},
    )


def _int8_weights(name: str) -> PublishedWeights:
    """Returns int8 weights by their full name.

    Raises:
        ArgumentError: The name is that of float weights.
        UnknownNameError: There are no such weights.
    """
    enum = name.partition(".")[0]
    if any(enum == facts_of(model)["float_weights"] for model in architectures()):
        raise ArgumentError(
            f"{name} are no int8 weights: name some, whose transforms the model shares."
        )
    return find_weights(name)


def _noted(checkpoint: Checkpoint, name: str, file: File) -> ModelInfo:
    """Returns what `state_dict_bytes` noted in a state dict, where it is of that architecture.

    Raises:
        ArtifactError: The note is damaged.
    """
    note = checkpoint.note(_INT8)
    if note is None:
        return ModelInfo(name)
    try:
        info = ModelInfo(**strict_json.parse(note))
        check_info(info)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{file.path} has a damaged note of what it is: {error}.") from None
    return info if info.architecture == name else ModelInfo(name)


def state_dict_bytes(model: Int8Model) -> bytes:
    """Returns what `torch.save` writes of the state dict that torchvision's model loads.

    What the model is (backend, classes, transforms, ...) is noted in the state dict's `_metadata`,
    which torchvision passes over, and `convert_checkpoint` and `load_float` read.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes, or a float one of the zoo.

    Raises:
        ArtifactError: The artifact does not fit its architecture, or keeps layers in float, which
            torchvision's int8 models cannot hold.
        MissingDependencyError: PyTorch, which writes such files, is not installed.
    """
    torch = require_torch("Writing the state dict of a PyTorch model")
    from ..native.model import model_info, to_native

    artifact = None if _is_float(model) else as_artifact(model)
    if artifact is not None and (kept := artifact.float_layers):
        raise ArtifactError(
            f"This model keeps {len(kept)} layers in float ({listed(kept, 1)}), which "
            "torchvision's int8 models cannot hold: export it instead (qzoo export)."
        )
    buffer = io.BytesIO()
    built: Any = model if artifact is None else to_native(artifact)
    state: Any = built.state_dict()
    key = FLOAT_HEADER if artifact is None else _INT8
    state._metadata[key] = {"info": canonical_json(model_info(built).to_dict())}
    torch.save(state, buffer)
    return buffer.getvalue()


def _is_float(model: Int8Model) -> TypeGuard[nn.Module]:
    """Says whether a model is a float module, and neither int8 nor what holds an artifact."""
    if not is_module(model) or hasattr(model, "artifact"):
        return False
    from ..native.model import is_int8

    return not is_int8(model)


def published_member(file: File) -> PublishedWeights | None:
    """Returns the weights whose published file this is, known by its hash, or None."""
    return next((w for w in all_weights() if not w.embedded and w.is_in(file)), None)


def check_model(path: Path) -> str:
    """Reads a file as far as loading it would, and says in a few words what it is.

    Raises:
        ArtifactError: It is damaged, is not what its name says, or holds no model of the zoo.
    """
    if path.is_dir():
        return _described(find_artifact(path))
    with reading(path) as file:
        if _begins_like_one(file) and not is_float_checkpoint(file):
            return _described(Artifact.read(file))
        member = published_member(file)
        if member is not None:
            return f"{member}, {describe(member.read(file))}"
        expected = hash_in_name(path)
        if expected and not file.sha256().startswith(expected):
            raise ArtifactError(
                f"{path} does not have the hash that its name ends in; fetch it again."
            )
        try:
            return describe(read_any(file))
        except MissingDependencyError:
            return "float weights; whether they fit a model is checked where PyTorch is installed"
        except ArgumentError:
            return "a readable checkpoint, of no model known here"


def _described(artifact: Artifact) -> str:
    """Says what an artifact is, once its graph is found to be that of its architecture.

    Raises:
        ArtifactError: It is not.
    """
    info = artifact.info
    if info.architecture is None:
        return describe(artifact)
    try:
        model_name(info.architecture)
    except UnknownNameError as error:
        raise ArtifactError(f"The artifact is for an architecture unknown here: {error}") from None
    blueprint = stored_blueprint(info.architecture, info.builder_kwargs)
    if blueprint is not None:
        _check_graph(artifact, blueprint)
        return describe(artifact)
    try:
        require_torch("Building a model with unusual arguments")
    except MissingDependencyError:
        return f"{describe(artifact)}; whether they fit is checked where PyTorch is installed"
    from ..native.model import to_native

    to_native(artifact)
    return describe(artifact)


def _check_graph(artifact: Artifact, blueprint: Blueprint) -> None:
    """Checks that an artifact's graph is the one that its architecture makes of its layers.

    Raises:
        ArtifactError: It is another.
    """
    nodes = artifact.graph.nodes
    own = {node.name for node in nodes}
    # The file says nothing of what does nothing, such as a ReLU that is fused into its layer.
    idle = {n: x for n, x in blueprint.layers().items() if x.op in BARE_OPS and n not in own}
    classes = artifact.info.builder_kwargs.get("num_classes", 1000)
    expected, _ = fill(blueprint, {**idle, **artifact.layers}, artifact.arrays, classes)
    if tuple(expected) != nodes:
        raise ArtifactError(
            f"The artifact's graph is not that of a {artifact.info.architecture}, although its "
            "layers are: it was made for another architecture, or changed."
        )


def describe(model: Int8Model) -> str:
    """Returns a few words on what an int8 or a float model is."""
    if _is_float(model):
        from ..native.model import model_info

        classes = model_info(model).builder_kwargs.get("num_classes", 1000)
        return f"{model_info(model).architecture}, float, {classes} classes"
    artifact = as_artifact(model)
    info = artifact.info
    text = f"{info.name}, int8 for {info.backend}, {len(artifact.layers)} layers"
    kept = len(artifact.float_layers)
    return f"{text}, {kept} of them kept in float" if kept else text
