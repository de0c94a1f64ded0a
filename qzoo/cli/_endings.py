"""Names of files: each format has endings of its own, and is written to no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ..errors import ArgumentError

#: How names of files with weights end.
WEIGHTS_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt")
ARTIFACT = "artifact"
TORCHVISION = "torchvision"

#: Format to the endings that its files have, the usual one first.
ENDINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        ARTIFACT: (".safetensors",),
        TORCHVISION: (".pth", ".pt"),
        "onnx": (".onnx",),
        "openvino": (".xml",),
        "executorch": (".pte",),
        "torch-export": (".pt2",),
        # PyTorch loads a package only by a name that ends in .pt2.
        "aoti": (".aoti.pt2", ".pt2"),
    }
)


def format_of(path: Path) -> str | None:
    """Returns the format that a file's name stands for, or None where it says none."""
    ending = _ending(path)
    return next((name for name, endings in ENDINGS.items() if ending in endings), None)


def check_ending(path: Path, wanted: str) -> None:
    """Checks that a file's name does not promise another format than is written.

    Raises:
        ArgumentError: It has an ending, and another one than files of that format have.
    """
    if not path.suffix or _ending(path) in ENDINGS[wanted]:
        return
    other = format_of(path)
    means = "" if other is None else f", which means {other}"
    raise ArgumentError(
        f"Cannot write the format {wanted} to {path.name!r}{means}: end the name in "
        f"{' or '.join(ENDINGS[wanted])}."
    )


def check_folder(path: Path | None) -> None:
    """Checks, before long work, that a file can be written where it is to go.

    Raises:
        ArgumentError: There is no such folder.
    """
    if path is not None and not path.absolute().parent.is_dir():
        raise ArgumentError(f"There is no folder {path.parent} to write {path.name} to.")


def _ending(path: Path) -> str:
    """Returns the longest ending of the table that a name has, or nothing."""
    name = path.name.lower()
    return max(
        (e for endings in ENDINGS.values() for e in endings if name.endswith(e)),
        key=len,
        default="",
    )
