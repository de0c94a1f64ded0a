"""Sharing int8 models as folders and on the Hugging Face Hub: three files, no code.

A shared model is a folder or repository with `model.safetensors` (the artifact, from which alone it
is loaded), `config.json` and `README.md`, the model card.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.files import reading, write_files
from .._core.optional import require_torch
from ..artifact.folders import int8_file
from ..artifact.format import Artifact
from ..artifact.given import Int8Model, as_artifact
from ..errors import ArgumentError, ArtifactError, DownloadError, UploadError
from ..hub import fetch
from ..hub.cache import Expected
from ..hub.settings import offline_variable
from .model_card import ARTIFACT_NAME, CARD_NAME, CONFIG_NAME, make_card, make_config

if TYPE_CHECKING:
    from torch import nn

#: Ten times the largest model of the zoo; a repository that offers more is not read into memory.
MAX_FILE_BYTES = 1 << 30


def save_pretrained(model: Int8Model, folder: str | os.PathLike[str], **info: Any) -> None:
    """Saves an int8 model as a folder that `from_pretrained` loads.

    A folder that does not exist appears whole or not at all; in one that exists, each of the three
    files is replaced as a whole once all of them have been written, and other files stay.

    Args:
        model: An int8 model in any form that `qzoo.as_artifact` takes.
        folder: Where to; its parent must exist or be creatable.
        **info: Fields to record instead of what the model carries, such as `metrics={...}`,
            `classes=["cat", "dog"]`, `transforms=...` as for `qzoo.save`, `recipe={...}`.

    Raises:
        ArtifactError: The model is not an int8 model of the zoo, or the folder cannot be written.
    """
    artifact = as_artifact(model, **info)
    target = Path(os.path.realpath(folder))  # a link to a folder stays one
    files = shared_files(artifact, Path(folder).absolute().name or "model")
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            write_files({target / name: content for name, content in files.items()})
            return
        if target.exists():
            raise ArtifactError(f"{folder} is a file: name a folder to save the model into.")
        temporary.mkdir()
        try:
            write_files({temporary / name: content for name, content in files.items()})
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"Cannot write {folder}: {error.strerror or error}.") from None


def from_pretrained(
    source: str | os.PathLike[str],
    revision: str | None = None,
    backend: str | None = None,
    progress: bool = True,
    sha256: str | None = None,
) -> nn.Module:
    """Loads an int8 model from a folder or from a repository on the Hugging Face Hub.

    Only the artifact is read, by the same safe reader as `load`: no code from the folder or
    repository is run, whatever else is in it.

    Args:
        source: A folder that `save_pretrained` or `qzoo finetune` wrote, or a repository
            ("org/name").
        revision: Branch, tag or commit of the repository; None takes "main". Only a commit always
            gives the same model.
        backend: Whose engine runs it; None takes the model's own.
        progress: Whether a download shows a progress bar.
        sha256: The artifact file's hash in hexadecimal, where it is known beforehand.

    Returns:
        The model in eval mode: float32 [N, 3, H, W] in, float32 logits out.

    Raises:
        ArgumentError: `source` is neither a folder nor the name of a repository.
        DownloadError: The repository or its artifact cannot be fetched.
        ArtifactError: The artifact is missing, damaged, or of an architecture unknown here.
        MissingDependencyError: PyTorch is not installed.
    """
    require_torch("from_pretrained, which gives a PyTorch module,")
    from ..native.model import to_native

    return to_native(
        find_artifact(source, revision, progress=progress, sha256=sha256), backend, consume=True
    )


def find_artifact(
    source: str | os.PathLike[str],
    revision: str | None = None,
    *,
    progress: bool = True,
    sha256: str | None = None,
) -> Artifact:
    """Reads the artifact of a shared model; the arguments and errors are `from_pretrained`'s."""
    Expected(sha256)  # says what is wrong with a hash that cannot be one
    path = Path(source)
    text = os.fspath(source)
    if text and path.is_dir():
        if revision is not None:
            raise ArgumentError(f"{text} is a folder here, and a folder has no revisions.")
        path = int8_file(path)
    else:
        repo = text.removeprefix("hf://").strip("/") if isinstance(text, str) else ""
        if path.exists() or text.startswith((".", "/", "~")) or repo.count("/") != 1:
            raise ArgumentError(
                f"{text!r} is neither an existing folder nor the name of a repository such as "
                "'org/name'" + ("; load a single file with qzoo.load." if path.is_file() else ".")
            )
        path = fetch(
            f"hf://{repo}/{ARTIFACT_NAME}@{revision or 'main'}", progress=progress, sha256=sha256
        )
    with reading(path) as file:
        if file.size > MAX_FILE_BYTES:
            raise ArtifactError(
                f"{path} has {file.size} bytes, which is more than the {MAX_FILE_BYTES} that any "
                "model of the zoo comes near."
            )
        # Of the open file, so that what is read is what was verified.
        if sha256 is not None and (found := file.sha256()) != sha256.lower():
            raise DownloadError(
                f"{path} is not the expected file: its sha256 is {found} where {sha256.lower()} "
                "was expected; check the path."
            )
        return Artifact.read(file)


