"""The model card (README.md) and config.json that lie beside a shared artifact."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from ..artifact.format import FORMAT, VERSION, Artifact
from ..artifact.layers import WEIGHTED_OPS
from ..safe_text import markdown, markdown_code, printable, printable_json

ARTIFACT_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
#: As the Hub names data sets.
_DATASET_IDS = {"ImageNet-1K": "imagenet-1k"}


def make_config(artifact: Artifact, content: bytes) -> str:
    """Returns the text of config.json: what people and the Hub want to know of the artifact.

    Nothing is read back from it; the artifact says everything that loading needs.

    Args:
        artifact: The model.
        content: The bytes of its file.
    """
    # Hashes of pictures say nothing to a reader, and stand in the artifact.
    info = dataclasses.replace(artifact.info, seen={}).to_dict()
    config = {
        "library_name": "qzoo",
        "format": FORMAT,
        "format_version": VERSION,
        "file": ARTIFACT_NAME,
        "file_size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **info,
        "num_classes": num_classes(artifact),
        "num_layers": len(artifact.layers),
        "versions": artifact.versions,
    }
    return printable_json(_json(config)) + "\n"


def make_card(artifact: Artifact, content: bytes, name: str) -> str:
    """Returns the text of README.md, with the front matter that the Hub reads.

    Whatever text the artifact holds is shown as text: no markup, HTML or link of its own.

    Args:
        artifact: The model.
        content: The bytes of its file.
        name: What `from_pretrained` is called with: the repository, or the folder's name.
    """
    info = artifact.info
    parts = [
        f"---\n{_front_matter(artifact, name)}\n---\n",
        f"# {markdown(info.name)}, int8 for {markdown(info.backend)}\n",
        f"An int8 {markdown_code(info.name)} that is stored as plain integers by qzoo: no "
        "pickle, no code, and no quantized dtype of PyTorch. It was made by `save_pretrained` or "
        "`push_to_hub`.\n",
        _facts(artifact, content),
        _metrics(artifact),
        f"## How to load it\n\n```python\n{_usage(artifact, name)}```\n",
        "Loading runs no code from this repository.\n",
        _recipe(artifact),
    ]
    return "\n".join(part for part in parts if part)


def num_classes(artifact: Artifact) -> int:
    """Returns how many logits the model has."""
    heads = [name for name, layer in artifact.layers.items() if layer.op == "linear"]
    return len(artifact.arrays[f"{heads[-1]}.weight"]) if heads else 0


def _front_matter(artifact: Artifact, name: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    info = artifact.info
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=printable(_DATASET_IDS.get(dataset, dataset)),
            dataset_name=printable(dataset),
            metric_type="accuracy",
            metric_name=printable(metric),
            metric_value=value,
        )
        for dataset, figures in info.metrics.items()
        for metric, value in figures.items()
    ]
    known = {
        "library_name": "qzoo",
        "pipeline_tag": "image-classification",
        "tags": ["qzoo", "pytorch", "int8", "quantized", info.name, str(info.backend)],
        "datasets": [_DATASET_IDS[d] for d in info.metrics if d in _DATASET_IDS] or None,
        "model_name": printable(name) if results else None,
        "eval_results": results or None,
    }
    return ModelCardData(**known).to_yaml()  # type: ignore[arg-type]


def _facts(artifact: Artifact, content: bytes) -> str:
    info = artifact.info
    floats = 4 * sum(
        array.size for key, array in artifact.arrays.items() if key.endswith((".weight", ".bias"))
    )
    per_channel = any(
        array.ndim for key, array in artifact.arrays.items() if key.endswith("weight_scale")
    )
    weights = f"int8, one scale per {'output channel' if per_channel else 'tensor'}"
    if kept := artifact.float_layers:
        weighted = sum(layer.op in WEIGHTED_OPS for layer in artifact.layers.values())
        weights += f"; float32 in {len(kept)} of {weighted} layers"
    classes = num_classes(artifact)
    named = {None: "not named", "imagenet-1k": "those of ImageNet-1K"}
    kind = info.classes if info.classes is None or isinstance(info.classes, str) else "list"
    shown = named.get(kind, "named in `config.json`")
    rows = {
        "architecture": ", ".join([_code_cell(info.name), *_keywords(info.builder_kwargs)]),
        "backend": f"{_code_cell(info.backend)} (runs on any other engine, too)",
        "weights": weights,
        "file": f"{len(content) / 1e6:.2f} MB (the same numbers in float32: {floats / 1e6:.2f} MB)",
        "classes": f"{classes}, {shown}",
        "input": _input(info.transforms),
        "made with": ", ".join(markdown(f"{k} {v}") for k, v in artifact.versions.items())
        or "not recorded",
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def _keywords(kwargs: dict[str, Any]) -> list[str]:
    return [_code_cell(f"{key}={value!r}") for key, value in kwargs.items()]


def _input(transforms: dict[str, Any] | None) -> str:
    if transforms is None:
        return "transforms not recorded; float32 [N, 3, H, W], normalized as in training"
    return (
        f"RGB, resized to {transforms['resize_size']} and cropped to {transforms['crop_size']} "
        f"pixels, mean {transforms['mean']}, std {transforms['std']}"
    )


def _metrics(artifact: Artifact) -> str:
    if not artifact.info.metrics:
        return "Its accuracy was not recorded.\n"
    lines = [
        f"| {markdown(dataset)} | {markdown(metric)} | {value} |"
        for dataset, figures in artifact.info.metrics.items()
        for metric, value in figures.items()
    ]
    return "\n".join(["| data set | metric | % |", "|---|---|---:|", *lines]) + "\n"


def _usage(artifact: Artifact, name: str) -> str:
    quoted = printable_json(json.dumps(name, ensure_ascii=False))
    lines = ["import qzoo", "", f"model = qzoo.from_pretrained({quoted})"]
    if artifact.info.transforms is None:
        size = 299 if artifact.info.architecture == "inception_v3" else 224
        return "\n".join(
            [
                "import torch",
                *lines,
                f"logits = model(torch.randn(1, 3, {size}, {size}))  # a normalized picture",
                "",
            ]
        )
    return "\n".join(
        [
            "from PIL import Image",
            "from qzoo.classify import classify",
            *lines,
            'picture = Image.new("RGB", (640, 480))  # Image.open("photo.jpg")',
            "for guess in classify(model, [picture])[0]:",
            '    print(f"{guess.name}: {guess.probability:.1%}")',
            "",
        ]
    )


def _recipe(artifact: Artifact) -> str:
    if not artifact.info.recipe:
        return "How its numbers were made was not recorded.\n"
    # No line of JSON is a fence: strings are quoted, and hold no line breaks.
    return f"## How it was made\n\n```json\n{printable_json(_json(artifact.info.recipe))}\n```\n"


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def _code_cell(text: object) -> str:
    """Returns code in a table, where a bar would end the cell even within code."""
    return markdown_code(text).replace("|", "\\|")
