"""`qzoo list` and `qzoo info`: what is in the zoo."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..metadata import enum_name, read_metadata
from ..registry import list_models, model_name
from . import _options as opt
from ._command import argument, command, option
from ._names import is_name
from ._output import print_json, print_line, print_table


@dataclass(frozen=True)
class ListOptions:
    """What `qzoo list` takes."""

    patterns: tuple[str, ...] = argument(
        nargs=-1, metavar="[PATTERN]...", shell_complete=opt.complete_models
    )
    quantized: bool | None = option(
        "--quantized/--float-only",
        default=None,
        help="List only models with int8 weights, or only those without.  [default: all]",
    )
    as_json: bool = opt.as_json()


@command(ListOptions, "list")
def list_command(options: ListOptions) -> None:
    """List the models and their int8 weights.

    PATTERN is a shell wildcard, in upper or lower case; without one, all models are listed.

    \b
    Example:
      qzoo list "resnet*" --quantized
    """
    wanted = [pattern.lower() for pattern in options.patterns]
    names = list_models(include=wanted or None, quantized=options.quantized)
    rows = [_row(name, weights) for name in names for weights in _weights(name) or [None]]
    if options.as_json:
        print_json(rows)
        return
    if not rows:
        print_line("No model matches.")
        return
    columns = ("model", "params (M)", "GMACs", "int8 weights", "backend", "top-1 (%)", "MiB")
    print_table(None, columns, [_cells(row) for row in rows], "lrrllrr")


@dataclass(frozen=True)
class InfoOptions:
    """What `qzoo info` takes."""

    model: str = opt.model()
    as_json: bool = opt.as_json()


@command(InfoOptions)
def info(options: InfoOptions) -> None:
    """Show everything known about MODEL and its weights.

    MODEL is the name of a model, or a file or folder: an artifact, a float model of qzoo, a .pth
    file, or what qzoo finetune or save_pretrained wrote.

    \b
    Examples:
      qzoo info resnet50
      qzoo info photos-mobilenet_v2/int8.safetensors
    """
    if not is_name(options.model):
        facts = _file_facts(options.model)
        if options.as_json:
            print_json(facts)
        else:
            _print_file(facts)
        return
    name = model_name(options.model)
    meta = read_metadata(name)
    if options.as_json:
        print_json(meta)
        return
    print_line(
        f"{name}: {meta['num_params']:,} parameters, {meta['gmacs']} GMACs, smallest input "
        f"{meta['min_size'][0]}x{meta['min_size'][1]}"
    )
    print_line(f"float weights: torchvision.models.{meta['float_weights']}")
    if not meta["weights"]:
        print_line(
            "int8 weights: none published yet; make some with "
            f"qzoo quantize {name} --data PICTURES -o {name}.safetensors"
        )
    enum = enum_name(name)
    for member, weights in meta["weights"].items():
        default = " (DEFAULT)" if member == meta["default"] else ""
        print_line()
        print_line(f"{enum}.{member}{default}")
        for key, value in _facts(weights):
            print_line(f"  {key:<12} {value}")


def _file_facts(model: str) -> dict[str, Any]:
    """Reads a file, or the model in a folder, and returns what it says of itself, as JSON."""
    from ._models import file_of, find_int8, is_float_file, load_float_model

    if is_float_file(model):
        from ..native.model import model_info

        loaded = load_float_model(model, None)
        parts: dict[str, Any] = {"parameters": sum(p.numel() for p in loaded.parameters())}
        known, versions = model_info(loaded), {}
    else:
        artifact = find_int8(model)
        parts = {"layers": len(artifact.layers), "float_layers": artifact.float_layers}
        known, versions = artifact.info, artifact.versions
    file = file_of(model)
    return {
        "file": model if file is None else str(file),
        "kind": "float" if is_float_file(model) else "int8",
        "bytes": None if file is None else file.stat().st_size,
        **asdict(known),
        **parts,
        "versions": versions,
    }


def _print_file(facts: dict[str, Any]) -> None:
    from ..artifact.format import NO_BUILDER

    print_line(f"{facts['file']}: {facts['architecture'] or NO_BUILDER}, {facts['kind']}")
    transforms, classes = facts["transforms"], facts["classes"]
    if isinstance(classes, list):
        more = f", ... ({len(classes)} classes)" if len(classes) > 10 else ""
        classes = ", ".join(classes[:10]) + more
    lines = [
        ("backend", facts["backend"]),
        ("size", facts["bytes"] and f"{facts['bytes'] / 2**20:.2f} MiB"),
        ("keywords", ", ".join(f"{k}={v}" for k, v in facts["builder_kwargs"].items())),
        ("classes", classes or "not recorded"),
        ("input", _input(transforms) if transforms else "transforms not recorded"),
        ("layers", facts.get("layers")),
        ("in float", ", ".join(facts.get("float_layers", []))),
        ("parameters", facts.get("parameters") and f"{facts['parameters']:,}"),
        *(("accuracy", _accuracy(v, k)) for k, v in facts["metrics"].items()),
        *((k.replace("_", " "), v) for k, v in facts["recipe"].items()),
        ("made with", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())),
    ]
    shown = [(key, value) for key, value in lines if value not in (None, "")]
    width = max(len(key) for key, _ in shown)
    for key, value in shown:
        print_line(f"  {key:<{width}}  {value}")


def _weights(name: str) -> list[dict[str, Any] | None]:
    return [{"name": key, **value} for key, value in read_metadata(name)["weights"].items()]


def _row(model: str, weights: dict[str, Any] | None) -> dict[str, Any]:
    meta = read_metadata(model)
    row = {"model": model, "num_params": meta["num_params"], "gmacs": meta["gmacs"]}
    if weights is None:
        return {**row, "weights": None}
    dataset, figures = next(iter(weights["metrics"].items()))
    return {
        **row,
        "num_params": weights.get("num_params", meta["num_params"]),
        "gmacs": weights.get("gmacs", meta["gmacs"]),
        "weights": weights["name"],
        "backend": weights["backend"],
        "dataset": dataset,
        "top1": figures["acc@1"],
        "file_size_mib": weights["file_size_mib"],
    }


def _cells(row: dict[str, Any]) -> list[object]:
    head = [row["model"], f"{row['num_params'] / 1e6:.1f}", f"{row['gmacs']:.3f}"]
    if row["weights"] is None:
        return [*head, "-", "", "", ""]
    size = f"{row['file_size_mib']:.1f}"
    return [*head, row["weights"], row["backend"], f"{row['top1']:.2f}", size]


def _facts(weights: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        ("backend", weights["backend"]),
        *(("accuracy", _accuracy(found, name)) for name, found in weights["metrics"].items()),
        ("source", weights["source"]),
        ("method", weights["method"]),
        ("file", f"{weights['file_size_mib']} MiB, {weights['url']}"),
        ("input", _input(weights["transforms"])),
        ("float", weights["unquantized"] or "not distributed"),
        ("recipe", weights["recipe"]),
    ]


def _accuracy(figures: dict[str, Any], data: str) -> str:
    return f"{', '.join(f'{k} {v} %' for k, v in figures.items())} on {data}"


def _input(transforms: dict[str, Any]) -> str:
    return f"{transforms['crop_size']}x{transforms['crop_size']} pixels"