def push_to_hub(
    model: Int8Model,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload an int8 model with qzoo",
    token: str | None = None,
    **info: Any,
) -> str:
    """Pushes an int8 model to a repository on the Hugging Face Hub, which is made if need be.

    All files arrive in one commit, so that the repository never holds half a model.

    Args:
        model: As for `save_pretrained`.
        repo_id: "org/name".
        private: Whether a new repository is private; None takes the organization's default.
        revision: Existing branch to commit to; None takes "main".
        message: The commit's message.
        token: Access token; None takes the one of `hf auth login` or `HF_TOKEN`.
        **info: As for `save_pretrained`.

    Returns:
        The address of the commit.

    Raises:
        ArtifactError: The model is not an int8 model of the zoo.
        ArgumentError: `repo_id` cannot be the name of a repository.
        UploadError: The Hub cannot be reached or refuses.
    """
    artifact = as_artifact(model, **info)
    from huggingface_hub import CommitOperationAdd, HfApi

    if (variable := offline_variable(hub=True)) is not None:
        raise UploadError(f"Cannot push to {repo_id}: {variable} is set; unset it first.")
    # The endpoint is read now, as for downloads; the client itself reads it when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    api = HfApi(endpoint=endpoint, token=token)
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        operations = [
            CommitOperationAdd(name, content)
            for name, content in shared_files(artifact, repo).items()
        ]
        return api.create_commit(
            repo, operations, commit_message=message, revision=revision
        ).commit_url
    except Exception as error:
        # The client raises errors of its own, of its HTTP library and of its upload library.
        raise _upload_error(error, repo_id) from error


#: The same under their names from when these took artifacts and the others models.
save_artifact, push_artifact = save_pretrained, push_to_hub


def shared_files(artifact: Artifact, name: str) -> dict[str, bytes]:
    """Returns the files of a shared model by name; the artifact last, so that it is moved last.

    Args:
        artifact: The model.
        name: What `from_pretrained` will be called with, for the model card.
    """
    content = artifact.to_bytes()
    return {
        CARD_NAME: make_card(artifact, content, name).encode("utf-8", "replace"),
        CONFIG_NAME: make_config(artifact, content).encode("utf-8", "replace"),
        ARTIFACT_NAME: content,
    }


def _upload_error(error: Exception, repo_id: str) -> UploadError | ArgumentError:
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):  # by the client, before it asks anybody
        return ArgumentError(
            f"{str(repo_id)[:100]!r} cannot be the name of a repository: write 'org/name', of "
            "letters, digits, '-', '_' and '.'."
        )

    first = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.LocalTokenNotFoundError) or status in (401, 403):
        return UploadError(
            f"The Hub does not let you write to {repo_id}; log in with `hf auth login`, or check "
            "that your token may write there."
        )
    return UploadError(
        f"Cannot push to {repo_id} ({first}); check the network and the name, then try again."
    )
