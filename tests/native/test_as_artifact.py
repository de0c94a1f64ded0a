"""Everything that takes an int8 model takes it in the same forms, and says the same of others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import qzoo
from qzoo.analysis.compare import compare
from qzoo.classify import classify
from qzoo.datasets.evaluate import evaluate
from qzoo.export.onnx import to_onnx
from qzoo.export.plan import make_plan
from qzoo.quantize import qat
from qzoo.reference import build_reference
from qzoo.sharing import save_artifact
from qzoo.sharing.convert import convert_checkpoint, describe, state_dict_bytes

FOLDER = Path(qzoo.__file__).parent / "embedded"
FILE = FOLDER / "shufflenet_v2_x0_5_digits_x86.safetensors"
PICTURE = sorted((FOLDER / "digits").glob("*.png"))[0]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("forms") / "shared"
    qzoo.save_pretrained(FILE, folder)
    artifact = qzoo.Artifact.read(FILE)
    return {
        "native": qzoo.load(FILE),
        "artifact": artifact,
        "text": str(FILE),
        "path": FILE,
        "folder": folder,
        "compiled": qzoo.compile(artifact, "onnxruntime", input_size=32),
        "reference": build_reference(artifact),
    }


FORMS = ["native", "artifact", "text", "path", "folder", "compiled", "reference"]
#: What takes an int8 model, beside the model's own methods.
USES: dict[str, Callable[[Any, Path], Any]] = {
    "as_artifact": lambda model, _: qzoo.as_artifact(model),
    "compile": lambda model, _: qzoo.compile(model, "onnxruntime", input_size=32),
    "onnx": lambda model, _: to_onnx(model, input_size=32),
    "exports": lambda model, _: make_plan(model, input_size=32),
    "reference": lambda model, _: build_reference(model),
    "save": lambda model, folder: qzoo.save(model, folder / "a.safetensors"),
    "save_pretrained": lambda model, folder: qzoo.save_pretrained(model, folder / "b"),
    "save_artifact": lambda model, folder: save_artifact(model, folder / "c"),
    "state_dict_bytes": lambda model, _: state_dict_bytes(model),
    "describe": lambda model, _: describe(model),
    "push_to_hub": lambda model, _: qzoo.push_to_hub(model, "org/name"),
    "compare": lambda model, _: compare(
        _float(), model, torch.zeros(1, 3, 32, 32), progress=False, images=1
    ),
    "from_ptq": lambda model, _: qat.prepare(_float(), from_ptq=model),
}


def _float() -> torch.nn.Module:
    return qzoo.shufflenet_v2_x0_5(num_classes=10)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_artifact(form: str, forms: dict[str, Any]) -> None:
    found = qzoo.as_artifact(forms[form])
    # A native model is written down anew, by the versions of today.
    digests = [replace(a, versions={}).digest() for a in (found, qzoo.Artifact.read(FILE))]
    assert digests[0] == digests[1]
    named = qzoo.as_artifact(forms[form], classes=list("abcdefghij"))
    assert named.info.classes == list("abcdefghij") and found.info.classes == list("0123456789")


@pytest.mark.parametrize("use", [u for u in USES if u not in ("push_to_hub", "compare")])
@pytest.mark.parametrize("form", ["folder", "compiled"])
def test_every_use_takes_them(form: str, use: str, forms: dict[str, Any], tmp_path: Path) -> None:
    USES[use](forms[form], tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        assert qzoo.Artifact.read(file).digest() == qzoo.Artifact.read(FILE).digest()


@pytest.mark.parametrize("form", FORMS)
def test_pictures_are_classified_by_all_of_them(form: str, forms: dict[str, Any]) -> None:
    guess = classify(forms[form], [PICTURE], 1)[0][0]
    assert guess.name == PICTURE.name.split("-")[1]
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pairs = [(image, 3) for image in x]
    logits = qzoo.load(FILE)(x)
    assert evaluate(forms[form], pairs, progress=False).n == 4  # type: ignore[arg-type]
    right = int((logits.argmax(1) == 3).sum())
    if form in ("native", "artifact", "text", "path", "folder"):
        metrics = evaluate(forms[form], pairs, progress=False)  # type: ignore[arg-type]
        assert metrics.correct[1] == right


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("wrong", [None, 3, b"model.safetensors", ["a"], {}], ids=repr)
def test_what_is_no_model_is_said_alike(use: str, wrong: Any, tmp_path: Path) -> None:
    if use == "from_ptq" and wrong is None:
        return  # none was given
    words = "Expected an int8 model, an artifact or the path of one, not "
    with pytest.raises(qzoo.ArgumentError, match=words + type(wrong).__name__):
        USES[use](wrong, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("use", USES)
def test_what_cannot_be_read_is_said_alike(use: str, tmp_path: Path) -> None:
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    out.mkdir()
    (tmp_path / "float.safetensors").write_bytes(b"")
    for name, words in (
        (
            "gone.safetensors",
            "gone.safetensors does not exist; check the path or download it first",
        ),
        ("empty", "holds no model.safetensors or int8.safetensors"),
        ("float.safetensors", "is truncated"),
    ):
        with pytest.raises(qzoo.ArtifactError, match=words):
            USES[use](str(tmp_path / name), out)
    if use not in ("state_dict_bytes", "describe"):  # which take float models, too
        with pytest.raises(qzoo.ArtifactError, match="still float"):
            USES[use](_float(), out)
    assert not list(out.iterdir())


@pytest.mark.parametrize("form", ["native", "folder", "compiled", "reference"])
def test_a_state_dict_is_noted_as_int8_whatever_it_is_made_of(
    form: str, forms: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "int8.pth").write_bytes(state_dict_bytes(forms[form]))
    back = convert_checkpoint(tmp_path / "int8.pth", model="shufflenet_v2_x0_5")
    assert back.info.classes == list("0123456789") and back.info.backend == "x86"
    assert "int8 for x86" in describe(forms[form]) and ", float," in describe(_float())


def test_a_model_in_qat_is_taken_as_it_is_by_now(forms: dict[str, Any]) -> None:
    model = qat.prepare(_float(), from_ptq=forms["artifact"])
    assert qzoo.as_artifact(model).digest() == qat.to_artifact(model).digest()


def test_a_repository_is_not_taken_for_a_file() -> None:
    with pytest.raises(qzoo.ArgumentError, match="hf://org/name from the Hub first"):
        qzoo.compile("hf://org/name")


def test_modes_are_put_back_part_by_part() -> None:
    model = _float().train()
    model.conv1.eval()
    qzoo_transforms = qzoo.load(FILE).transforms
    model.transforms = qzoo_transforms
    classify(model, [PICTURE])
    assert model.training and not model.conv1.training


@pytest.mark.parametrize("form", ["pickled", "safetensors"])
def test_of_a_folder_the_file_is_taken_that_says_what_it_holds(form: str, tmp_path: Path) -> None:
    qzoo.save_float(_float(), tmp_path / "model.safetensors")
    with pytest.raises(qzoo.ArtifactError, match="only a model in float: quantize it first"):
        qzoo.as_artifact(tmp_path)
    assert qzoo.load_float(tmp_path).fc.out_features == 10
    # What says nothing is left to whoever reads it, where nothing else says what is wanted.
    other = tmp_path / "int8.safetensors"
    state = _float().state_dict()
    torch.save(state, other) if form == "pickled" else save_file(state, other)
    with pytest.raises(qzoo.ArtifactError, match=r"int8\.safetensors is (not a|no) .*quantize"):
        qzoo.as_artifact(tmp_path)
    shutil.copy(FILE, tmp_path / "model.safetensors")
    assert qzoo.as_artifact(tmp_path).digest() == qzoo.Artifact.read(FILE).digest()
    with pytest.raises(qzoo.ArtifactError, match="only a model in int8: name the float model"):
        qzoo.load_float(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"PK\3\4", FILE.read_bytes()[:-1]])
def test_a_damaged_file_in_a_folder_is_called_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    for read in (qzoo.as_artifact, qzoo.load_float):
        with pytest.raises(qzoo.ArtifactError) as caught:
            read(tmp_path)
        assert "model.safetensors" in str(caught.value) and "in float" not in str(caught.value)
