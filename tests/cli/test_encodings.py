"""Text in other encodings: names of classes that come in, and terminals that lack characters."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import qzoo
from qzoo.artifact.format import Artifact
from qzoo.cli import main
from qzoo.cli.files import _read_lines
from qzoo.datasets.digits import Digits
from qzoo.errors import ArgumentError

NAMES = ["Käse", "猫", "dog"]
#: Of ten classes, in NFC; only the last one is plain.
CLASSES = [f"{word} {i}" for i, word in enumerate(["Käse", "猫", "ołówek", "café"] * 2)]
CLASSES += ["été", "plain"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_class_names_in_utf8_with_and_without_a_mark(
    encoding: str, end: str, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_bytes(end.join(NAMES).encode(encoding))
    assert _read_lines(tmp_path / "names.txt") == NAMES


@pytest.mark.parametrize(
    ("encoding", "said"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("latin-1", "UTF-8")],
)
def test_class_names_in_other_encodings_are_refused(
    encoding: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_bytes("Käse\ndog\n".encode(encoding))
    with pytest.raises(ArgumentError, match=f"in {said}: save the file as UTF-8"):
        _read_lines(tmp_path / "names.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of digits whose classes have foreign names, and pictures in folders of these."""
    root = tmp_path_factory.mktemp("names")
    model = qzoo.shufflenet_v2_x0_5(weights="DIGITS_X86_V1", quantize=True)
    qzoo.save(model, root / "model.safetensors", classes=CLASSES)
    data = Digits("test")
    for index in range(0, 60, 3):
        picture, label = data[index]
        # As macOS spells names; the model has them in the other spelling.
        place = root / "data" / unicodedata.normalize("NFD", CLASSES[label])
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{index}.png")
    return root


def run(charset: str, *words: object) -> tuple[int, str]:
    result = CliRunner(charset=charset).invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout_bytes.decode(charset)


@pytest.mark.parametrize("charset", ["cp1252", "ascii", "utf-8"])
def test_commands_print_foreign_names_in_every_encoding(charset: str, folder: Path) -> None:
    model = folder / "model.safetensors"
    pictures = sorted((folder / "data").glob("*/*.png"))[:3]
    code, out = run(charset, "classify", *pictures, "-m", model, "--json")
    assert code == 0
    for picture, found in zip(pictures, json.loads(out), strict=True):
        assert found["file"] == str(picture)
        assert {guess["name"] for guess in found["predictions"]} <= set(CLASSES)
    assert run(charset, "classify", *pictures, "-m", model)[0] == 0
    code, out = run(charset, "evaluate", model, "--data", folder / "data", "--json")
    assert code == 0 and json.loads(out)["top1"] > 90, "names match in both spellings"
    code, _ = run(charset, "verify", model)
    assert code == 0


@pytest.mark.parametrize("charset", ["cp1252", "ascii"])
@pytest.mark.parametrize(
    "words",
    [
        ("猫",),
        ("classify", "--猫"),
        ("list", "--猫"),
        ("info", "猫"),
        ("evaluate", "猫.safetensors", "--data", "digits"),
    ],
)
def test_what_is_typed_wrong_is_said_in_every_encoding(charset: str, words: tuple) -> None:
    result = CliRunner(charset=charset).invoke(main, list(words))
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    # Click takes UTF-8 where it is told that there is nothing but ASCII.
    said = result.stderr_bytes.decode("utf-8" if charset == "ascii" else charset)
    assert r"\u732b" in said or (charset == "ascii" and "猫" in said)


def test_what_libraries_print_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def chatty(*args: object, **kwargs: object) -> list[str]:
        print("done ✅ 猫")
        return []

    monkeypatch.setattr("qzoo.cli.listing.list_models", chatty)
    code, out = run("cp1252", "list")
    assert code == 0 and r"done \u2705 \u732b" in out


@pytest.mark.extended
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_exports_end_well_where_stdout_is_no_unicode(
    encoding: str, folder: Path, tmp_path: Path
) -> None:
    """Libraries print what they like, such as check marks."""
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    out = tmp_path / "Käse 猫.onnx"
    command = [str(Path(sys.executable).parent / "qzoo"), "export"]
    command += [str(folder / "model.safetensors"), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr and out.is_file()


def test_streams_are_left_as_they_were() -> None:
    before = (sys.stdout.errors, sys.stderr.errors)
    with pytest.raises(SystemExit):
        main(["list", "nothing*"])
    assert (sys.stdout.errors, sys.stderr.errors) == before


def test_a_model_in_the_other_spelling(folder: Path, tmp_path: Path) -> None:
    artifact = Artifact.read(folder / "model.safetensors")
    names = [unicodedata.normalize("NFD", name) for name in CLASSES]
    info = dataclasses.replace(artifact.info, classes=names)
    dataclasses.replace(artifact, info=info).write(tmp_path / "nfd.safetensors")
    place = tmp_path / "data" / CLASSES[0]
    place.mkdir(parents=True)
    Image.new("L", (9, 9)).save(place / "0.png")
    code, _ = run("utf-8", "evaluate", tmp_path / "nfd.safetensors", "--data", tmp_path / "data")
    assert code == 0
