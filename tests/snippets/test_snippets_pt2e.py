"""torchao's tutorials on PyTorch 2 Export (PT2E) quantization.

Where the documents are behind torchao 0.18 and their lines fail with any model, the tests say so
and write what the library asks for.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qzoo
from qzoo import mobilenet_v2, resnet18
from qzoo.importers.pt2e import from_pt2e
from qzoo.native.model import to_native
from tests.helpers import snippets as cases
from tests.helpers import zoo

pytest.importorskip("torchao", reason="the pt2e extra is not installed")
from torchao.quantization import pt2e
from torchao.quantization.pt2e.quantize_pt2e import (
    convert_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)


def xnnpack() -> Any:
    """Returns the module that the tutorials import from ExecuTorch."""
    name = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
    return pytest.importorskip(name, reason="the executorch extra is not installed")


def tiny_mobilenet(**kwargs: Any) -> Any:
    """A MobileNetV2 of four convolutions: torchao searches for seconds per layer."""
    return mobilenet_v2(num_classes=10, inverted_residual_setting=[[1, 16, 1, 2]], **kwargs)


def calibrate(model: nn.Module, data_loader: Any) -> None:
    """The tutorials' function without `model.eval()`, which graphs of torchao now refuse."""
    with torch.no_grad():
        for image, _target in data_loader:
            model(image)


@pytest.mark.parametrize("strict", [True, False])
def test_x86_inductor_tutorial(strict: bool) -> None:
    """https://docs.pytorch.org/ao/stable/pt2e_quantization/pt2e_quant_x86_inductor.html, ResNet-18.

    The tutorial hands the ExportedProgram to `prepare_pt2e`, which takes its `.module()` only.
    With `strict=False`, the default of `torch.export`, torchvision's own resnet18 fails here
    ("Input partition has more than one output node"), because its blocks call one ReLU twice.
    What comes next in the tutorial, `torch.compile`, is what `qzoo.compile(...,
    runtime="inductor")` does with the artifact.
    """
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as xiq
    from torch.export import export
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    model = zoo.vary(resnet18(num_classes=10))
    model = model.eval()
    x = cases.digits(count=8, side=32)[0].contiguous(memory_format=torch.channels_last)
    example_inputs = (x,)
    with zoo.quiet():
        with torch.no_grad():
            exported_model = export(model, example_inputs, strict=strict).module()
        quantizer = X86InductorQuantizer()
        quantizer.set_global(xiq.get_default_x86_inductor_quantization_config())
        prepared_model = prepare_pt2e(exported_model, quantizer)
        prepared_model(*example_inputs)
        converted_model = convert_pt2e(prepared_model)

        with torch.no_grad():
            given, wanted = converted_model(*example_inputs), model(*example_inputs)
    assert cases.sqnr_db(given, wanted) > 15
    int8 = [b for b in converted_model.buffers() if b.dtype is torch.int8]
    assert len(int8) == cases.weighted_layers(model)
    artifact = from_pt2e(converted_model, model, images=x)
    cases.assert_int8(native := to_native(artifact), len(int8))
    with torch.no_grad():
        assert cases.sqnr_db(native(x), wanted) > 15


