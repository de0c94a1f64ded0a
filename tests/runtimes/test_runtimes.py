"""Every runtime gives the reference model's answers, whoever calls it and however often."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qzoo
from qzoo.export.onnx import onnx_bytes
from qzoo.libqzoo.binding import libqzoo_files
from qzoo.native.model import from_native
from qzoo.pictures.images import load_image
from qzoo.reference import build_reference
from qzoo.runtimes import CompiledModel, openvino
from qzoo.runtimes.footprint import footprint
from qzoo.runtimes.openvino import OpenvinoModel
from qzoo.runtimes.torch_native import TorchModel
from qzoo.transforms import ImageClassification
from tests.helpers.places import DIGITS
from tests.helpers.zoo import (
    by_definition,
    eager_ptq,
    float_model,
    quiet,
    small_images,
    uncalibrated,
)

pytestmark = pytest.mark.usefixtures("own_cache")
QUICK = (*(["libqzoo"] if libqzoo_files() else []), "torch", "onnxruntime", "openvino")
LONG = [pytest.param(name, marks=pytest.mark.extended) for name in ("inductor", "executorch")]
#: Single steps that runtimes round apart grow over up to 150 layers; tests/export looks at each
#: layer by itself.
MAX_STEPS = 8


@functools.cache
def digits() -> qzoo.Artifact:
    """Returns the bundled model: small, trained, for pictures of 64x64 pixels."""
    weights = "DIGITS_X86_V1"
    return from_native(qzoo.shufflenet_v2_x0_5(weights=weights, quantize=True))


@functools.cache
def pictures() -> Tensor:
    """Returns the bundled scans of digits, [10, 3, 64, 64], as the model takes them."""
    preset = ImageClassification.from_dict(digits().info.transforms or {})
    return torch.stack([preset(load_image(file)) for file in DIGITS])


def images(batch: int, side: int = 32) -> Tensor:
    """Returns up to ten digits of another size."""
    return nn.functional.interpolate(pictures()[:batch], side, mode="bilinear")


def logit_step(artifact: qzoo.Artifact) -> float:
    return next(layer.scale for layer in reversed(artifact.layers.values()) if layer.op == "linear")


@pytest.mark.parametrize("name", by_definition())
def test_every_builder_gives_the_same_answers_on_every_runtime(name: str) -> None:
    x = small_images(name, 3)
    artifact = from_native(eager_ptq(float_model(name, slim=True), x))
    with torch.no_grad():
        expected = build_reference(artifact)(x)
    for runtime in QUICK:
        if runtime == "torch":  # choosing an engine has a test of its own
            model: CompiledModel = TorchModel(artifact, 1, None, x.shape[2:], engine="x86")
        else:
            model = qzoo.compile(artifact, runtime, 1, input_size=tuple(x.shape[2:]))
        logits = model(x)
        steps = (logits - expected).abs() / logit_step(artifact)
        assert steps.max() < MAX_STEPS + 0.5, runtime
        # Where the best class is another one, the two were closer than the rounding.
        behind = expected.max(1).values - expected.gather(1, logits.argmax(1, True))[:, 0]
        assert (behind <= 2 * MAX_STEPS * logit_step(artifact)).all(), runtime
        assert model.float_layers == (), runtime


@pytest.mark.parametrize("runtime", QUICK)
def test_the_trained_model_answers_alike(runtime: str) -> None:
    x = pictures()
    with torch.no_grad():
        expected = build_reference(digits())(x)
    logits = qzoo.compile(digits(), runtime, threads=1, input_size=64)(x)
    assert logits.dtype == torch.float32 and logits.shape == expected.shape
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert (logits - expected).abs().max() <= (MAX_STEPS + 0.5) * logit_step(digits())


@pytest.mark.parametrize("runtime", QUICK)
def test_any_batch_and_size_unless_fixed(runtime: str) -> None:
    reference = build_reference(digits())
    free = qzoo.compile(digits(), runtime, threads=1, input_size=32)
    for batch, side in ((1, 32), (2, 32), (5, 32), (3, 48), (2, 64), (7, 64), (1, 32)):
        x = images(batch, side)
        with torch.no_grad():
            steps = (free(x) - reference(x)).abs() / logit_step(digits())
        # Pictures of sizes it was not trained on are further from a clear answer.
        assert steps.max() <= 3 * MAX_STEPS, (batch, side)
    fixed = qzoo.compile(digits(), runtime, threads=1, batch_size=2, input_size=32)
    assert fixed(images(2)).shape == (2, 10)
    with pytest.raises(qzoo.ArgumentError, match=r"3 images.*batch_size=2.*batch_size=None"):
        fixed(images(3))


def test_openvino_stops_compiling_for_single_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "FIXED_SHAPES", 2)
    model = OpenvinoModel(digits(), 1, input_size=32)
    for batch in range(1, 6):
        assert model(images(batch)).shape == (batch, 10)
    assert set(model._forms) == {(1, 32, 32, 1), (2, 32, 32, 1), (None, 32, 32, 1)}
    for side in (40, 48):
        model(images(9, side))
    assert len(model._forms) == 3


def test_openvino_divides_batches_evenly_and_leaves_nobody_out() -> None:
    for threads in (1, 2, 3, 8, 64):
        for batch in range(1, 200):
            rows, streams = openvino.division(batch, threads)
            parts = -(-batch // rows)
            assert (parts - 1) * rows < batch <= parts * rows
            assert 1 <= rows <= openvino.PART_MOST and 1 <= streams <= threads
            assert streams == 1 or rows >= openvino.PART_LEAST


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_openvino_answers_large_batches_as_single_pictures(threads: int, fixed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(0, 10, (21,), generator=generator)
    x = images(10)[chosen] + 0.3 * torch.randn(21, 3, 32, 32, generator=generator)
    single = qzoo.compile(digits(), "openvino", 1, 1, 32)
    expected = torch.cat([single(row) for row in x.split(1)])
    model = qzoo.compile(digits(), "openvino", threads, len(x) if fixed else None, 32)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for logits in pool.map(model, [x] * 16):
            assert torch.equal(logits, expected)


def test_openvino_rounds_before_an_activation_without_a_pass_of_its_own() -> None:
    weights = "DIGITS_X86_V1"
    artifact = from_native(qzoo.mobilenet_v3_small(weights=weights, quantize=True))
    model = OpenvinoModel(artifact, 1, 1, 64)
    form = next(iter(model._forms.values()))
    for op in form.compiled.get_runtime_model().get_ordered_ops():
        facts = {k: str(getattr(v, "value", v)) for k, v in op.get_rt_info().items()}
        if facts["layerType"] in ("Subgraph", "Math"):
            assert "HardS" not in facts["originalLayersNames"], facts["originalLayersNames"]
    assert model.float_layers == ()


@pytest.mark.parametrize("runtime", QUICK)
def test_wrong_inputs_name_the_fix(runtime: str) -> None:
    model = qzoo.compile(digits(), runtime, threads=1, input_size=32)
    x = images(2)
    for wrong, fix in (
        (x.double(), "x.float"),
        (x.to(torch.uint8), "float32"),
        (x.to_sparse(), "x.to_dense"),
        (x.to("meta"), "x.cpu"),
        (x[0], r"\[N, 3, H, W\]"),
        (x[:, :1], r"\[N, 3, H, W\]"),
        (x[:0], r"\[N, 3, H, W\]"),
        (x.permute(0, 2, 3, 1), r"\[N, 3, H, W\]"),
        (x.numpy().astype(np.float64), r"x\.astype\(np\.float32\)"),
        (x.numpy().astype(">f4"), r"x\.astype\(np\.float32\)"),
        (np.zeros((2, 3, 32, 32), np.uint8), "The input is uint8.*float32"),
        (x.numpy()[0], r"\(3, 32, 32\).*\[N, 3, H, W\]"),
        (x.numpy()[:, :1], r"\[N, 3, H, W\]"),
        (x.numpy()[:0], r"\[N, 3, H, W\]"),
        (x.numpy().transpose(0, 2, 3, 1), r"\[N, 3, H, W\]"),
        (np.ma.masked_array(x.numpy()), "not MaskedArray"),
        (x.tolist(), "NumPy array or a torch tensor, not list"),
        (None, "not NoneType"),
    ):
        with pytest.raises(qzoo.ArgumentError, match=fix):
            model(wrong)  # type: ignore[call-overload]


@pytest.mark.parametrize("runtime", [*QUICK, *LONG])
def test_arrays_give_arrays_of_the_same_bits(runtime: str) -> None:
    if runtime not in qzoo.available_runtimes():
        pytest.skip(f"{runtime} is not installed")
    batch = 1 if runtime == "executorch" else None
    model = qzoo.compile(digits(), runtime, threads=1, batch_size=batch, input_size=64)
    for x in (pictures()[:1], pictures()[2:3]) if batch else (pictures()[:1], pictures()):
        logits, array = model(x), model(x.numpy())
        assert type(logits) is Tensor and type(array) is np.ndarray
        assert array.dtype == np.float32 and np.array_equal(array, logits.numpy())
    kept = array.copy()
    array += 1  # it is the caller's own
    assert np.array_equal(model(x.numpy()), kept) and np.array_equal(array, kept + 1)
    with pytest.raises(qzoo.ArgumentError, match=r"2 images|NaN"):
        model(np.full((2, 3, 64, 64), np.nan, np.float32))


def _unaligned(x: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"." + x.tobytes(), np.float32, offset=1).reshape(x.shape)


def _read_only(x: np.ndarray) -> np.ndarray:
    (y := x.copy()).flags.writeable = False
    return y


def _memory_map(x: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", x)
        return np.load(Path(folder) / "x.npy", mmap_mode="c")


ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Fortran's order": np.asfortranarray,
    "pixels in a row": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(
        0, 3, 1, 2
    ),
    "every other": lambda x: np.repeat(x, 2, axis=0)[::2],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "unaligned": _unaligned,
    "read-only": _read_only,
    "memory map": _memory_map,
    "one repeated": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("runtime", QUICK)
def test_arrays_lie_in_memory_as_they_like(runtime: str) -> None:
    model = qzoo.compile(digits(), runtime, threads=1, input_size=64)
    x = pictures().numpy()
    for what, change in ARRAYS.items():
        given = change(x)
        plain = np.array(given, order="C", subok=False)
        assert np.array_equal(model(given), model(plain)), what


@pytest.mark.parametrize("runtime", QUICK)
def test_layouts_that_mean_the_same_give_the_same(runtime: str) -> None:
    model = qzoo.compile(digits(), runtime, threads=1, input_size=32)
    x = images(2)
    expected = model(x)
    assert torch.equal(model(x.to(memory_format=torch.channels_last)), expected)
    unaligned = torch.cat([torch.zeros(1), x.flatten()])[1:].view_as(x)
    assert unaligned.data_ptr() % 16
    assert torch.equal(model(unaligned), expected)
    strided = torch.randn(4, 3, 32, 32)
    strided[::2] = x
    assert torch.equal(model(strided[::2]), expected)
    negative = torch.complex(x, -x).conj().imag  # its memory holds the numbers with another sign
    assert negative.is_neg() and torch.equal(model(negative), expected)
    assert torch.equal(model(x.clone().requires_grad_()), expected)
    assert not model(x.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize("runtime", QUICK)
def test_results_are_the_callers_own(runtime: str) -> None:
    model = qzoo.compile(digits(), runtime, threads=1, input_size=32)
    first = model(images(1))
    kept = first.clone()
    model(images(1) * 2)
    assert torch.equal(first, kept)
    (first * torch.ones(1, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("runtime", QUICK)
def test_eight_threads_share_one_model(runtime: str) -> None:
    model = qzoo.compile(digits(), runtime, threads=1, input_size=32)
    inputs = [images(8)[n % 7 : n % 7 + 1 + n % 2] for n in range(14)]
    expected = [model(x) for x in inputs]

    def work(offset: int) -> bool:
        order = [(n + offset) % len(inputs) for n in range(4 * len(inputs))]
        if offset % 2:
            return all(np.array_equal(model(inputs[n].numpy()), expected[n]) for n in order)
        return all(torch.equal(model(inputs[n]), expected[n]) for n in order)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


@pytest.mark.parametrize("runtime", QUICK)
def test_nothing_of_the_process_changes(runtime: str) -> None:
    torch.set_num_threads(2)
    before = (torch.get_num_threads(), torch.backends.quantized.engine, torch.get_rng_state())
    model = qzoo.compile(digits(), runtime, threads=1, input_size=32)
    model(images(2))
    assert torch.get_num_threads() == before[0]
    assert torch.backends.quantized.engine == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    if hasattr(os, "sched_getaffinity"):
        assert len(os.sched_getaffinity(0)) == os.cpu_count()


@pytest.mark.parametrize("runtime", QUICK)
@pytest.mark.extended
def test_compiling_again_and_again_does_not_pile_up(runtime: str) -> None:
    def compile_and_run(times: int) -> float:
        for _ in range(times):
            if runtime == "torch":
                model: CompiledModel = TorchModel(digits(), 1, 1, 32, "x86")
            else:
                model = qzoo.compile(digits(), runtime, 1, 1, 32)
            model(images(1))
        del model
        gc.collect()
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    if not Path("/proc/self/status").exists():
        pytest.skip("reads its memory from /proc")
    # OpenVINO takes half a second for each, so there are fewer of them.
    several = 6 if runtime == "openvino" else 20
    warm = compile_and_run(several // 2)
    half = compile_and_run(several)
    # Weights, program and working memory take more than 1 MiB, so that kept models would show.
    assert compile_and_run(several) - half < 0.6 * several, (warm, half)


def test_a_layer_in_float_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the quantization of one convolution's weight away and asks the runtimes about it."""
    import onnx
    from onnx import numpy_helper

    from qzoo.runtimes import source

    def partly_float(*args: Any, **kwargs: Any) -> bytes:
        proto = onnx.load_from_string(onnx_bytes(*args, **kwargs))
        graph = proto.graph
        (node,) = (n for n in graph.node if "conv5.0.weight" in n.input)
        values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        scale = values[node.input[1]].reshape(-1, 1, 1, 1)
        weight = values["conv5.0.weight"].astype("float32") * scale
        graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
        graph.node.remove(node)
        return proto.SerializeToString()

    monkeypatch.setattr(source, "onnx_bytes", partly_float)
    for runtime in ("onnxruntime", "openvino"):
        model = qzoo.compile(digits(), runtime, threads=1, input_size=32)
        assert model.float_layers == ("conv5.0",), runtime


