"""Int8 weights that are published or come with the package, as `weights_meta/` describes them.

The weight enums (`qzoo.weights`) are torchvision's view of the same; nothing here needs PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._core.files import File, RefusedError, reading
from .artifact.format import Artifact, ModelInfo
from .errors import ArtifactError, DownloadError
from .metadata import architectures, enum_name, read_metadata
from .registry import full_member_name, member_called, model_name

_EMBEDDED = "embedded:"
_PACKAGE = Path(__file__).parent
#: What an error says that a network would have spared.
_OFFLINE_HINT = (
    "Weights that come with the package and need no download: "
    "ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1 (handwritten digits)."
)


@dataclass(frozen=True)
class PublishedWeights:
    """Int8 weights of one model; as text, their full name.

    Attributes:
        architecture: The registry's name of the model.
        name: That of the member, such as "IMAGENET1K_FBGEMM_V2".
        url: Where the file is; "embedded:NAME" for one of the package.
        backend: That the numbers were chosen for.
        builder_kwargs: The model's own keywords that differ from their defaults.
        transforms: How pictures are prepared, as `Preset.from_dict` takes it.
        classes: As in `ModelInfo`.
        metrics: Data set name to metric name to figure, in percent.
        method: How the weights were quantized.
        recipe: The command or page that says it in full.
        sha256: The file's hash in hexadecimal, or None.
        sha256_prefix: Its first digits, or None.
        float_metrics: As `metrics`, of the float model that was quantized, where it is nowhere
            else to be found.
        float_file_size_mib: Size of that model's file, likewise.
    """

    architecture: str
    name: str
    url: str
    backend: str
    builder_kwargs: dict[str, Any]
    transforms: dict[str, Any]
    classes: list[str] | str
    metrics: dict[str, dict[str, float]]
    method: str
    recipe: str
    sha256: str | None = None
    sha256_prefix: str | None = None
    float_metrics: dict[str, dict[str, float]] | None = None
    float_file_size_mib: float | None = None

    def __str__(self) -> str:
        return f"{enum_name(self.architecture)}.{self.name}"

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
            _check_embedded(path, self.sha256 if check_hash else None)
            return path
        from .hub import fetch

        return fetch(
            self.url,
            sha256=self.sha256 if check_hash else None,
            sha256_prefix=self.sha256_prefix if check_hash else None,
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
            try:
                path = self.file(progress, verify)
            except DownloadError as error:
                raise DownloadError(f"{error} {_OFFLINE_HINT}") from None
            with reading(path) as file:
                if verify == check_hash or self.is_in(file):
                    return self.read(file)
        raise AssertionError  # the second round verifies

    def _is_cached(self) -> bool:
        from .hub import is_cached

        return self.url.startswith(("https:", "http:")) and is_cached(self.url)

    def is_in(self, file: File) -> bool:
        """Says by its hash whether a file is the one of these weights."""
        wanted = self.sha256 or self.sha256_prefix or ""
        return file.sha256().startswith(wanted.lower())

    def read(self, file: File) -> Artifact:
        """Reads the weights' own file, already verified.

        Raises:
            ArtifactError: It is damaged.
        """
        if file.path.suffix == ".safetensors":
            return Artifact.read(file)
        from .importers.published import read_published

        return read_published(file, self)

    def info(self) -> ModelInfo:
        """Returns what a model with these weights is."""
        return ModelInfo(
            self.architecture,
            dict(self.builder_kwargs),
            self.backend,
            classes=self.classes,
            transforms=self.transforms,
            recipe={"method": self.method, "url": self.recipe, "weights": str(self)},
            metrics=self.metrics,
        )


def published_weights(model: str, member: str = "DEFAULT") -> PublishedWeights:
    """Returns int8 weights of a model by name; the case does not matter.

    Args:
        model: The registry's name of the model.
        member: "DEFAULT", "IMAGENET1K_FBGEMM_V2" or "ResNet50_QuantizedWeights.DEFAULT".

    Raises:
        UnknownNameError: No such model or weights; the message suggests the nearest.
    """
    architecture = model_name(model)
    name = member_called(member, enum_name(architecture), _members(architecture))
    meta = read_metadata(architecture)
    name = str(meta["default"]) if name == "DEFAULT" else name
    entry = dict(meta["weights"][name])
    entry["classes"] = entry.pop("categories")
    fields = {k: v for k, v in entry.items() if k in PublishedWeights.__dataclass_fields__}
    return PublishedWeights(architecture, name, **fields)


def find_weights(name: str) -> PublishedWeights:
    """Returns int8 weights by their full name, such as "ResNet50_QuantizedWeights.DEFAULT".

    Raises:
        UnknownNameError: No such weights; the message suggests the nearest.
    """
    models = {enum_name(model): model for model in architectures()}
    enum, member = full_member_name(name, {e: _members(model) for e, model in models.items()})
    return published_weights(models[enum], member)


def all_weights() -> Iterator[PublishedWeights]:
    """Goes through the int8 weights of all models."""
    for model in architectures():
        yield from weights_of(model)


def weights_of(model: str) -> list[PublishedWeights]:
    """Returns all int8 weights of a model.

    Raises:
        UnknownNameError: There is no such model.
    """
    name = model_name(model)
    return [published_weights(name, member) for member in read_metadata(name)["weights"]]


def _members(architecture: str) -> list[str]:
    meta = read_metadata(architecture)
    return [*meta["weights"], *(["DEFAULT"] if meta["default"] else [])]


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


def hash_in_name(path: Path) -> str | None:
    """Returns the hash that a file name ends in, as torch.hub writes it ("net-0123abcd.pth")."""
    found = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    return found[1] if found else None
