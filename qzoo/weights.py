"""Weight enums that read `weights_meta/<architecture>.json`, the only source of their facts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torchvision.models import Weights, get_weight

from ._core.files import File, RefusedError
from ._weights_enum import WeightsEnum
from .artifact.format import Artifact, ModelInfo
from .errors import ArgumentError
from .metadata import read_metadata
from .pictures.classes import class_names
from .published import PublishedWeights, hash_in_name, published_weights
from .registry import find_member, member_name
from .transforms import ImageClassification, preset_kwargs


def read_weights(architecture: str, name: str) -> Weights:
    """Makes torchvision's `Weights` for one entry of an architecture's metadata file."""
    architecture_meta = read_metadata(architecture)
    entry = dict(architecture_meta["weights"][name])
    transforms = functools.partial(ImageClassification, **preset_kwargs(entry.pop("transforms")))
    meta = {
        "architecture": architecture,
        "name": name,
        # Weights for another number of classes or another input size have figures of their own.
        "num_params": entry.pop("num_params", architecture_meta["num_params"]),
        "min_size": tuple(architecture_meta["min_size"]),
        "_ops": entry.pop("gmacs", architecture_meta["gmacs"]),
        **{
            k: v
            for k, v in entry.items()
            if k not in ("url", "metrics", "file_size_mib", "categories")
        },
        "_metrics": entry["metrics"],
        "_file_size": entry["file_size_mib"],
        "categories": class_names(entry["categories"]),
        "unquantized": get_weight(entry["unquantized"]) if entry["unquantized"] else None,
    }
    return Weights(url=entry["url"], transforms=transforms, meta=meta)


class QuantizedWeightsEnum(WeightsEnum):
    """Base of the int8 weight enums: torchvision's `WeightsEnum`, reading artifacts safely."""

    @classmethod
    def verify(cls, obj: Any) -> Any:
        """Returns the member that `obj` is or names, or None for None.

        Raises:
            UnknownNameError: A name that the enum lacks.
            ArgumentError: A member of another enum.
        """
        if obj is None or isinstance(obj, cls):
            return obj
        if isinstance(obj, str):
            return find_member(cls, obj)
        raise ArgumentError(
            f"weights should be a member of {cls.__name__} or its name, not {obj!r}."
        )

    @property
    def published(self) -> PublishedWeights:
        """The same weights as a record that needs no PyTorch."""
        known = published_weights(self.meta["architecture"], self.name)
        return dataclasses.replace(
            known,
            url=self.url,
            sha256=self.meta.get("sha256"),
            sha256_prefix=self.meta.get("sha256_prefix"),
        )

    def info(self) -> ModelInfo:
        """Returns what a model with these weights is."""
        return self.published.info()

    @property
    def embedded(self) -> bool:
        """Whether the file is part of the installed package, so that nothing is downloaded."""
        return self.published.embedded

    def file(self, progress: bool = True, check_hash: bool = True) -> Path:
        """Returns the path of the weights' file, downloading and verifying it where needed.

        Raises:
            DownloadError: The file cannot be fetched, or is not the one that was published.
            ArtifactError: The file comes with the package and is missing or changed.
        """
        return self.published.file(progress, check_hash)

    def artifact(self, progress: bool = True, check_hash: bool = True) -> Artifact:
        """Returns the int8 artifact of these weights, converted from a published .pth if need be.

        Raises:
            DownloadError: The file cannot be fetched, or is not the one that was published.
            ArtifactError: The file is damaged, or missing from the installed package.
        """
        return self.published.artifact(progress, check_hash)

    def get_state_dict(
        self, *args: Any, progress: bool = True, check_hash: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Returns the int8 state dict, as torchvision's builders load it.

        Args:
            *args: Ignored; torchvision passes `model_dir`.
            progress: Whether a download shows a progress bar.
            check_hash: Whether to verify the file's published hash.
            **kwargs: Ignored, for torchvision's signature.

        Raises:
            DownloadError: The file cannot be fetched, or is not the one that was published.
        """
        from .native.model import to_native

        return to_native(self.artifact(progress, check_hash), consume=True).state_dict()


def resolve_weights(
    weights: Any, quantize: bool, enum: type[WeightsEnum], float_enum: type[WeightsEnum]
) -> WeightsEnum | None:
    """Returns the member that a builder's `weights` argument means.

    Args:
        weights: A member, its name in any case ("DEFAULT", "IMAGENET1K_FBGEMM_V2",
            "ResNet50_QuantizedWeights.DEFAULT") or None.
        quantize: Whether the builder makes an int8 model.
        enum: The model's int8 weights.
        float_enum: The model's float weights.

    Raises:
        ArgumentError: Float weights with `quantize=True` or int8 weights with `quantize=False`.
        UnknownNameError: A name that neither enum has.
    """
    if weights is None:
        return None
    wanted, other = (enum, float_enum) if quantize else (float_enum, enum)
    if isinstance(weights, str):
        default = weights.upper() == "DEFAULT"
        if not default and member_name(wanted, weights) is None and member_name(other, weights):
            raise ArgumentError(_mismatch(weights, quantize))
        return find_member(wanted, weights)
    if isinstance(weights, wanted):
        return weights
    if isinstance(weights, other):
        raise ArgumentError(_mismatch(repr(weights), quantize))
    raise ArgumentError(
        f"weights should be a member of {wanted.__name__}, its name, or None, not {weights!r}."
    )


def legacy_weights(pretrained: Any, weights: Any, enum: type[WeightsEnum]) -> WeightsEnum | None:
    """Returns what `pretrained=` means, which torchvision's builders took before version 0.13.

    True means the first weights that torchvision published, as it still does there; a warning
    names them.

    Raises:
        ArgumentError: `weights` was given too, the value is no bool, or nothing was published.
    """
    if weights is not None or not isinstance(pretrained, bool):
        raise ArgumentError(
            f"Give weights={weights!r} alone, or pretrained=True or False instead of it, not "
            f"pretrained={pretrained!r}."
        )
    published = [member for member in enum if member.name.startswith("IMAGENET1K_")]
    if pretrained and not published:
        raise ArgumentError(
            f"Nobody has published ImageNet weights for this model: {enum.__name__} has none. "
            "Leave pretrained out."
        )
    member = published[0] if pretrained else None
    warnings.warn(
        f"pretrained={pretrained} is torchvision's old spelling: write weights="
        f"{str(member) if member else None}, or leave it out.",
        FutureWarning,
        stacklevel=4,
    )
    return member


def _mismatch(name: str, quantize: bool) -> str:
    if quantize:
        return (
            f"{name} are float weights: pass quantize=False, or int8 weights (weights='DEFAULT')."
        )
    return f"{name} are int8 weights: pass quantize=True, or float weights (weights='DEFAULT')."


#: torchvision's own way to fetch float weights, which ignores QZOO_OFFLINE and QZOO_MIRROR.
_TORCHVISIONS = WeightsEnum.get_state_dict


def float_state_dict(weights: WeightsEnum, progress: bool) -> dict[str, Any]:
    """Returns the state dict of torchvision's float weights.

    The file comes from the folder of torch.hub, where torchvision may have put it, or through
    `qzoo.hub`; either way its hash is checked and no code from it is run.

    Raises:
        DownloadError: The file cannot be fetched, or is not the one that was published.
        ArtifactError: The file holds no state dict.
    """
    if type(weights).get_state_dict is not _TORCHVISIONS:  # an enum with a store of its own
        return weights.get_state_dict(progress=progress, check_hash=True)
    from . import hub
    from .importers.pth import read_checkpoint

    name = Path(urlsplit(weights.url).path)
    prefix = hash_in_name(name)
    with contextlib.suppress(OSError, RefusedError), File(_torch_hub_file(name.name)) as file:
        if prefix is not None and file.sha256().startswith(prefix):
            return read_checkpoint(file).entries
    return read_checkpoint(hub.fetch(weights.url, sha256_prefix=prefix, progress=progress)).entries


def _torch_hub_file(name: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", name)
