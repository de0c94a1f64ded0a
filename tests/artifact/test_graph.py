"""Graphs in artifacts: every file's whole, whatever made it; and what is refused of others."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qzoo
from qzoo.artifact.blueprints import FILE
from qzoo.artifact.format import ModelInfo
from qzoo.artifact.graph import Graph, Node
from qzoo.artifact.grid import Grid
from qzoo.artifact.interpret import interpret
from qzoo.artifact.shapes import Open, window
from qzoo.models.blueprints import packed_blueprints
from qzoo.native.model import from_native, to_native
from qzoo.reference import build_reference, compare_layers
from qzoo.reference.compare import reference_outputs
from tests.helpers import commands, places, zoo
from tests.helpers.artifact_parts import old_parts, put_together, take_apart
from tests.helpers.graphs import Maker, any_artifact, any_graph, changed


def steps_apart(artifact: qzoo.Artifact, images: torch.Tensor) -> int:
    """Runs each node on the reference model's integers; returns the largest difference."""
    expected = reference_outputs(build_reference(artifact), images)
    apart = [0]

    def see(name: str, value: np.ndarray) -> np.ndarray | None:
        if name not in expected:
            return None
        wanted = expected[name].numpy()
        apart.append(int(np.abs(value.astype(int) - wanted).max()))
        return wanted

    interpret(artifact.graph, images.numpy(), see)
    assert len(apart) > 10
    return max(apart)


@pytest.mark.parametrize("name", zoo.with_large(zoo.BUILDERS))
def test_the_file_is_the_whole_model(name: str, tmp_path: Path) -> None:
    images = zoo.small_images(name)
    kwargs = {"aux_logits": False} if name in zoo.WITH_AUX else {}
    native = zoo.eager_ptq(zoo.float_model(name, slim=True, **kwargs), images)
    artifact, path, old = from_native(native), tmp_path / "new", tmp_path / "old"
    artifact.write(path)
    read = qzoo.Artifact.read(path)
    assert read.to_bytes() == path.read_bytes()
    again = to_native(read)
    assert [type(m) for m in again.modules()] == [type(m) for m in native.modules()]
    with zoo.quiet():
        assert torch.equal(again(images), native(images))
        values = native.state_dict()
        assert list(values) == list(again.state_dict())
        for key, value in again.state_dict().items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, values[key]), key
    # A file of version 1 becomes the same file, and the numpy interpreter agrees node by node.
    old.write_bytes(put_together(old_parts(artifact)))
    assert qzoo.Artifact.read(old).to_bytes() == path.read_bytes()
    assert steps_apart(read, images) <= 1


def test_auxiliary_classifiers_are_left_out(tmp_path: Path) -> None:
    images = zoo.small_images("googlenet")
    native = zoo.eager_ptq(zoo.float_model("googlenet"), images)
    qzoo.save(native, tmp_path / "m.safetensors")
    artifact = qzoo.Artifact.read(tmp_path / "m.safetensors")
    assert artifact.info.builder_kwargs["aux_logits"] is False
    assert not [name for name in artifact.tensors if "aux" in name]
    with zoo.quiet():
        assert torch.equal(to_native(artifact)(images), native(images))


def test_stored_blueprints_are_those_of_the_builders() -> None:
    stored = Path(qzoo.artifact.__path__[0]) / FILE
    # What they hold: xz packs the same bytes differently from version to version.
    found, made = (lzma.decompress(packed) for packed in (stored.read_bytes(), packed_blueprints()))
    assert found == made, "run: python -m qzoo.models.blueprints"


def test_embedded_models_are_of_this_version() -> None:
    for path in places.EMBEDDED.glob("*.safetensors"):
        assert take_apart(path.read_bytes()).header["version"] == 3


