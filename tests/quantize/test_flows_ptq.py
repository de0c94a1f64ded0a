"""`ptq` by PyTorch's own flows gives what those flows give themselves."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    default_dynamic_qconfig,
    get_default_qconfig,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import qzoo
from qzoo.native.model import from_native, model_info
from qzoo.quantize import ptq
from tests.helpers import zoo

ENGINE = "onednn" if "onednn" in zoo.ENGINES else zoo.ENGINES[0]


def batches(size: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return list(torch.randn(5, 3, size, size, generator=generator).split(2))


def quantized(model: nn.Module, data: list[Tensor], flow: str, **options: Any) -> nn.Module:
    options = {"backend": ENGINE, "batch_size": 2, "progress": False, **options}
    return ptq(model, data, flow=flow, **options)


def fx_by_hand(model: nn.Module, data: list[Tensor], mapping: Any, engine: str = ENGINE) -> Any:
    with zoo.engine(engine), zoo.quiet(), torch.no_grad():
        prepared = prepare_fx(copy.deepcopy(model), mapping, (data[0],))
        for images in data:
            prepared(images)
        return convert_fx(prepared)


def logits(model: Any, data: list[Tensor], engine: str = ENGINE) -> Tensor:
    with zoo.engine(engine), zoo.quiet(), torch.no_grad():
        return torch.cat([model(images) for images in data])


def assert_same_numbers(native: nn.Module, theirs: nn.Module) -> None:
    """Checks the scale and zero point of every layer that a converted model names."""
    layers = from_native(native).layers
    modules = {n: m for n, m in theirs.named_modules() if n in layers and hasattr(m, "scale")}
    assert len(modules) > 20
    for name, module in modules.items():
        found = (layers[name].scale, layers[name].zero_point)
        assert found == (float(module.scale), int(module.zero_point)), name


def distance(given: Tensor, wanted: Tensor) -> float:
    return float((given - wanted).abs().max())


# Eager


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_torchvisions_recipe_is_pytorchs_eager_flow(name: str) -> None:
    model, data = zoo.float_model(name), batches()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # blocks without a shortcut own an addition that never runs
        warnings.filterwarnings("ignore", ".*(deprecated|quint8).*")
        mine = quantized(model, data, "eager", recipe="torchvision")
    theirs = zoo.eager_ptq(model, torch.cat(data[:1]), ENGINE)
    assert mine.training is False
    one = quantized(model, data[:1], "eager", recipe="torchvision")
    assert torch.equal(logits(one, data), logits(theirs, data))
    assert_same_numbers(one, theirs)
    with pytest.raises(AssertionError):
        assert_same_numbers(mine, theirs)  # the other images count


# FX


@pytest.mark.parametrize(
    ("name", "engine"),
    [("resnet18", "x86"), ("mobilenet_v3_small", ENGINE), ("resnet18", "qnnpack")],
)
def test_fx_gives_the_graphs_answers(name: str, engine: str) -> None:
    if engine not in zoo.ENGINES:
        pytest.skip(f"no {engine} engine here")
    model, data = zoo.float_model(name, num_classes=7), batches()
    graph = fx_by_hand(model, data, get_default_qconfig_mapping(engine), engine)
    native = quantized(model, data, "fx", backend=engine)
    assert torch.equal(logits(native, data, engine), logits(graph, data, engine))
    assert_same_numbers(native, graph)
    info = model_info(native)
    assert (info.backend, info.recipe["method"]) == (engine, "PTQ (fx)")
    assert "changed" not in info.recipe and "ptq_recipe" not in info.recipe


def test_fx_roundings_that_an_artifact_lacks_are_told() -> None:
    model, data = zoo.float_model("shufflenet_v2_x0_5"), batches()
    graph = fx_by_hand(model, data, get_default_qconfig_mapping(ENGINE))
    native = quantized(model, data, "fx")
    changed = model_info(native).recipe["changed"]
    # The half of a block's input that goes through the branch, in all but the first of a stage.
    assert len(changed) == 9 + 4 - 4 and set(changed.values()) == {
        "it is rounded twice in the graph"
    }
    full = logits(model, data)
    assert distance(logits(native, data), full) < 1.5 * distance(logits(graph, data), full)
    assert_same_numbers(native, graph)


def test_fx_takes_a_mapping_with_float_layers() -> None:
    model, data = zoo.float_model("resnet18", num_classes=7), batches()
    mapping = get_default_qconfig_mapping(ENGINE)
    for layer in ("layer1.0.conv2", "layer2.0.downsample.0", "layer3.0.conv1"):
        mapping.set_module_name(layer, None)
    mapping.set_module_name("layer4.1", get_default_qconfig("qnnpack"))
    native = quantized(model, data, "fx", qconfig_mapping=mapping)
    graph = fx_by_hand(model, data, mapping)
    assert torch.equal(logits(native, data), logits(graph, data))
    layers = from_native(native).layers
    kept = [name for name, layer in layers.items() if layer.float]
    assert kept == ["layer1.0.conv2", "layer2.0.downsample.0", "layer3.0.conv1"]
    assert "layer1.0.conv2" in mapping.module_name_qconfigs  # the user's own is left as it was
    assert len(mapping.module_name_qconfigs) == 4


def test_fx_keeps_layers_in_float_by_pattern() -> None:
    model, data = zoo.float_model("resnet18", num_classes=7), batches()
    native = quantized(model, data, "fx", keep_float=["fc", "layer1.*.conv2"])
    mapping = get_default_qconfig_mapping(ENGINE)
    for layer in ("fc", "layer1.0.conv2", "layer1.1.conv2"):
        mapping.set_module_name(layer, None)
    wanted = logits(fx_by_hand(model, data, mapping), data)
    layers = from_native(native).layers
    assert [name for name, layer in layers.items() if layer.float] == [
        "layer1.0.conv2", "layer1.1.conv2", "fc",
    ]  # fmt: skip
    # The graph's logits are float; here they are rounded to 256 values over their own range.
    scale = layers["fc"].scale
    assert scale == pytest.approx(float(wanted.max() - wanted.min()) / 255, rel=1e-6)
    assert distance(logits(native, data), wanted) <= 0.51 * scale
    assert list(model_info(native).recipe["changed"]) == ["fc"]


def test_fx_measures_the_range_of_an_input_that_a_float_layer_reads() -> None:
    model, data = zoo.float_model("resnet18", num_classes=7), batches()
    native = quantized(model, data, "fx", keep_float=["conv1"], backend="x86")
    layer, images = from_native(native).layers["quant"], torch.cat(data)
    low, high = float(images.min()), float(images.max())
    assert layer.scale == pytest.approx((high - low) / 127, rel=1e-6)  # x86 takes 7 bits
    assert layer.zero_point == round(-low / layer.scale)


def test_fx_leaves_the_arithmetic_in_front_of_a_model_in_float() -> None:
    plain = zoo.float_model("googlenet", aux_logits=False, num_classes=7)
    model = zoo.float_model("googlenet", aux_logits=False, num_classes=7, transform_input=True)
    model.load_state_dict(plain.state_dict())
    data = batches()
    seen: Any = [model._transform_input(images) for images in data]  # type: ignore[operator]
    wanted = logits(quantized(plain, seen, "fx"), seen)
    assert torch.equal(logits(quantized(model, data, "fx"), data), wanted)


def test_what_fx_quantizes_otherwise_is_refused_by_name() -> None:
    model, data = zoo.float_model("resnet18", num_classes=7), batches()
    mapping = get_default_qconfig_mapping(ENGINE)
    mapping.set_module_name("fc", default_dynamic_qconfig)
    with pytest.raises(qzoo.ArtifactError, match=r"layer 'fc'.*cannot hold"):
        quantized(model, data, "fx", qconfig_mapping=mapping)


# PT2E


def converted_by_hand(model: nn.Module, data: list[Tensor]) -> Any:
    flow = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    with zoo.quiet(), torch.no_grad():
        exported = torch.export.export(model, (data[0],), dynamic_shapes=dynamic)
        prepared = flow.prepare_pt2e(exported.module(check_guards=False), quantizer)
        for images in data:
            prepared(images)
        return flow.convert_pt2e(prepared)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_pt2e_gives_the_graphs_answers(name: str) -> None:
    model, data = zoo.float_model(name, num_classes=7), batches()
    graph = converted_by_hand(model, data)
    native = quantized(model, data, "pt2e")
    wanted = logits(graph, data)
    noise = (logits(native, data) - wanted).square().mean()
    # The artifact rounds in more places; a layer gone wrong leaves 0 dB.
    assert 10 * torch.log10(wanted.square().mean() / noise) > 25
    info = model_info(native)
    assert (info.backend, info.recipe["method"]) == (ENGINE, "PTQ (pt2e)")
    head = "fc" if name == "resnet18" else "classifier.3"
    assert "float" in info.recipe["changed"][head]
    # Its range is that of the graph's own logits over all batches.
    scale = from_native(native).layers[head].scale
    span = max(float(wanted.max()), 0.0) - min(float(wanted.min()), 0.0)
    assert scale == pytest.approx(span / 255, rel=1e-6)


def test_pt2e_keeps_layers_in_float_and_takes_7_bits() -> None:
    pytest.importorskip("torchao", reason="the pt2e extra is not installed")
    model, data = zoo.float_model("resnet18", num_classes=7), batches()
    native = quantized(model, data, "pt2e", backend="x86", keep_float=["layer2.0.conv1", "fc"])
    artifact = from_native(native)
    assert [n for n, la in artifact.layers.items() if la.float] == ["layer2.0.conv1", "fc"]
    assert "clipped at 127" in model_info(native).recipe["changed"]["activations"]
    low, high = float(torch.cat(data).min()), float(torch.cat(data).max())
    # The histogram observers may cut a range, never widen it.
    assert 0.3 * (high - low) / 127 < artifact.layers["quant"].scale <= (high - low) / 126
    full = logits(model, data)
    assert distance(logits(native, data), full) < 0.2 * float(full.abs().max())


def test_pt2e_for_qnnpack_takes_xnnpacks_quantizer() -> None:
    pytest.importorskip("torchao", reason="the pt2e extra is not installed")
    pytest.importorskip("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    model, data = zoo.float_model("resnet18", num_classes=7), batches()
    native = quantized(model, data, "pt2e", backend="qnnpack", keep_float=["layer1.0.conv1"])
    artifact = from_native(native)
    assert artifact.tensors["conv1.weight_scale"].dim() == 0
    assert [n for n, la in artifact.layers.items() if la.float] == ["layer1.0.conv1"]
    full = logits(model, data)
    assert distance(logits(native, data), full) < 0.2 * float(full.abs().max())


def test_pt2e_takes_a_quantizer() -> None:
    pytest.importorskip("torchao", reason="the pt2e extra is not installed")
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    model, data = zoo.float_model("resnet18", num_classes=7), batches()
    chosen = x86.X86InductorQuantizer()
    chosen.set_global(x86.get_default_x86_inductor_quantization_config())
    own = quantized(model, data, "pt2e", quantizer=chosen)
    assert torch.equal(logits(own, data), logits(quantized(model, data, "pt2e"), data))
    chosen.set_module_name_qconfig("fc", None)
    with pytest.raises(qzoo.ArtifactError, match="'fc' was left in float"):
        quantized(model, data, "pt2e", quantizer=chosen)


# All of them


@pytest.mark.parametrize("flow", ["eager", "fx", "pt2e"])
def test_flows_repeat_themselves_and_leave_all_else_alone(flow: str) -> None:
    if flow == "pt2e":
        pytest.importorskip("torchao", reason="the pt2e extra is not installed")
    model, data = zoo.float_model("resnet18", num_classes=7), batches()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = "torchvision" if flow == "eager" else "default"
    quantized(model, data[:1], flow, recipe=recipe)  # first imports may do what they like
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    engine, filters = torch.backends.quantized.engine, list(warnings.filters)
    files = [
        from_native(quantized(model, data, flow, recipe=recipe, backend="x86")).to_bytes()
        for _ in range(2)
    ]
    assert files[0] == files[1]
    assert torch.equal(torch.get_rng_state(), random) and torch.get_num_threads() == threads
    assert torch.backends.quantized.engine == engine and warnings.filters == filters
    assert not model.training and all(p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [type(m) for m in model.modules()] == [
        type(m) for m in zoo.float_model("resnet18").modules()
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flow": "xf"}, "Did you mean 'fx'"),
        ({"flow": "fx", "recipe": "best"}, "'best' consists of qzoo's own steps"),
        ({"flow": "fx", "qconfig_mapping": {"": None}}, "QConfigMapping, not dict"),
        ({"flow": "pt2e", "qconfig_mapping": 1}, 'goes with flow="fx"'),
        ({"flow": "fx", "quantizer": 1}, 'goes with flow="pt2e"'),
        ({"flow": "pt2e", "quantizer": 1}, "quantizers, not int"),
        ({"flow": "fx", "keep_float": ["fx"]}, "'fx' matches no layer"),
        ({"flow": "pt2e", "keep_float": ["layer9.*"]}, "'layer9.*' matches no layer"),
        ({"recipe": "torchvision", "keep_float": ["fc"]}, "eager observers"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    model = zoo.float_model("resnet18", num_classes=7)
    with pytest.raises(qzoo.QzooError, match=words.replace("(", r"\(")):
        ptq(model, batches(), progress=False, **options)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, find = zoo.float_model("resnet18", num_classes=7), importlib.util.find_spec
    for package, backend in (("executorch", "qnnpack"), ("torchao", "onednn")):
        gone = lambda name, *a, p=package: None if name == p else find(name, *a)  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", gone)
        extra = "pt2e" if package == "torchao" else "executorch"
        with pytest.raises(qzoo.MissingDependencyError, match=rf"qzoo\[{extra}\]"):
            quantized(model, batches(), "pt2e", backend=backend)


def test_a_model_that_is_no_longer_what_it_was_is_refused() -> None:
    model: Any = zoo.float_model("resnet18", num_classes=7)
    model.fc = nn.Sequential(nn.Linear(512, 7), nn.Sigmoid())
    with pytest.raises(qzoo.QzooError, match=r"fc"):
        quantized(model, batches(), "fx")
