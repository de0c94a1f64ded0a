"""libqzoo/examples/classify.c: a program in C that reads an artifact and classifies a picture."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qzoo
from qzoo.artifact.format import Artifact
from qzoo.artifact.interpret import interpret
from qzoo.libqzoo.build import sources
from qzoo.pictures.preset import Preset
from tests.helpers.artifact_parts import put_together, take_apart
from tests.helpers.graphs import every_operation
from tests.helpers.places import DIGITS, EMBEDDED, INT8
from tests.helpers.programs import program

EMBEDDED_MODELS = sorted(EMBEDDED.glob("*.safetensors"))


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Returns what runs examples/classify.c."""
    source = sources() / "examples" / "classify.c"
    target = tmp_path_factory.mktemp("classify") / "classify"
    path = program(target, source, library="built")

    def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([str(path), *map(str, arguments)], capture_output=True)

    return run


def printed(output: bytes) -> list[tuple[float, str]]:
    lines = [line.split(" %  ") for line in output.decode().splitlines()]
    return [(float(score), name) for score, name in lines]


def ppm(pixels: np.ndarray, header: str = "P6\n# a comment\n{} {}\n255\n") -> bytes:
    return header.format(pixels.shape[1], pixels.shape[0]).encode() + pixels.tobytes()


@pytest.mark.parametrize("path", EMBEDDED_MODELS, ids=[p.stem for p in EMBEDDED_MODELS])
def test_the_example_answers_as_python(path: Path, classify: Any, tmp_path: Path) -> None:
    artifact = Artifact.read(path)
    assert artifact.info.transforms is not None
    preset = Preset.from_dict(artifact.info.transforms)
    names = artifact.info.classes
    assert isinstance(names, list)
    compiled = qzoo.compile(artifact, runtime="libqzoo", input_size=preset.crop_size)
    for number, digit in enumerate(DIGITS[:4]):
        picture = Image.open(digit).convert("RGB")
        pixels = np.asarray(preset.cropped(picture))
        images = preset(picture)[None]
        logits = interpret(artifact.graph, images)[0].astype(np.float64)
        assert np.array_equal(np.asarray(compiled(images))[0], logits)
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        file = tmp_path / f"{number}.ppm"
        file.write_bytes(ppm(pixels) if number % 2 else pixels.tobytes())
        done = classify(path, file)
        assert (done.returncode, done.stderr) == (0, b"")
        found = printed(done.stdout)
        assert [name for _, name in found] == [
            names[i] for i in np.argsort(-logits, kind="stable")[:5]
        ]
        assert [score for score, _ in found] == pytest.approx(
            sorted(100 * shares, reverse=True)[:5], abs=0.0051
        )


def test_the_example_shows_names_safely(classify: Any, tmp_path: Path) -> None:
    parts = take_apart(every_operation().to_bytes())
    parts.header["classes"] = ["\x1b[31mred", "Gruß", "魚", "c1 \x9b31m", "a\nb"]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    (tmp_path / "p.ppm").write_bytes(ppm(pixels, "P6 {}\t{}\r\n255 "))
    (tmp_path / "m.safetensors").write_bytes(put_together(parts))
    done = classify(tmp_path / "m.safetensors", tmp_path / "p.ppm")
    assert done.returncode == 0
    names = {name for _, name in printed(done.stdout)}
    assert names == {"?[31mred", "Gruß", "魚", "c1 ?31m", "a?b"}
    parts.header["classes"] = None
    (tmp_path / "m.safetensors").write_bytes(put_together(parts))
    done = classify(tmp_path / "m.safetensors", tmp_path / "p.ppm")
    assert {name for _, name in printed(done.stdout)} == set("01234")


PIXELS = np.zeros((64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (None, "No such file"),
        (b"", "no PPM file"),
        (b"P5\n64 64\n255\n" + PIXELS.tobytes(), "no PPM file"),
        (PIXELS.tobytes()[1:], "nor the 12288 bytes of 64 x 64 pixels"),
        (ppm(PIXELS[:32]), "has 64 x 32 pixels; the model takes 64 x 64"),
        (ppm(PIXELS)[:-1], "ends before its pixels"),
        (ppm(PIXELS, "P6 {} {} 65535\n"), "more than 8 bits"),
        (ppm(PIXELS, "P6 {} -{} 255\n"), "cannot be read"),
        (b"P6 64 # no end", "cannot be read"),
        (b"P6", "cannot be read"),
        (b"P6 64 64 255", "cannot be read"),
    ],
)
def test_pictures_that_the_example_refuses(
    picture: bytes | None, words: str, classify: Any, tmp_path: Path
) -> None:
    path = tmp_path / "p.ppm"
    if picture is not None:
        path.write_bytes(picture)
    refuses(classify(INT8, path), f"classify: {path}: ", words)


def test_models_that_the_example_refuses(classify: Any, tmp_path: Path) -> None:
    picture, model = tmp_path / "p.ppm", tmp_path / "m.safetensors"
    picture.write_bytes(ppm(PIXELS))
    refuses(classify(INT8), "classify: usage: ", "picture.ppm")
    refuses(classify(model, picture), f"classify: {model}: ", "No such file")
    refuses(classify(tmp_path, picture), f"classify: {tmp_path}: ", "directory")
    content = INT8.read_bytes()
    for change, words in (
        ({"transforms": None}, "does not say how pictures become"),
        ({"classes": ["a", "b"]}, "another number of class names"),
        ({"input_size": [1, 1]}, "the model takes 1 x 1"),
        ({"version": 4}, "newer"),
    ):
        parts = take_apart(content)
        parts.header.update(change)
        model.write_bytes(put_together(parts))
        refuses(classify(model, picture), "classify: ", words)
    model.write_bytes(content[:-1])
    refuses(classify(model, picture), f"classify: {model}: ", "ends before its tensors")


def refuses(done: subprocess.CompletedProcess[bytes], start: str, words: str) -> None:
    message = done.stderr.decode()
    assert done.returncode == 2 and not done.stdout
    assert message.startswith(start) and words in message and message.count("\n") == 1


def test_the_example_is_short() -> None:
    lines = (sources() / "examples" / "classify.c").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150