def test_convert_brings_old_files_up_to_date(tmp_path: Path) -> None:
    (path,) = places.EMBEDDED.glob("shufflenet*.safetensors")
    native = qzoo.load(path)
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    old.write_bytes(put_together(old_parts(from_native(native))))
    assert commands.run("convert", old, new)[0] == 0
    assert new.read_bytes() == from_native(native).to_bytes()
    assert take_apart(new.read_bytes()).header["version"] == 3


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("quant", {"op": "functional"}, "is a functional"),
        ("conv1.0", {"op": "quantize"}, "is a quantize"),
        ("conv1.0", {"stride": (1, 1)}, "stride"),
        ("conv1.0", {"padding": (0, 1)}, "padding"),
        ("conv1.0", {"groups": 3}, "groups"),
        ("conv1.2", {"op": "dropout"}, "is a dropout"),
        ("stage2.0.cat", {"op": "identity"}, "is a identity"),
        ("fc", None, "no layer for 'fc'"),
    ],
)
def test_layers_that_are_not_the_architectures(
    name: str, fields: dict[str, Any] | None, words: str
) -> None:
    artifact = from_native(zoo.uncalibrated("shufflenet_v2_x0_5", num_classes=10))
    layers, tensors = dict(artifact.layers), dict(artifact.tensors)
    if fields is None:
        del layers[name]
    else:
        layers[name] = dataclasses.replace(layers[name], **fields)
    if fields is None or "op" in fields:
        tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{name}.")}
    else:
        weight = tensors[f"{name}.weight"]
        tensors[f"{name}.weight"] = weight[:, :1].contiguous() if "groups" in fields else weight
    changed = dataclasses.replace(artifact, layers=layers, tensors=tensors)
    with pytest.raises(qzoo.ArtifactError, match=words):
        changed.to_bytes()


# Any graph.


def test_any_graph_comes_back(tmp_path: Path) -> None:
    artifact = any_artifact()
    artifact.write(tmp_path / "m.safetensors")
    read = qzoo.Artifact.read(tmp_path / "m.safetensors")
    assert read.graph.nodes == artifact.graph.nodes and read.to_bytes() == artifact.to_bytes()
    assert read.info.architecture is None
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert steps_apart(read, images) <= 1
    expected = interpret(read.graph, images.numpy())
    with pytest.warns(qzoo.errors.BackendWarning, match="no builder"):
        model = qzoo.load(tmp_path / "m.safetensors")
    assert np.abs(model(images).numpy() - expected).max() <= 2 * 0.02 * 1.001
    assert qzoo.as_artifact(model).to_bytes() == artifact.to_bytes()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_any_graph_runs(runtime: str, tmp_path: Path) -> None:
    artifact = any_artifact()
    artifact.write(tmp_path / "m.safetensors")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = interpret(artifact.graph, images.numpy())
    compiled = qzoo.compile(tmp_path / "m.safetensors", runtime=runtime)
    assert np.abs(compiled(images).numpy() - expected).max() <= 2 * 0.02 * 1.001


def test_what_runs_any_graph() -> None:
    artifact = any_artifact()
    with pytest.raises(qzoo.ArgumentError, match="comes from none: choose another runtime"):
        qzoo.compile(artifact, "torch")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    compiled = qzoo.compile(artifact)
    assert compiled.runtime != "torch" and compiled.why is not None
    assert np.abs(compiled(images).numpy() - interpret(artifact.graph, images.numpy())).max() < 0.05


