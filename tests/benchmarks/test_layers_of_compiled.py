"""Layers of what Inductor and ExecuTorch compile, one by one against the reference model's."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

import qzoo
from qzoo.datasets.digits import Digits, digits_transforms
from qzoo.native.model import from_native
from qzoo.reference import build_reference, differences, reference_outputs


@pytest.mark.extended
@pytest.mark.parametrize("runtime", ["inductor", "executorch"])
def test_every_layer_is_within_a_step(runtime: str, benchmark: Callable[[str], ModuleType]) -> None:
    if runtime == "executorch":
        pytest.importorskip("executorch")
    elif not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    steps = benchmark("steps")
    artifact = from_native(qzoo.shufflenet_v2_x0_5(weights="DIGITS_X86_V1", quantize=True))
    reference = build_reference(artifact)
    record, float_layers = steps.recorder(artifact, runtime, 4, 64)
    assert float_layers == ()
    data = Digits("test", digits_transforms(64))
    x = torch.stack([data[i][0] for i in range(4)])
    logits, seen = record(x)
    found = differences(reference, seen, reference_outputs(reference, x, seen))
    assert {d.name for d in found} == reference_outputs(reference, x).keys()
    assert max(d.max_steps for d in found) <= 1
    assert torch.equal(logits.argmax(1), torch.tensor(data.targets[:4]))
    # Integers that mean something: what was compared is neither all zero nor saturated.
    assert all(value.float().std() > 0 for name, value in seen.items() if value.numel() > 100)
