"""The registry of models: every builder, found by name."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ArgumentError, UnknownNameError, did_you_mean
from .metadata import architectures, read_metadata

if TYPE_CHECKING:
    from torch import nn

    from ._weights_enum import WeightsEnum

Builder = TypeVar("Builder", bound=Callable[..., Any])


@dataclass(frozen=True)
class ModelEntry:
    """One registered model.

    Attributes:
        name: The builder's name.
        builder: The public function.
        construct: Makes the quantizable float module from the model's own keywords.
        weights: The enum of int8 weights.
        float_weights: torchvision's enum of float weights.
        pretrained_kwargs: Keywords that pretrained weights call for, where the user gave none.
        aux: Names of auxiliary classifiers, which torchvision's pretrained models drop unless the
            user asks for them.
        widths: From the shapes of a state dict's weights, by layer name, to the keywords that may
            give an architecture of these widths, the likeliest first; None if it has one width.
    """

    name: str
    builder: Callable[..., nn.Module]
    construct: Callable[..., nn.Module]
    weights: type[WeightsEnum]
    float_weights: type[WeightsEnum]
    pretrained_kwargs: Mapping[str, Any] = field(default_factory=dict)
    aux: tuple[str, ...] = ()
    widths: Callable[[Mapping[str, tuple[int, ...]]], Iterable[dict[str, Any]]] | None = None

    def skeleton(self, kwargs: Mapping[str, Any]) -> nn.Module:
        """Makes the float module on the meta device: shapes only, nothing drawn or allocated.

        The keywords may come from a file of unknown origin: they are checked first.

        Raises:
            ArgumentError: The keywords do not build this model, or one of absurd depth or size.
        """
        from .models.skeleton import make_skeleton

        return make_skeleton(self, kwargs)


#: What torchvision's constructors and PyTorch raise for keywords that make no sense.
BUILD_ERRORS = (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError)


def build_failure(name: str, kwargs: Mapping[str, Any], error: BaseException) -> str:
    """Returns the sentence that says why the keywords do not build the model."""
    shown = ", ".join(f"{str(k)[:40]}={repr(v)[:60]}" for k, v in kwargs.items())
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f"Cannot build {name} with {shown[:300] or 'no keywords'}: {reason[:300]}."


_ENTRIES: dict[str, ModelEntry] = {}


def _builders() -> set[str]:
    """Returns the names of all builders, without importing the files that define them."""
    return {*architectures(), *_ENTRIES}


def _entries() -> dict[str, ModelEntry]:
    """Returns all entries; the model files make them when they are imported."""
    for name in _builders() - set(_ENTRIES):
        _load(name)
    return _ENTRIES


def _load(name: str) -> None:
    # As an attribute of the package: a file may be called as one of its builders (googlenet), and
    # importing it alone would leave the file under that name.
    getattr(importlib.import_module(f"{__package__}.models"), name)


#: What the documentation of every builder ends in.
_BUILDER_DOCS = """

    Args:
        weights: With `quantize=True` a member of the model's int8 weight enum, else of
            torchvision's float enum; or its name, such as "DEFAULT"; or None for random weights.
        progress: Whether a download shows a progress bar on stderr.
        quantize: Whether to return a native int8 model in eval mode (CPU only) instead of the
            float model with its quantization markers.
        backend: Numeric configuration: "fbgemm", "x86", "onednn" or "qnnpack". None takes the
            weights' own and, without weights, the best of this machine.
        **kwargs: The model's own keywords, as torchvision's float builder takes them. With float
            weights, `num_classes` other than the checkpoint's gives a fresh head on the pretrained
            backbone.

    Returns:
        A module that takes float32 [N, 3, H, W] and gives float32 logits [N, num_classes].

    Raises:
        ArgumentError: Arguments that do not fit together, or do not fit the weights.
        UnknownNameError: An unknown weights member or backend.
        DownloadError: The weights could not be fetched or verified.
    """


def register_model(
    weights: type[WeightsEnum],
    float_weights: type[WeightsEnum],
    construct: Callable[..., nn.Module],
    **options: Any,
) -> Callable[[Builder], Builder]:
    """Registers the decorated builder under its own name, and completes its documentation.

    The arguments are those of `ModelEntry`.
    """

    def register(builder: Builder) -> Builder:
        name = builder.__name__
        if name in _ENTRIES:
            raise ArgumentError(f"A model is already registered under the name {name!r}.")
        _ENTRIES[name] = ModelEntry(name, builder, construct, weights, float_weights, **options)
        builder.__doc__ = (builder.__doc__ or "").rstrip() + _BUILDER_DOCS
        return builder

    return register


def model_name(name: str | Callable[..., nn.Module] | None) -> str:
    """Returns how the registry spells the name of a model; imports nothing.

    Args:
        name: The name, in any case, or a builder.

    Raises:
        UnknownNameError: No such model; the message suggests the nearest names.
    """
    if name is None:
        raise UnknownNameError(
            "This model comes from no builder of qzoo, so its architecture is unknown."
        )
    key = name.lower() if isinstance(name, str) else getattr(name, "__name__", str(name))
    key = key.removeprefix("quantized_")
    if key not in _builders():
        raise UnknownNameError(
            f"Unknown model {str(name)[:80]!r}.{did_you_mean(key, _builders())}"
            " Call qzoo.list_models() (or run: qzoo list) to see them all."
        )
    return key


def get_entry(name: str | Callable[..., nn.Module] | None) -> ModelEntry:
    """Returns the registry's entry for a model name, in any case, or a builder.

    Raises:
        UnknownNameError: No such model; the message suggests the nearest names.
    """
    key = model_name(name)
    if key not in _ENTRIES:
        _load(key)
    return _ENTRIES[key]


def list_models(
    include: Iterable[str] | str | None = None,
    exclude: Iterable[str] | str | None = None,
    quantized: bool | None = None,
) -> list[str]:
    """Returns the sorted names of the registered models.

    Args:
        include: Unix shell wildcards; a model stays if any of them matches. None keeps all.
        exclude: Unix shell wildcards; a model goes if any of them matches.
        quantized: True keeps the models that have int8 weights, False those that have none.
    """
    include = [include] if isinstance(include, str) else include
    exclude = [exclude] if isinstance(exclude, str) else exclude
    names = _builders()
    if include is not None:
        names = {n for pattern in include for n in fnmatch.filter(names, pattern)}
    for pattern in exclude or ():
        names -= set(fnmatch.filter(names, pattern))
    if quantized is not None:
        names = {n for n in names if _has_int8_weights(n) == quantized}
    return sorted(names)


def _has_int8_weights(name: str) -> bool:
    if name in _ENTRIES:
        return bool(_ENTRIES[name].weights.__members__)
    return bool(read_metadata(name)["weights"])


def get_model_builder(name: str) -> Callable[..., nn.Module]:
    """Returns the builder registered under `name`.

    Raises:
        UnknownNameError: No such model.
    """
    return get_entry(name).builder


def get_model(name: str, **config: Any) -> nn.Module:
    """Builds the model registered under `name`; `config` goes to its builder.

    Raises:
        UnknownNameError: No such model.
    """
    return get_model_builder(name)(**config)


def get_model_weights(name: str | Callable[..., nn.Module]) -> type[WeightsEnum]:
    """Returns the enum of int8 weights of a model name or builder; it may have no members.

    Raises:
        UnknownNameError: No such model.
    """
    return get_entry(name).weights


def get_weight(name: str) -> WeightsEnum:
    """Returns a weights member by its full name; the case of the member does not matter.

    Args:
        name: "ResNet50_QuantizedWeights.DEFAULT", or one of torchvision's float weights such as
            "ResNet50_Weights.IMAGENET1K_V2".

    Raises:
        UnknownNameError: No such enum or member; the message suggests the nearest.
    """
    enums = {e.__name__: e for x in _entries().values() for e in (x.weights, x.float_weights)}
    enum, member = full_member_name(name, {e: enums[e].__members__ for e in enums})
    return find_member(enums[enum], member)


def full_member_name(name: str, enums: Mapping[str, Iterable[str]]) -> tuple[str, str]:
    """Takes a full name of weights apart, into their enum's name and the member's, unchecked.

    Args:
        name: Such as "ResNet50_QuantizedWeights.DEFAULT".
        enums: Names of enums, each with those of its members.

    Raises:
        UnknownNameError: There is no such enum, or no member is named.
    """
    enum, _, member = str(name).partition(".")
    if enum not in enums or not member:
        known = [f"{e}.{m}" for e, members in enums.items() for m in members]
        raise UnknownNameError(
            f"Unknown weights {str(name)[:80]!r}: give an enum and a member, such as "
            f"'ResNet50_QuantizedWeights.DEFAULT'.{did_you_mean(str(name), known)}"
        )
    return enum, member


def find_member(enum: type[WeightsEnum], member: str) -> WeightsEnum:
    """Returns the member of `enum` called `member`, in any case.

    Raises:
        UnknownNameError: The enum has no such member; the message lists those it has.
    """
    return enum[member_called(member, enum.__name__, list(enum.__members__))]


def member_called(member: str, enum: str, members: Sequence[str]) -> str:
    """Returns how weights spell their member of that name, in any case.

    Args:
        member: "DEFAULT" in any case, or "ResNet50_QuantizedWeights.DEFAULT".
        enum: What the weights' enum is called.
        members: The names of its members.

    Raises:
        UnknownNameError: There is no such member; the message lists those there are.
    """
    name = _spelling(member, enum, members)
    if name is None and not members:
        raise UnknownNameError(
            f"{enum} has no member {member!r} (it has: none yet): nobody has published int8 "
            "weights for this model. Quantize it yourself (qzoo quantize)."
        )
    if name is None:
        raise UnknownNameError(
            f"{enum} has no member {member!r} (it has: {', '.join(members)})."
            + did_you_mean(member.upper(), members)
        )
    return name


def member_name(enum: type[WeightsEnum], member: str) -> str | None:
    """Returns how `enum` spells its member, or None where it has no such.

    Args:
        enum: The weights.
        member: "DEFAULT" in any case, or "ResNet50_QuantizedWeights.DEFAULT".
    """
    return _spelling(member, enum.__name__, enum.__members__)


def _spelling(member: str, enum: str, members: Iterable[str]) -> str | None:
    wanted = member.removeprefix(f"{enum}.").lower()
    return next((name for name in members if name.lower() == wanted), None)