@pytest.mark.parametrize("command", ["info", "verify", "classify", "export", "benchmark"])
def test_commands_take_any_graph(command: str, tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    any_artifact().write(path)
    words: dict[str, list[object]] = {
        "classify": [places.DIGITS[0], "--model", path],
        "export": [path, "--to", "onnx", "--out", tmp_path / "any.onnx"],
        "benchmark": [path, "--runtime", "onnxruntime", "--rounds", 1, "--no-memory"],
    }
    with zoo.quiet():
        code, out, err = commands.run(command, *words.get(command, [path]))
    assert code == 0, err
    assert "None" not in out


def test_the_documents_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (places.ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (code,) = (
        part for part in re.findall(r"```python\n(.*?)```", text, re.S) if "from_graph" in part
    )
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    images = np.zeros((1, 3, 2, 2), np.float32)
    images[:, 0] = 1.0
    logits = interpret(qzoo.Artifact.read("colours.safetensors").graph, images)
    assert np.allclose(logits, [[1.0, 0.0]])


def test_sizes_that_do_not_fit() -> None:
    artifact = any_artifact()
    with pytest.raises(qzoo.ArgumentError, match=r"30x30.*'sum'"):
        artifact.graph.sized(30, 30)
    with pytest.raises(qzoo.ArgumentError, match=r"do not fit.*'pool'"):
        artifact.graph.sized(2, 2)
    assert artifact.graph.sized(64, 96)["average"][2:] == (8, 12)


def test_open_sizes_are_those_of_every_input() -> None:
    for kernel, stride, padding, dilation, ceil in [
        (3, 2, 1, 1, False), (2, 2, 0, 1, False), (3, 2, 0, 1, True), (5, 3, 2, 1, False),
        (3, 1, 1, 2, False), (1, 4, 0, 1, False), (2, 2, 0, 1, True),
    ]:  # fmt: skip
        args = (kernel, stride, padding, padding, dilation, ceil)
        size = window(window(Open("height"), *args), 3, 2, 1, 1)
        assert isinstance(size, Open)
        for height in range(20, 60):
            wanted = window(window(height, *args), 3, 2, 1, 1)
            assert (height + size.shift) // size.divisor == wanted


Change = Callable[[Maker], "list[Node] | None"]


def without(name: str) -> Change:
    return lambda m: [node for node in m.nodes.values() if node.name != name]


def with_(node: str, /, **fields: Any) -> Change:
    return lambda m: changed(m, node, **fields)


def with_attributes(name: str, **fields: Any) -> Change:
    return lambda m: changed(m, name, attributes={**m.nodes[name].attributes, **fields})


def tensor(name: str, array: Any) -> Change:
    def change(m: Maker) -> None:
        m.tensors[name] = np.asarray(array)

    return change


def heavy(m: Maker) -> None:
    """A layer whose sums 32 bits do not hold."""
    m.tensors["head.weight"] = np.full((5, 70_000), 127, np.int8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("act"), "'act'"),
        (without("logits"), "does not end in a dequantize"),
        (with_("act", inputs=("head",)), "no earlier node"),  # a cycle
        (with_("a", inputs=("a",)), "no earlier node"),
        (with_("b", name="a"), "called 'a'"),
        (with_("b", name="input"), "called 'input'"),
        (with_("b", op="exec"), "unknown operation"),
        (with_("b", op=[]), "unknown operation"),
        (with_("b", name=7), "impossible name"),
        (with_("b", name="b\ud800"), "impossible name"),  # which has no UTF-8
        (with_("b", attributes={}), "other attributes"),
        (with_("all", attributes={"keep_dimensions": True, "x": 1}), "other attributes"),
        (with_("sum", inputs=("b",)), "1 inputs"),
        (with_("q", inputs=("input", "input")), "2 inputs"),
        (with_("q", inputs=("stem",)), "no earlier node"),
        (with_("stem", inputs=("input",)), "float"),
        (with_("logits", grid=Grid(1.0, 0)), "float and has a scale"),
        (with_("head", grid=None), "no scale"),
        (with_("head", grid=Grid(0.0, 0)), "impossible scale"),
        (with_("head", grid=Grid(float("nan"), 0)), "impossible scale"),
        (with_("head", grid=Grid(1.0, 256)), "zero point or bounds"),
        (with_("head", grid=Grid(1.0, 0, 9, 8)), "zero point or bounds"),
        (with_("head", grid=Grid(1.0, True)), "zero point or bounds"),
        (with_("a", grid=Grid(0.025, 90)), "relu"),
        (with_("pool", grid=Grid(0.026, 90, 90)), "moves integers"),
        (with_("cut", grid=Grid(0.02, 101, 101)), "moves integers"),
        (with_attributes("stem", stride=[0, 1]), "impossible stride"),
        (with_attributes("stem", stride=[1]), "impossible stride"),
        (with_attributes("stem", padding=[1, 1]), "impossible padding"),
        (with_attributes("stem", dilation=[1, 10**9]), "impossible dilation"),
        (with_attributes("stem", groups=0), "impossible groups"),
        (with_attributes("stem", groups=3), "groups"),
        (with_attributes("stem", relu=1), "impossible relu"),
        (with_attributes("half", start=10, stop=10), "channels 10 to 10"),
        (with_attributes("half", start=2, stop=17), "channels 2 to 17 of 16"),
        (with_attributes("act", function="exec"), "impossible function"),
        (with_attributes("act", function="gelu"), "not the function"),
        (with_attributes("pool", padding=[2, 2]), "half its window"),
        (with_attributes("pool", kernel=[30_000, 2]), "usual size"),
        (with_attributes("average", ceil_mode=None), "impossible ceil_mode"),
        (tensor("b.weight", np.zeros((16, 8, 1, 1), np.int8)), "groups"),
        (tensor("head.weight", np.zeros((5, 39), np.int8)), "39 features"),
        (tensor("head.weight", np.zeros((5, 40), np.int16)), "dtype int16"),
        (tensor("head.weight", np.zeros((5, 40, 1), np.int8)), "impossible shape"),
        (tensor("head.weight", np.zeros((0, 40), np.int8)), "impossible shape"),
        (tensor("head.weight_scale", np.ones(4, np.float32)), "weight_scale"),
        (tensor("head.weight_scale", np.zeros(5, np.float32)), "weight scales"),
        (tensor("head.bias", np.full(5, np.inf, np.float32)), "finite"),
        (tensor("head.weight_zero_point", np.ones(2, np.int8)), "weight_zero_point"),
        (tensor("sigmoid.table", np.zeros(256, np.uint8)), "not the function"),
        (tensor("sigmoid.table", np.zeros(255, np.uint8)), "table of dtype"),
        (tensor("stray.weight", np.zeros(1, np.int8)), "belongs to no node"),
        (lambda m: [m.tensors.pop("gate.weight"), *m.nodes.values()][1:], "lacks its tensor 'gate"),
        (lambda m: [], "0 nodes"),
        (lambda m: [*m.nodes.values(), Node("x", "dequantize", ("q",))], "feeds no other"),
        (lambda m: [Node(f"n{i}", "quantize", ("input",), Grid(1.0, 0)) for i in range(10_001)],
         "10001 nodes"),
    ],
)  # fmt: skip
def test_what_is_no_graph_is_refused(change: Change, words: str) -> None:
    made = any_graph()
    nodes = change(made)
    with pytest.raises(qzoo.ArtifactError, match=words) as caught:
        Graph.of(made.nodes.values() if nodes is None else nodes, made.tensors)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_absurd_sizes_end_before_anything_is_made() -> None:
    grid = Grid(1.0, 0)
    start = [Node("q", "quantize", ("input",), grid)]
    wide = [Node(f"c{i}", "concat", (f"c{i - 1}" if i else "q",) * 64, grid) for i in range(1000)]
    end = [
        Node("m", "mean", ("c999",), grid, {"keep_dimensions": False}),
        Node("d", "dequantize", ("m",)),
    ]
    with pytest.raises(qzoo.ArtifactError, match="absurd size"):
        Graph.of([*start, *wide, *end], {})
    padding = {"padding": [32_000] * 4}
    large = [
        Node("p", "pad", ("q",), grid, padding),
        Node("m", "mean", ("p",), grid, {"keep_dimensions": False}),
    ]
    with pytest.raises(qzoo.ArtifactError, match="more than 1,073,741,824 values"):
        Graph.of([*start, *large, Node("d", "dequantize", ("m",))], {})


