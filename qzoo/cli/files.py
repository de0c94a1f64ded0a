"""`qzoo convert`, `download`, `verify`, `push` and `cache`: the files behind the models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from .. import hub
from ..convert import (
    all_weights,
    check_model,
    describe,
    is_artifact,
    read_model,
    state_dict_bytes,
)
from ..errors import ArgumentError, ArtifactError, QzooError
from ..files import write_atomically
from ..hub.cache import Expected
from ..registry import find_member, get_entry
from ..sharing import push_artifact
from ._output import print_error, print_json, print_line, print_table

_SUFFIXES = {".safetensors", ".pth", ".pt"}


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--model", "--arch", "-m", help="Architecture.  [default: guessed from the weights' shapes]"
)
@click.option("--num-classes", type=click.IntRange(1), help="[default: what the file holds]")
@click.option(
    "--backend", help="Backend of the numbers.  [default: guessed from the kind of their scales]"
)
@click.option(
    "--to",
    "kind",
    type=click.Choice(["artifact", "torchvision"]),
    help="What to write.  [default: an artifact; of an artifact, torchvision's state dict]",
)
@click.option(
    "--classes",
    type=click.Path(path_type=Path),
    help="Text file with one class name per line, in the order of the logits.",
)
@click.option("--part", help="Key of the state dict in a training checkpoint, such as model_ema.")
@click.option(
    "--like", help="Int8 weights whose transforms the model shares.  [default: none recorded]"
)
@click.option(
    "--transform-input/--no-transform-input",
    default=None,
    help="Whether a GoogLeNet or Inception changes its input's normalization.",
)
def convert(
    source: Path, target: Path, kind: str | None, classes: Path | None, **options: Any
) -> None:
    """Turn checkpoints into artifacts, and artifacts into torchvision's state dicts.

    IN is a published .pth file, the state dict of your own int8 model, the checkpoint of a model
    prepared for QAT, an artifact, or a folder of save_pretrained. No code from it is run.

    \b
    Examples:
      qzoo convert resnet50_fbgemm-23753f79.pth resnet50.safetensors
      qzoo convert mine.pth mine.safetensors --classes names.txt --backend x86
      qzoo convert qat_checkpoint.pth mine.safetensors --model mobilenet_v3_large --part model_ema
      qzoo convert mine.safetensors mine.pth --to torchvision
    """
    if kind is None:
        kind = "torchvision" if is_artifact(source) else "artifact"
    names = None if classes is None else _read_lines(classes)
    artifact = read_model(source, classes=names, **options)
    content = artifact.to_bytes() if kind == "artifact" else state_dict_bytes(artifact)
    write_atomically(target, content)
    print_line(f"{target}: {describe(artifact)}, {len(content) / 2**20:.1f} MiB")


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"Cannot read the class names {path}: {error}.") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ArgumentError(f"{path} holds no class names: write one per line.")
    return names


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--weights", "-w", default="DEFAULT", show_default=True, help="Name of the weights, or 'all'."
)
def download(models: tuple[str, ...], weights: str) -> None:
    """Fetch int8 weights into the cache, verified by their published hash.

    Prints a path per file. Weights that come with the package are only verified.

    \b
    Examples:
      qzoo download resnet50 mobilenet_v2
      qzoo download resnet50 --weights all
    """
    members: list[Any] = []
    for model in models:
        enum: Any = get_entry(model).weights
        if weights != "all":
            members.append(find_member(enum, weights))
        elif not list(enum):
            find_member(enum, "DEFAULT")  # says that there are none
        else:
            members.extend(enum)
    for member in dict.fromkeys(members):
        print_line(member.file(progress=True))


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path))
@click.pass_context
def verify(ctx: click.Context, paths: tuple[Path, ...]) -> None:
    """Check artifacts and checkpoints: hashes, structure, and that they fit their architecture.

    PATH is a file, or a folder that is searched for .safetensors, .pth and .pt files. Without any,
    the weights of the package and everything in the cache are checked. Exit code 2 if one is bad.

    \b
    Examples:
      qzoo verify
      qzoo verify my_model.safetensors ~/checkpoints
    """
    bad = 0
    for name, check in _checks(paths):
        try:
            print_line(f"ok   {name}: {check()}")
        except QzooError as error:
            bad += 1
            print_line(f"BAD  {str(error) if str(name) in str(error) else f'{name}: {error}'}")
    if bad:
        print_error(f"{bad} of the files are bad.")
        ctx.exit(2)


def _checks(paths: tuple[Path, ...]) -> Iterator[tuple[object, Any]]:
    for path in paths:
        if not path.is_dir():
            yield path, lambda path=path: check_model(path)
            continue
        files = sorted(f for f in path.rglob("*") if f.suffix in _SUFFIXES and f.is_file())
        if not files:
            raise ArtifactError(f"{path} holds no .safetensors, .pth or .pt file.")
        for file in files:
            yield file, lambda file=file: check_model(file)
    if paths:
        return
    members = list(all_weights())
    for member in members:
        if member.embedded:
            yield repr(member), lambda member=member: describe(member.artifact())
    urls = {member.url: member for member in members}
    for cached in hub.list_cache():
        if cached.complete and cached.path.suffix in _SUFFIXES:
            yield cached.path, lambda c=cached: _check_cached(c, urls.get(c.url))
        elif not cached.complete:
            yield cached.path, lambda: "an unfinished download, to be resumed"


def _check_cached(cached: hub.CachedFile, member: Any) -> str:
    meta = {} if member is None else member.meta
    expected = Expected(meta.get("sha256"), meta.get("sha256_prefix"))
    if problem := expected.mismatch(cached.path):
        raise ArtifactError(f"{cached.path} is damaged: {problem}.")
    return check_model(cached.path)


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--private/--public", default=None, help="Of a new repository.")
@click.option("--revision", help="Existing branch to commit to.  [default: main]")
@click.option("--message", help="Of the commit.")
def push(path: Path, repo: str, message: str | None, **options: Any) -> None:
    """Push an artifact, or a folder of save_pretrained, to a repository on the Hugging Face Hub.

    The model card and config.json are made anew from the artifact. Log in first (hf auth login).

    \b
    Example:
      qzoo push my_model.safetensors my-org/resnet50-int8 --private
    """
    artifact = read_model(path)
    if message is not None:
        options["message"] = message
    print_line(push_artifact(artifact, repo, **options))


@click.command()
@click.option("--clear", is_flag=True, help="Remove everything that was downloaded.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def cache(clear: bool, as_json: bool) -> None:
    """List the downloaded files, or remove them.

    \b
    Examples:
      qzoo cache
      qzoo cache --clear
    """
    files = hub.clear_cache() if clear else hub.list_cache()
    if as_json:
        rows = [
            {"path": str(f.path), "size": f.size, "url": f.url, "complete": f.complete}
            for f in files
        ]
        print_json(rows)
        return
    total = sum(file.size for file in files) / 2**20
    cells = [
        (f"{f.size / 2**20:.1f}", f.path, (f.url or "-") if f.complete else "unfinished")
        for f in files
    ]
    if cells:
        print_table(None, ("MiB", "file", "from"), cells, "r")
    done = "Removed" if clear else "Cache"
    print_line(f"{done}: {len(files)} files, {total:.1f} MiB, {hub.cache_dir()}")
