"""What a type checker knows of the public names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import qzoo

#: Expression to what mypy should call its type.
TYPES = {
    **{
        f"qzoo.{name}.{member}": f"Literal[qzoo.models.*.{name}.{member}]?"
        for name in ("ResNet50_QuantizedWeights", "MobileNet_V3_Small_QuantizedWeights")
        for member in getattr(qzoo, name).__members__
        if member != "DEFAULT"
    },
    'qzoo.ResNet50_QuantizedWeights["DEFAULT"]': "qzoo.models.resnet.ResNet50_QuantizedWeights",
    "qzoo.ResNet50_QuantizedWeights.DEFAULT.meta": "dict[str, Any]",
    "qzoo.ResNet50_QuantizedWeights.DEFAULT.transforms()": "qzoo.transforms.ImageClassification",
    "qzoo.ResNet50_QuantizedWeights.DEFAULT.artifact()": "qzoo.artifact.format.Artifact",
    "qzoo.get_weight('')": "qzoo._weights_enum.WeightsEnum",
    "qzoo.resnet50().classes": "list[str] | None",
    "qzoo.compile('').transforms": "qzoo.transforms.ImageClassification | None",
    "qzoo.quantize.ptq(qzoo.resnet18(), None)": "torch.nn.modules.module.Module",
    'qzoo.quantize.ptq(qzoo.resnet18(), None, recipe="best", options=qzoo.quantize.PTQOptions())': (
        "torch.nn.modules.module.Module"
    ),
    "qzoo.quantize.tune(qzoo.resnet18(), None, time_budget=9).met": "bool",
    'qzoo.quantize.qat.prepare(qzoo.resnet18(), "x86", batch_norm="keep")': (
        "qzoo.quantize.qat.model.InTraining"
    ),
}
#: Expression to what mypy says is wrong with it.
WRONG = {
    "qzoo.ResNet50_QuantizedWeights.NOTHING": "has no attribute",
    "qzoo.lod": "has no attribute",
    "qzoo.quantize.ptk": "has no attribute",
    'qzoo.quantize.ptq(qzoo.resnet18(), None, bakend="x86")': 'keyword argument "bakend"',
    'qzoo.quantize.ptq(qzoo.resnet18(), None, batch_size="8")': 'expected "int"',
    'qzoo.quantize.tune(qzoo.resnet18(), None, flow="fx")': 'keyword argument "flow"',
    'qzoo.quantize.qat.prepare(qzoo.resnet18(), learn_ranges="no")': 'expected "bool"',
}


@pytest.mark.extended
def test_types_of_public_names(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api", reason="mypy is not installed (the extra test)")
    lines = [f"reveal_type({expression})" for expression in TYPES] + list(WRONG)
    path = tmp_path / "user.py"
    path.write_text("\n".join(["import qzoo", *lines]))
    out, err, _ = api.run(
        ["--config-file=", f"--cache-dir={tmp_path / 'cache'}", "--no-error-summary", str(path)]
    )
    found: dict[int, str] = {}
    for line in out.splitlines():
        number, text = re.fullmatch(r".*user\.py:(\d+): \w+: (.*)", line).groups()  # type: ignore[union-attr]
        found.setdefault(int(number), text)  # notes follow the error that they are about
    assert not err
    for number, (expression, wanted) in enumerate(TYPES.items(), 2):
        pattern = re.escape(wanted).replace(r"\*", ".*")
        assert re.fullmatch(f'Revealed type is "{pattern}"', found[number]), expression
    for number, (expression, wanted) in enumerate(WRONG.items(), 2 + len(TYPES)):
        assert wanted in found[number], expression