def test_what_goes_with_a_graph_is_checked() -> None:
    made = any_graph()
    nodes = list(made.nodes.values())
    with pytest.raises(qzoo.ArtifactError, match="backend"):
        qzoo.Artifact.from_graph(nodes, made.tensors, ModelInfo(None))
    with pytest.raises(qzoo.ArtifactError, match="5 logits and 2 class names"):
        info = ModelInfo(None, backend="onednn", classes=["a", "b"])
        qzoo.Artifact.from_graph(nodes, made.tensors, info)
    info = ModelInfo(None, backend="onednn")
    artifact = qzoo.Artifact.from_graph(nodes, made.tensors, info)
    before = artifact.digest()
    made.tensors["head.weight"][:] = 0  # what was checked stays what it is
    assert artifact.digest() == before
    tensors = {name: torch.from_numpy(array) for name, array in any_graph().tensors.items()}
    assert qzoo.Artifact.from_graph(nodes, tensors, info).digest() == before


def test_sums_that_32_bits_do_not_hold() -> None:
    nodes = [
        Node("q", "quantize", ("input",), Grid(1.0, 0)),
        Node("f", "flatten", ("q",), Grid(1.0, 0)),
        Node("c", "linear", ("f",), Grid(1.0, 0), {"relu": False}),
        Node("d", "dequantize", ("c",)),
    ]
    side = 160  # 3 * 160 * 160 * 127 * 255 is above 2^31
    weight = np.full((2, 3 * side * side), 127, np.int8)
    tensors = {"c.weight": weight, "c.weight_scale": np.array(1.0, np.float32)}
    with pytest.raises(qzoo.ArtifactError, match="32 bits"):
        Graph.of(nodes, tensors, (side, side))
    half = {**tensors, "c.weight": weight // 2}
    assert Graph.of(nodes, half, (side, side)).shapes["c"] == (Open("batch"), 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h.update(nodes={}), "no list"),
        (lambda h: h.update(nodes=[None]), "no table or has no name"),
        (lambda h: h["nodes"][3].update(op="eval"), "unknown operation"),
        (lambda h: h["nodes"][3].update(op=[]), "unknown operation"),
        (lambda h: h["nodes"][3].update(name=""), "empty name"),
        (lambda h: h["nodes"][3].update(name="x" * 201), "very long"),
        (lambda h: h["nodes"][3].update(extra=1), "exactly the fields"),
        (lambda h: h["nodes"][3].pop("low"), "exactly the fields"),
        (lambda h: h["nodes"][3].update(float=False), "exactly the fields"),
        (lambda h: h["nodes"][0].update(float=True), "exactly the fields"),
        (lambda h: h["nodes"][3].update(inputs="act"), "no list of names"),
        (lambda h: h["nodes"][3].update(inputs=[1]), "no list of names"),
        (lambda h: h.update(input_size=[32]), "input size"),
        (lambda h: h.update(input_size=[0, 32]), "input size"),
        (lambda h: h.update(input_size="32"), "input size"),
        (lambda h: h.update(input_size=[33, 35]), "usual size|do not fit|fits no"),
        (lambda h: h.update(classes=["a"]), "5 logits and 1 class names"),
        (lambda h: h.update(architecture=7), "architecture"),
    ],
)
def test_headers_that_are_refused(
    change: Callable[[dict[str, Any]], object], words: str, tmp_path: Path
) -> None:
    parts = take_apart(any_artifact().to_bytes())
    change(parts.header)
    path = tmp_path / "m.safetensors"
    path.write_bytes(put_together(parts))
    with pytest.raises(qzoo.ArtifactError, match=words):
        qzoo.Artifact.read(path)


