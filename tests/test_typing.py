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
}
WRONG = ("qzoo.ResNet50_QuantizedWeights.NOTHING", "qzoo.lod", "qzoo.quantize.ptk")


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
        found[int(number)] = text
    assert not err
    for number, (expression, wanted) in enumerate(TYPES.items(), 2):
        pattern = re.escape(wanted).replace(r"\*", ".*")
        assert re.fullmatch(f'Revealed type is "{pattern}"', found[number]), expression
    for number, expression in enumerate(WRONG, 2 + len(TYPES)):
        assert "has no attribute" in found[number], expression