def test_memory_of_a_fresh_process() -> None:
    figures = footprint(digits(), "torch", 1, 1, (32, 32))
    assert 100 < figures["peak_mib"] < 4000
    assert 0 < figures["model_mib"] < figures["peak_mib"]


def test_native_reference_artifact_and_path_are_all_taken(tmp_path: Path) -> None:
    native = qzoo.shufflenet_v2_x0_5(weights="DIGITS_X86_V1", quantize=True)
    qzoo.save(native, tmp_path / "model.safetensors")
    x = images(2)
    expected = qzoo.compile(native, "onnxruntime", 1)(x)
    compiled = qzoo.compile(digits(), "onnxruntime", 1)
    for model in (
        build_reference(native),
        digits(),
        tmp_path / "model.safetensors",
        str(tmp_path / "model.safetensors"),
        compiled,
    ):
        assert torch.equal(qzoo.compile(model, "onnxruntime", 1)(x), expected)


def test_models_that_are_not_int8_are_refused(tmp_path: Path) -> None:
    with quiet(), pytest.raises(qzoo.ArtifactError, match="float"):
        qzoo.compile(qzoo.resnet18(), "torch")
    with pytest.raises(qzoo.ArtifactError, match=r"none\.safetensors"):
        qzoo.compile(tmp_path / "none.safetensors", "torch")
    with pytest.raises(qzoo.ArgumentError, match="not int"):
        qzoo.compile(3, "torch")  # type: ignore[arg-type]


def test_uncalibrated_models_run() -> None:
    model = qzoo.compile(uncalibrated("mobilenet_v3_small"), "onnxruntime", input_size=32)
    assert model(images(2)).shape == (2, 1000)