def test_a_reader_in_another_language(tmp_path: Path) -> None:
    """examples/read_artifact.js knows docs/artifact.md and nothing else."""
    if shutil.which("node") is None:
        pytest.skip("needs Node")
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    images.tofile(tmp_path / "images.f32")
    any_artifact().write(tmp_path / "any.safetensors")
    script = places.ROOT / "examples" / "read_artifact.js"
    assert len(script.read_text(encoding="utf-8").splitlines()) < 300
    for path in [*places.EMBEDDED.glob("*.safetensors"), tmp_path / "any.safetensors"]:
        artifact = qzoo.Artifact.read(path)
        expected: dict[str, str] = {}

        def see(name: str, value: np.ndarray, into: dict[str, str] = expected) -> None:
            if value.dtype == np.uint8:
                into[name] = hashlib.sha256(np.ascontiguousarray(value)).hexdigest()

        logits = interpret(artifact.graph, images, see)
        command = [
            "node",
            str(script),
            str(path),
            str(tmp_path / "images.f32"),
            "32",
            "32",
            "hashes",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        *hashes, first, second = done.stdout.splitlines()
        assert dict(line.split(" ") for line in hashes) == expected
        classes = artifact.info.classes
        assert isinstance(classes, list)
        assert [first, second] == [classes[i] for i in logits.argmax(1)]
        assert json.dumps(artifact.header())  # plain JSON


def test_layers_agree_with_native_modules() -> None:
    images = zoo.small_images("mobilenet_v3_small")
    native = zoo.eager_ptq(zoo.float_model("mobilenet_v3_small"), images)
    layers = compare_layers(native, build_reference(native), images)
    assert {"quantize", "conv2d", "hard_swish", "hard_sigmoid", "add", "mul", "mean", "linear"} == {
        layer.op for layer in layers
    }