def test_ptq_tutorial_with_xnnpack(tmp_path: Path) -> None:
    """https://docs.pytorch.org/ao/stable/pt2e_quantization/pt2e_quant_ptq.html, saving included."""
    config = xnnpack()
    data_loader_test = cases.loader("test", 16, 8, 32)
    float_model = zoo.vary(tiny_mobilenet())
    float_model.eval()
    model_to_quantize = tiny_mobilenet()
    model_to_quantize.load_state_dict(float_model.state_dict())
    model_to_quantize.eval()
    with zoo.quiet():
        example_inputs = (torch.rand(2, 3, 32, 32),)
        dynamic_shapes = tuple(
            {0: torch.export.Dim("dim")} if i == 0 else None for i in range(len(example_inputs))
        )
        exported_model = torch.export.export(
            model_to_quantize, example_inputs, dynamic_shapes=dynamic_shapes
        ).module()
        quantizer = config.XNNPACKQuantizer()
        quantizer.set_global(config.get_symmetric_quantization_config())
        prepared_model = prepare_pt2e(exported_model, quantizer)
        calibrate(prepared_model, data_loader_test)
        quantized_model = convert_pt2e(prepared_model)

        example_inputs = (next(iter(data_loader_test))[0],)
        ref = quantized_model(*example_inputs)
        pt2e_quantized_model_file_path = str(tmp_path / "pt2e_quantized.pth")
        quantized_ep = torch.export.export(quantized_model, example_inputs)
        torch.export.save(quantized_ep, pt2e_quantized_model_file_path)
        loaded_quantized_ep = torch.export.load(pt2e_quantized_model_file_path)
        loaded_quantized_model = loaded_quantized_ep.module()
        res = loaded_quantized_model(*example_inputs)
        assert torch.equal(ref, res)

    with torch.no_grad():
        wanted = float_model(*example_inputs)
    assert cases.sqnr_db(ref.detach(), wanted) > 10  # one scale per weight
    # Both the graph and the file of it hold the exact integers of an artifact.
    for graph in (quantized_model, loaded_quantized_model):
        artifact = from_pt2e(graph, model_to_quantize)
        assert "changed" not in artifact.info.recipe
        with torch.no_grad():
            assert cases.sqnr_db(to_native(artifact)(*example_inputs), ref) > 30
        artifact.write(tmp_path / "mine.safetensors")
        cases.assert_int8(qzoo.load(tmp_path / "mine.safetensors"), 5)


@pytest.mark.parametrize("folded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_qat_tutorial_with_xnnpack(folded: bool) -> None:
    """https://docs.pytorch.org/ao/stable/pt2e_quantization/pt2e_quant_qat.html, the training loop.

    Its loop that freezes batch norm looks for operators that `torch.export` no longer writes, and
    sets arguments as a list, which `copy.deepcopy` then refuses: `aten.batch_norm` and `tuple` are
    added here. For a model with batch norm, torchao spends half a minute on exporting patterns,
    whatever the model; without, after `fuse_model` in eval mode, it spends a second.
    """
    config = xnnpack()
    data_loader, (images, _) = cases.loader("train", 24, 8, 32), cases.digits(count=8, side=32)
    float_model = zoo.vary(tiny_mobilenet(dropout=0.0))
    if folded:
        float_model.eval().fuse_model()
        float_model.train()
    losses = []
    with zoo.quiet():
        exported_model = torch.export.export(float_model, (images,)).module()
        quantizer = config.XNNPACKQuantizer()
        quantizer.set_global(config.get_symmetric_quantization_config(is_qat=True))
        prepared_model = prepare_qat_pt2e(exported_model, quantizer)
        optimizer = torch.optim.SGD(prepared_model.parameters(), lr=0.01)
        criterion = nn.CrossEntropyLoss()
        num_observer_update_epochs = num_batch_norm_update_epochs = 2
        for epoch in range(3):
            for image, target in data_loader:
                loss = criterion(prepared_model(image), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            if epoch >= num_observer_update_epochs:
                prepared_model.apply(pt2e.disable_observer)
            if epoch >= num_batch_norm_update_epochs:
                for n in prepared_model.graph.nodes:
                    if n.target in [
                        torch.ops.aten._native_batch_norm_legit.default,
                        torch.ops.aten.cudnn_batch_norm.default,
                        torch.ops.aten.batch_norm.default,
                    ]:
                        new_args = list(n.args)
                        new_args[5] = False
                        n.args = tuple(new_args)
                prepared_model.recompile()
        assert sum(losses[-3:]) < sum(losses[:3])

        prepared_model_copy = copy.deepcopy(prepared_model)
        quantized_model = convert_pt2e(prepared_model_copy)
        pt2e.move_exported_model_to_eval(quantized_model)
        pt2e.move_exported_model_to_eval(prepared_model)
        with torch.no_grad():
            fake, given = prepared_model(images), quantized_model(images)
    assert cases.sqnr_db(given, fake) > 15
    artifact = from_pt2e(quantized_model, float_model.eval())
    cases.assert_int8(native := to_native(artifact), 5)
    with torch.no_grad():
        assert cases.sqnr_db(native(images), given) > 30
