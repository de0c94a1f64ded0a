"""Bundles the digits models with the package: sample pictures and the weights' metadata.

Run after references/ptq.py has written qzoo/embedded/<model>_digits_<backend>.safetensors:

python references/embed_digits.py
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from qzoo import training
from qzoo._core.files import write_atomically
from qzoo.artifact.format import Artifact
from qzoo.datasets.digits import Digits
from qzoo.errors import ArgumentError, ArtifactError
from qzoo.registry import get_entry

ROOT = Path(__file__).parent.parent


@click.command(cls=training.Command)
@click.option("--embedded", default=str(ROOT / "qzoo" / "embedded"), help="The package's folder.")
@click.option("--metadata", default=str(ROOT / "weights_meta"), help="The metadata's folder.")
def main(embedded: str, metadata: str) -> None:
    """Writes one held-out picture per digit, and an entry of metadata per bundled artifact.

    Both come from the data and the artifacts alone, so running this again changes nothing.
    """
    folder = Path(embedded)
    write_pictures(folder / "digits")
    artifacts = sorted(folder.glob("*_digits_*.safetensors"))
    if not artifacts:
        raise ArgumentError(f"{folder} holds no artifacts; references/ptq.py writes them.")
    for path in artifacts:
        click.echo(f"{path.name}: {write_entry(path, Path(metadata))}")


def write_pictures(folder: Path) -> None:
    """Writes the first held-out scan of every digit as an 8x8 grey PNG.

    A file is called digit-LABEL-INDEX.png, where INDEX is the scan's place in scikit-learn's data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held_out = Digits("test")
    for label in range(10):
        place = held_out.targets.index(label)
        content = io.BytesIO()
        Image.fromarray(held_out.images[place]).save(content, "PNG", optimize=True)
        name = f"digit-{label}-{held_out.indices[place]:04d}.png"
        write_atomically(folder / name, content.getvalue())


def write_entry(path: Path, metadata: Path) -> str:
    """Describes an artifact in its architecture's metadata file; returns the entry's name.

    Raises:
        ArtifactError: The artifact is damaged, or references/ptq.py did not make it.
    """
    artifact = Artifact.read(path)
    info, recipe = artifact.info, artifact.info.recipe
    if not {"train", "quantize", "float_metrics"} <= set(recipe) or info.transforms is None:
        raise ArtifactError(f"{path} was not made by references/train.py and references/ptq.py.")
    params, gmacs = _cost(info.name, info.builder_kwargs, info.transforms["crop_size"])
    entry = {
        "url": f"embedded:{path.name}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "file_size_mib": training.mib(path),
        "num_params": params,
        "gmacs": gmacs,
        "backend": info.backend,
        "transforms": info.transforms,
        "categories": info.classes,
        "builder_kwargs": info.builder_kwargs,
        "metrics": info.metrics,
        "float_metrics": recipe["float_metrics"],
        "float_file_size_mib": recipe["float_file_size_mib"],
        "source": "measured by qzoo",
        "unquantized": None,
        "method": recipe["method"],
        "recipe": f"{recipe['train']} && {recipe['quantize']}",
    }
    name = f"DIGITS_{str(info.backend).upper()}_V1"
    file = metadata / f"{info.architecture}.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    described["weights"][name] = entry
    write_atomically(file, (json.dumps(described, indent=2, ensure_ascii=False) + "\n").encode())
    return name


def _cost(architecture: str, kwargs: dict[str, Any], size: int) -> tuple[int, float]:
    """Returns the number of parameters, and 10^9 multiply-adds for one picture."""
    model = get_entry(architecture).skeleton(kwargs)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    # The counter takes a multiplication and an addition for two operations.
    gmacs = counter.get_total_flops() / 2e9
    return sum(p.numel() for p in model.parameters()), round(gmacs, 4)


if __name__ == "__main__":
    main()
