"""Which pictures a folder holds, and of which classes: the one reader of folders.

Whatever takes a folder of pictures, in Python or on the command line, reads it through here, so
that the same folder means the same pictures with the same labels everywhere.
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArgumentError, DataWarning, did_you_mean
from .images import SUFFIXES

#: The folders of a data set that is split already, and which half each one is.
HALVES = {"train": "train", "test": "val"}
#: Folders that systems and programs put beside people's own, in small letters. A name that begins
#: with a dot needs no mention.
_NOT_OURS = frozenset(
    ("__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found")
) | {"system volume information"}
#: Endings of pictures that qzoo does not read: worth a word where it finds them.
_OTHER_PICTURES = (
    ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpf", ".jpx", ".psd", ".svg", ".tga", ".ico",
    ".icns", ".dds", ".eps", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf",
    ".rw2", ".raf",
)  # fmt: skip


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of a folder with a folder per class, or of one without classes.

    Attributes:
        root: The folder.
        classes: Names of the classes in alphabetical order; empty where there are none.
        files: Paths of the pictures, class by class and in alphabetical order.
        labels: Which of `classes` each file belongs to; empty where there are none.
        beside: Pictures that lie beside the folders of the classes, and so belong to none.
    """

    root: Path
    classes: list[str]
    files: list[str]
    labels: list[int]
    beside: list[str]

    def check_classes(self) -> PictureFolder:
        """Returns the folder itself, whose pictures are to be told apart by class.

        Warns of pictures that lie beside the folders of the classes.

        Raises:
            ArgumentError: A class has no pictures.
        """
        filled = set(self.labels)
        for label, name in enumerate(self.classes):
            if label not in filled:
                raise ArgumentError(
                    f"The class folder {self.root / name} holds no pictures ({', '.join(SUFFIXES)} "
                    "are read): put some in, or remove it."
                )
        if self.beside:
            _warn(self.root, self.beside, "beside the folders of its classes")
        return self


def read_folder(root: Path) -> PictureFolder:
    """Finds the pictures of a folder.

    Each folder in it is a class, and all pictures below that, at any depth, belong to the class;
    without folders, the pictures have no classes. Links are followed, each real folder once per
    class. What is hidden (a name that begins with a dot, such as `.ipynb_checkpoints` or macOS's
    `._1.jpg`) or a system's own (`__MACOSX`) does not count. Names of classes are in Unicode's
    composed form (NFC), so that macOS's spelling of "é" is everybody's.

    Warns of pictures in formats that qzoo does not read.

    Args:
        root: The folder.

    Raises:
        ArgumentError: There is no such folder, it or one in it cannot be read, or a link in it
            leads nowhere.
    """
    folders, others = _entries(root)
    unread: list[str] = []
    top = _pictures(others, unread)
    classes = sorted({plain_name(folder.name) for folder in folders})
    place = {name: label for label, name in enumerate(classes)}
    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
        found = _pictures(_below(folder, root), unread)
        files += found
        labels += [place[plain_name(folder.name)]] * len(found)
    if unread:
        _warn(root, unread, "in formats that qzoo does not read")
    if not folders:
        return PictureFolder(root, [], top, [], [])
    return PictureFolder(root, classes, files, labels, top)


def halves(root: Path) -> dict[str, Path]:
    """Returns the folders of a data set that is split already: "train" and "test" to a folder each.

    These are `train/` and `val/`, each with a folder per class. The dictionary is empty where there
    are none, and has one entry where one of them is missing. A single folder of one of these names,
    with pictures and beside others, is a class: trains beside cars.

    Args:
        root: The folder.

    Raises:
        ArgumentError: There is no such folder, or it cannot be read.
    """
    folders, _ = _entries(root)
    names = {folder.name for folder in folders}
    found = {half: root / name for half, name in HALVES.items() if name in names}
    if len(found) == 1 and len(folders) > 1:
        (half,) = found.values()
        return found if _entries(half)[0] else {}
    return found


def plain_name(name: str) -> str:
    """Returns the spelling of a class's name that names are compared in: Unicode's NFC."""
    return unicodedata.normalize("NFC", name)


def same_names(one: Sequence[str] | None, other: Sequence[str] | None) -> bool:
    """Says whether two lists of classes are the same names in the same order."""
    if one is None or other is None:
        return one is other
    return [plain_name(n) for n in one] == [plain_name(n) for n in other]


def places_of(classes: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Returns where each class stands among a model's names; None where one is not among them.

    Args:
        classes: Names of the data's classes.
        names: Names of the model's classes.

    Raises:
        ArgumentError: The model has several classes of one of these names.
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(plain_name(name), []).append(place)
    found = [places.get(plain_name(name), []) for name in classes]
    if not all(found):
        return None
    for name, here in zip(classes, found, strict=True):
        if len(here) > 1:
            raise ArgumentError(
                f"The model has {len(here)} classes of the name {name!r}, so that the name does "
                "not say which one is meant."
            )
    return [here[0] for here in found]


def unknown_names(classes: Sequence[str], names: Sequence[str]) -> str:
    """Returns, as a sentence, which classes a model does not know; empty where it knows all."""
    known = {plain_name(name) for name in names}
    unknown = [name for name in classes if plain_name(name) not in known]
    if not unknown:
        return ""
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    hint = did_you_mean(unknown[0], known) if len(unknown) == 1 else ""
    return f" The model does not know {', '.join(map(repr, unknown[:5]))}{more}.{hint}"


def _entries(folder: Path) -> tuple[list[Path], list[str]]:
    """Returns a folder's own folders and what else is in it, in alphabetical order."""
    folders: list[Path] = []
    others: list[str] = []  # a data set may have millions of these, and strings are small
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.name.startswith(".") or entry.name.casefold() in _NOT_OURS:
                    continue
                if _is_folder(entry):
                    folders.append(Path(entry.path))
                    continue
                others.append(entry.path)
                if entry.is_symlink() and not Path(entry.path).exists():
                    raise ArgumentError(
                        f"{entry.path} is a link that leads nowhere: mend or remove it, so that no "
                        "class or picture is missing."
                    )
    except OSError as error:
        raise ArgumentError(
            f"The folder {folder} cannot be read ({error.strerror}): check the path and the "
            "permissions."
        ) from None
    return folders, others


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _below(folder: Path, root: Path) -> Iterator[str]:
    """Yields everything below a folder but folders; a link back up is not followed."""
    real = root.resolve()
    seen = {real, *real.parents}
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        if (place := here.resolve()) in seen:
            continue
        seen.add(place)
        folders, others = _entries(here)
        yield from others
        waiting += reversed(folders)


def _pictures(paths: Iterable[str], unread: list[str]) -> list[str]:
    """Returns which of these are pictures; those that cannot be read go to `unread`."""
    found = []
    for path in paths:
        if path.lower().endswith(SUFFIXES):
            found.append(path)
        elif path.lower().endswith(_OTHER_PICTURES):
            unread.append(path)
    return found


def _warn(root: Path, paths: Sequence[str], where: str) -> None:
    shown = ", ".join(str(Path(path).relative_to(root)) for path in paths[:3])
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    warnings.warn(
        f"{root} holds pictures {where}, which are left out: {shown}{more}.",
        DataWarning,
        stacklevel=4,
    )
