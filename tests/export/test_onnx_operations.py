"""Every operation of graphs in ONNX, in all its forms, against the interpreter's integers."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

import qzoo
from qzoo.artifact.compare import integers
from qzoo.artifact.interpret import interpret
from qzoo.artifact.operations import OPERATIONS
from qzoo.export.onnx import to_onnx
from qzoo.export.onnx.compare import compare_onnx_layers
from qzoo.reference import build_reference, reference_outputs
from qzoo.runtimes.source import OnnxSource
from tests.helpers.branches import GRAPHS, NAMES, SIZE
from tests.helpers.graphs import any_artifact
from tests.helpers.without_torch import python

onnx = pytest.importorskip("onnx")

RUNTIMES = ("onnxruntime", "openvino")
MADE = [*GRAPHS, "any"]


@functools.cache
def made(name: str) -> qzoo.Artifact:
    return any_artifact() if name == "any" else GRAPHS[name]().artifact()


def pictures(name: str) -> np.ndarray:
    size = (32, 32) if name == "any" else SIZE
    return np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)


def test_all_operations_are_here() -> None:
    from qzoo.export.onnx import graph  # imports the files that register them

    assert set(graph.EMITTERS) == set(OPERATIONS)
    assert {node.op for name in MADE for node in made(name).graph.nodes} == set(OPERATIONS)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", MADE)
def test_every_node_is_within_a_step_of_the_interpreter(name: str, runtime: str) -> None:
    pytest.importorskip(runtime)
    layers = compare_onnx_layers(made(name), pictures(name), None, runtime)
    assert [d for d in layers if d.max_steps > 1] == []
    assert len(layers) > 8


@pytest.mark.parametrize("name", MADE)
def test_so_is_the_reference_model(name: str) -> None:
    import torch

    from qzoo.reference import differences

    artifact, images = made(name), pictures(name)
    reference = build_reference(artifact)
    known = {k: torch.from_numpy(v) for k, v in integers(artifact.graph, images).items()}
    given = reference_outputs(reference, torch.from_numpy(images), known)
    layers = differences(reference, known, given)
    # One table holds other integers than its function, which reference models compute.
    assert [d for d in layers if d.max_steps > 1 + (d.name == "other")] == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", MADE)
def test_whole_graphs_answer_as_the_interpreter(name: str, runtime: str) -> None:
    """Here runtimes fuse what the comparison of single nodes keeps apart."""
    pytest.importorskip(runtime)
    artifact, images = made(name), pictures(name)
    compiled = qzoo.compile(artifact, runtime, threads=1, input_size=images.shape[2:])
    head = artifact.graph.nodes[-2].grid
    assert head is not None
    gap = np.abs(np.asarray(compiled(torch.from_numpy(images))) - interpret(artifact.graph, images))
    assert gap.max() <= 3.001 * head.scale  # a step of each of the up to three before
    # Only OpenVINO computes layers with weight zero points in float.
    assert set(compiled.float_layers) <= {"zeros"}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_in_no_other_form(runtime: str) -> None:
    proto = to_onnx(made("convolutions"), runtime=runtime)
    assert "Pad" not in {node.op_type for node in proto.graph.node}
    onnx.checker.check_model(proto, full_check=True)
    proto = to_onnx(made("functions"), runtime=runtime)
    assert sum(node.op_type == "Gather" for node in proto.graph.node) == 1


def test_names_are_kept_where_they_are_looked_for() -> None:
    proto = to_onnx(made("names"))
    onnx.checker.check_model(proto, full_check=True)
    assert [o.name for o in proto.graph.output] == ["logits"]
    layers = {n.name for n in proto.graph.node if n.op_type == "Conv"}
    assert layers == {*NAMES, "wide"}
    weights = {t.name for t in proto.graph.initializer}
    assert {f"{name}.weight" for name in layers} <= weights


def test_layers_are_found_among_openvinos_names() -> None:
    source = OnnxSource(made("names"), "openvino")
    text = "Multiply_1,/block/conv,1/WithoutBiases,Relu_2,wide/steps,x.in,logits_2,uint8_11"
    assert source.layers_of(text) == {"/block/conv,1", "wide", "x.in"}
    assert "Relu" in source.layers_without(source.layers_of(text))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_preprocessing_of_two_inputs(runtime: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    artifact = made("affines")
    pixels = np.random.default_rng(1).integers(0, 256, (2, *SIZE, 3)).astype(np.uint8)
    preset = artifact.info.transforms
    assert preset is not None
    images = (pixels / 255 - preset["mean"]) / preset["std"]
    expected = interpret(artifact.graph, images.transpose(0, 3, 1, 2).astype(np.float32))
    proto = to_onnx(artifact, runtime=runtime, preprocess=True)
    session = ort.InferenceSession(proto.SerializeToString())
    (given,) = session.run(None, {"input": pixels})
    assert np.abs(given - expected).max() <= 3.001 * 0.05


def test_a_file_is_what_onnx_itself_would_write(tmp_path: Path) -> None:
    qzoo.export.export_onnx(made("any"), tmp_path / "any.onnx")
    content = (tmp_path / "any.onnx").read_bytes()
    proto = onnx.load_from_string(content)
    assert proto.SerializeToString(deterministic=True) != b"" and len(proto.graph.initializer) > 40
    again = onnx.ModelProto.FromString(proto.SerializeToString(deterministic=True))
    assert again == proto and len(content) == len(again.SerializeToString())
    assert onnx.numpy_helper.to_array(
        next(t for t in proto.graph.initializer if t.name == "b.weight")
    ).tolist() == (made("any").graph.tensors["b.weight"].tolist())


def test_no_pytorch_is_needed(tmp_path: Path) -> None:
    made("any").write(tmp_path / "any.safetensors")
    code = """
import sys
import numpy as np
from qzoo.artifact.format import Artifact
from qzoo.export import export_onnx
from qzoo.export.onnx.compare import compare_onnx_layers

artifact = Artifact.read(sys.argv[1])
export_onnx(artifact, sys.argv[2], preprocess=True)
images = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
found = compare_onnx_layers(artifact, images, None, "onnxruntime")
print(max(d.max_steps for d in found), len(found))
"""
    pytest.importorskip("onnxruntime")
    printed = python(code, tmp_path / "any.safetensors", tmp_path / "any.onnx")
    steps, count = printed.split()
    assert int(steps) <= 1 and int(count) > 10
    onnx.checker.check_model(tmp_path / "any.onnx", full_check=True)
