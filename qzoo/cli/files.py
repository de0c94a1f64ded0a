"""`qzoo convert`, `download`, `verify`, `push` and `cache`: the files behind the models."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._core.option_types import Whole
from ..errors import ArgumentError, ArtifactError, QzooError
from . import _options as opt
from ._command import argument, command, option, place
from ._endings import ARTIFACT, TORCHVISION, check_ending, format_of
from ._output import print_error, print_json, print_line, print_table

if TYPE_CHECKING:
    from torch import nn

    from ..artifact.format import Artifact
    from ..hub import CachedFile
    from ..published import PublishedWeights

_SUFFIXES = {".safetensors", ".pth", ".pt"}


@dataclass(frozen=True)
class ConvertOptions:
    """What `qzoo convert` takes."""

    source: str = place("IN")
    target: str = place("OUT", "--out", "-o", help="File to write, if it does not stand second.")
    model: str | None = option(
        "--model",
        "--arch",
        "-m",
        help="Which model the weights are of.  [default: guessed from their shapes]",
        shell_complete=opt.complete_models,
    )
    num_classes: int | None = option(
        "--num-classes",
        type=Whole(1),
        help="Outputs of the classifier.  [default: what the file holds]",
    )
    backend: str | None = option(
        "--backend",
        help="Backend that the numbers were chosen for.  [default: what the file says or, where it "
        "does not, guessed from its scales, one per channel or per tensor]",
        shell_complete=opt.complete_from(opt.BACKENDS),
    )
    kind: str | None = option(
        "--to",
        type=opt.choice([ARTIFACT, TORCHVISION]),
        help="What to write: an artifact or torchvision's state dict.  [default: by OUT's ending]",
    )
    classes: Path | None = option(
        "--classes",
        type=click.Path(path_type=Path),
        help="Text file with one class name per line, in the order of the logits.",
    )
    part: str | None = opt.part()
    like: str | None = option(
        "--like",
        help="Weights whose transforms the model shares, such as "
        "ResNet50_QuantizedWeights.DEFAULT or, for a float model, ResNet50_Weights.DEFAULT.  "
        "[default: none recorded]",
    )
    transform_input: bool | None = opt.transform_input()
    as_json: bool = opt.as_json()

    def told(self) -> dict[str, Any]:
        """Returns what is said of the file, as keywords of `read_any`."""
        names = ("model", "num_classes", "backend", "part", "like", "transform_input")
        classes = None if self.classes is None else _read_lines(self.classes)
        return {**{name: getattr(self, name) for name in names}, "classes": classes}


@command(ConvertOptions)
def convert(options: ConvertOptions) -> None:
    """Turn checkpoints into artifacts, and back.

    IN is a published .pth file, the state dict of your own model, int8 or float, the checkpoint of
    a model prepared for QAT, an artifact, or a folder of qzoo finetune or save_pretrained. No code
    from it is run. OUT ends in .safetensors for an artifact (of a float model, for float weights
    that say what they are), or in .pth for the state dict that torchvision's models load.

    \b
    Examples:
      qzoo convert resnet50_fbgemm-23753f79.pth resnet50.safetensors
      qzoo convert mine.pth mine.safetensors --classes names.txt --backend x86
      qzoo convert qat_checkpoint.pth mine.safetensors --model mobilenet_v3_large --part model_ema
      qzoo convert mine.safetensors mine.pth
    """
    from .._core.files import write_atomically
    from ..artifact.format import Artifact
    from ..sharing.convert import describe, read_any, state_dict_bytes
    from ._models import existing

    out, source = Path(options.target), Path(options.source)
    kind = options.kind or _kind_of(out, source)
    check_ending(out, kind)
    told = options.told()
    model = read_any(existing(source), **told)
    if kind == TORCHVISION:
        content = state_dict_bytes(model)
    elif isinstance(model, Artifact):
        content = model.to_bytes()
    else:
        from ..importers.checkpoint import float_bytes

        content = float_bytes(model)
    write_atomically(out, content)
    if options.as_json:
        print_json({"file": str(out), "format": kind, "bytes": len(content), **_summary(model)})
        return
    print_line(f"{out}: {describe(model)}, {len(content) / 2**20:.1f} MiB")


def _kind_of(out: Path, source: Path) -> str:
    """Returns which format the ending of a name stands for; without one, the source decides."""
    from ..sharing.convert import is_artifact

    kind = format_of(out)
    if kind in (ARTIFACT, TORCHVISION):
        return kind
    if not out.suffix:
        return TORCHVISION if is_artifact(source) else ARTIFACT
    hint = "" if kind is None else f"; qzoo export writes {kind}"
    raise ArgumentError(
        f"The ending of {out.name!r} is of no format that convert writes: end it in .safetensors "
        f"(artifact) or .pth (torchvision's state dict){hint}."
    )


def _summary(model: Artifact | nn.Module) -> dict[str, Any]:
    from ..artifact.format import Artifact

    if not isinstance(model, Artifact):
        from ..native.model import model_info

        return {"model": model_info(model).architecture, "backend": None}
    artifact, info = model, model.info
    return {
        "model": info.name,
        "backend": info.backend,
        "layers": len(artifact.layers),
        "float_layers": artifact.float_layers,
    }


def _read_lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArgumentError(
            f"Cannot read the class names {path}: {error.strerror or error}."
        ) from None
    if b"\0" in content or content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ArgumentError(f"The class names {path} are in UTF-16: save the file as UTF-8.")
    try:
        # Windows begins UTF-8 files with a mark (BOM), which is no part of the first name.
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ArgumentError(
            f"The class names {path} are not in UTF-8: save the file as UTF-8."
        ) from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ArgumentError(f"{path} holds no class names: write one per line.")
    return names


@dataclass(frozen=True)
class DownloadOptions:
    """What `qzoo download` takes."""

    models: tuple[str, ...] = opt.models()
    weights: str = option(
        "--weights",
        "-w",
        default="DEFAULT",
        help="Which int8 weights (see: qzoo info MODEL), or all.",
        shell_complete=opt.complete_weights,
    )
    as_json: bool = opt.as_json()


@command(DownloadOptions)
def download(options: DownloadOptions) -> None:
    """Fetch int8 weights into the cache.

    Each file is verified by its published hash. Prints a path per file. Weights that come with the
    package are only verified.

    \b
    Examples:
      qzoo download resnet50 mobilenet_v2
      qzoo download resnet50 --weights all
    """
    from ..published import published_weights, weights_of

    members = []
    for model in options.models:
        every = weights_of(model) if options.weights.lower() == "all" else []
        # Without any, the name says that there are none.
        members += every or [published_weights(model, options.weights)]
    found = []
    for name, member in {str(member): member for member in members}.items():
        path = member.file(progress=True)
        found.append({"weights": name, "file": str(path), "bytes": path.stat().st_size})
        if not options.as_json:
            print_line(path)
    if options.as_json:
        print_json(found)


@dataclass(frozen=True)
class VerifyOptions:
    """What `qzoo verify` takes."""

    paths: tuple[Path, ...] = argument(
        nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path)
    )
    as_json: bool = opt.as_json()


@command(VerifyOptions)
def verify(options: VerifyOptions) -> None:
    """Check that files are whole and fit their models.

    Checks hashes and structure, and that each file fits its architecture. PATH is a file, or a
    folder that is searched for .safetensors, .pth and .pt files. Without PATH, the weights of the
    package and everything in the cache are checked. The exit code is 2 if a file is bad.

    \b
    Examples:
      qzoo verify
      qzoo verify my_model.safetensors ~/checkpoints
    """
    rows: list[dict[str, Any]] = []
    for name, check in _checks(options.paths):
        try:
            row = {"file": str(name), "ok": True, "what": check()}
        except QzooError as error:
            row = {"file": str(name), "ok": False, "what": str(error)}
        except Exception as error:  # of one file: the others are still to be checked
            what = (
                f"cannot be checked ({type(error).__name__}: {str(error)[:200]}); please report it"
            )
            row = {"file": str(name), "ok": False, "what": what}
        rows.append(row)
        if not options.as_json:
            prefix = "" if row["file"] in row["what"] else f"{row['file']}: "
            print_line(f"{'ok  ' if row['ok'] else 'BAD '} {prefix}{row['what']}")
    if options.as_json:
        print_json(rows)
    bad = sum(not row["ok"] for row in rows)
    if bad:
        print_error(f"{bad} of the files are bad.")
        raise click.exceptions.Exit(2)


def _checks(paths: tuple[Path, ...]) -> Iterator[tuple[object, Any]]:
    from .. import hub
    from ..published import all_weights
    from ..sharing.convert import check_model, describe

    for path in paths:
        if not path.is_dir():
            yield path, lambda path=path: check_model(path)
            continue
        # Broken links and pipes too: they are to be named, not passed over.
        files = sorted(f for f in path.rglob("*") if f.suffix in _SUFFIXES and not f.is_dir())
        if not files and len(paths) == 1:
            _nothing_in(path)
        if not files:  # among others, which are still to be checked
            yield path, lambda path=path: _nothing_in(path)
        for file in files:
            yield file, lambda file=file: check_model(file)
    if paths:
        return
    members = list(all_weights())
    for member in members:
        if member.embedded:
            yield str(member), lambda member=member: describe(member.artifact())
    urls = {member.url: member for member in members}
    for cached in hub.list_cache():
        if cached.complete and cached.path.suffix in _SUFFIXES:
            yield cached.path, lambda c=cached: _check_cached(c, urls.get(c.url))
        elif not cached.complete:
            yield cached.path, lambda: "an unfinished download, to be resumed"


def _nothing_in(path: Path) -> str:
    raise ArtifactError(f"{path} holds no .safetensors, .pth or .pt file.")


def _check_cached(cached: CachedFile, member: PublishedWeights | None) -> str:
    from ..hub.cache import Expected
    from ..sharing.convert import check_model

    expected = Expected() if member is None else Expected(member.sha256, member.sha256_prefix)
    if problem := expected.mismatch(cached.path):
        raise ArtifactError(f"{cached.path} is damaged: {problem}.")
    return check_model(cached.path)


@dataclass(frozen=True)
class PushOptions:
    """What `qzoo push` takes."""

    model: str = opt.model(help="The int8 model, if it does not stand first.")
    repo: str = place(
        "REPO", "--repo", help="The repository, as org/name, if it does not stand second."
    )
    private: bool | None = option(
        "--private/--public",
        default=None,
        help="Who may see a new repository.  [default: what the organization says]",
    )
    revision: str | None = option(
        "--revision", help="Existing branch to commit to.  [default: main]"
    )
    message: str | None = option("--message", help="The commit's message.")
    as_json: bool = opt.as_json()


@command(PushOptions)
def push(options: PushOptions) -> None:
    """Push an int8 model to a repository on the Hugging Face Hub.

    MODEL is the name of a model, or the file or folder of an int8 model. The model card and
    config.json are made anew from it. Log in first (hf auth login).

    \b
    Example:
      qzoo push my_model.safetensors my-org/resnet50-int8 --private
    """
    from ..sharing import push_to_hub
    from ._models import find_int8

    said = {} if options.message is None else {"message": options.message}
    url = push_to_hub(
        find_int8(options.model),
        options.repo,
        private=options.private,
        revision=options.revision,
        **said,
    )
    if options.as_json:
        print_json({"repo": options.repo, "commit": url})
    else:
        print_line(url)


@dataclass(frozen=True)
class CacheOptions:
    """What `qzoo cache` takes."""

    clear: bool = option("--clear", is_flag=True, help="Remove everything that was downloaded.")
    as_json: bool = opt.as_json()


@command(CacheOptions)
def cache(options: CacheOptions) -> None:
    """List the downloaded files, or remove them.

    \b
    Examples:
      qzoo cache
      qzoo cache --clear
    """
    from .. import hub

    files = hub.clear_cache() if options.clear else hub.list_cache()
    if options.as_json:
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
    done = "Removed" if options.clear else "Cache"
    print_line(f"{done}: {len(files)} files, {total:.1f} MiB, {hub.cache_dir()}")
