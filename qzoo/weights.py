"""Weight enums that read `weights_meta/<architecture>.json`, the only source of their facts."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torchvision.models import Weights, get_weight
from torchvision.models._meta import _IMAGENET_CATEGORIES

from ._core.files import File, RefusedError, reading
from ._weights_enum import WeightsEnum
from .artifact.format import Artifact
from .errors import ArgumentError, ArtifactError, UnknownNameError
from .metadata import read_metadata
from .registry import find_member, member_name
from .transforms import ImageClassification, preset_kwargs

IMAGENET = "imagenet-1k"
_EMBEDDED = "embedded:"
_PACKAGE = Path(__file__).parent


def class_names(classes: list[str] | str | None) -> list[str] | None:
    """Returns the names that an artifact or a metadata entry refers to."""
    return list(_IMAGENET_CATEGORIES) if classes == IMAGENET else classes  # type: ignore[return-value]


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
    def embedded(self) -> bool:
        """Whether the file is part of the installed package, so that nothing is downloaded."""
        return self.url.startswith(_EMBEDDED)

    def file(self, progress: bool = True, check_hash: bool = True) -> Path:
        """Returns the path of the weights' file, downloading and verifying it where needed.

        Raises:
            DownloadError: The file cannot be fetched, or is not the one that was published.
            ArtifactError: The file comes with the package and is missing or changed.
        """
        if self.embedded:
            path = _PACKAGE / "embedded" / self.url.removeprefix(_EMBEDDED)
            _check_embedded(path, self.meta["sha256"] if check_hash else None)
            return path
        from . import hub

        meta = self.meta
        return hub.fetch(
            self.url,
            sha256=meta.get("sha256") if check_hash else None,
            sha256_prefix=meta.get("sha256_prefix") if check_hash else None,
            progress=progress,
        )

    def artifact(self, progress: bool = True, check_hash: bool = True) -> Artifact:
        """Returns the int8 artifact of these weights, converted from a published .pth if need be.

        Raises:
            DownloadError: The file cannot be fetched, or is not the one that was published.
            ArtifactError: The file is damaged, or missing from the installed package.
        """
        # A file that lies in the cache is verified once it is open, so that what is read is what
        # was verified. A bad one is left to `file`, which fetches it again.
        for verify in (check_hash and not self._is_cached(), check_hash):
            path = self.file(progress, verify)
            with reading(path) as file:
                if verify == check_hash or self._is_published(file):
                    return self._read(file)
        raise AssertionError  # the second round verifies

    def _is_cached(self) -> bool:
        from . import hub

        return self.url.startswith(("https:", "http:")) and hub.is_cached(self.url)

    def _is_published(self, file: File) -> bool:
        wanted = self.meta.get("sha256") or self.meta.get("sha256_prefix") or ""
        return file.sha256().startswith(wanted.lower())

    def _read(self, file: File) -> Artifact:
        if file.path.suffix == ".safetensors":
            return Artifact.read(file)
        from .importers.published import read_published

        return read_published(file, self)

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


def _check_embedded(path: Path, sha256: str | None) -> None:
    try:
        with File(path) as file:
            found = file.sha256()
    except (OSError, RefusedError) as error:
        raise ArtifactError(
            f"The weights {path}, which come with qzoo, cannot be read ({error}); install "
            "qzoo again."
        ) from None
    if sha256 is not None and found != sha256:
        raise ArtifactError(
            f"The weights {path}, which come with qzoo, were changed or damaged: their sha256 is "
            f"{found} instead of {sha256}. Install qzoo again."
        )


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
        if default and not wanted.__members__:
            raise UnknownNameError(
                f"{wanted.__name__} has no members: nobody has published int8 weights for this "
                "model yet. Quantize it yourself (references/ptq.py), or leave weights=None."
            )
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


def hash_in_name(path: Path) -> str | None:
    """Returns the hash that a file name ends in, as torch.hub writes it ("net-0123abcd.pth")."""
    found = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    return found[1] if found else None


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
