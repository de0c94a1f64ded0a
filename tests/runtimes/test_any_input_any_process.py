"""Pictures that hold no numbers are refused alike, and models go to other processes."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import qzoo
from qzoo.native.model import from_native, to_native
from qzoo.reference import build_reference
from qzoo.runtimes.torch_native import TorchModel
from tests.helpers import zoo

NAME = "shufflenet_v2_x0_5"
LONG = [pytest.param(name, marks=pytest.mark.extended) for name in ("inductor", "executorch")]


@pytest.fixture(scope="module")
def artifact() -> qzoo.Artifact:
    return from_native(zoo.uncalibrated(NAME, num_classes=5, backend=zoo.ENGINES[0]))


def make(kind: str, artifact: qzoo.Artifact) -> Callable[[Tensor], Tensor]:
    """Makes an int8 model ready: on a runtime, on an engine, as a module or the reference."""
    name, _, engine = kind.partition(" ")
    if name == "native":
        return to_native(artifact, engine)
    if name == "reference":
        return copy.deepcopy(build_reference(artifact, ste=bool(engine)))
    if name == "torch":
        return TorchModel(artifact, engine=engine)
    if name not in qzoo.available_runtimes():
        pytest.skip(f"{name} is not installed")
    return qzoo.compile(artifact, name, input_size=32)


KINDS = [
    *(f"{name} {engine}" for name in ("native", "torch") for engine in zoo.ENGINES),
    *("reference", "reference ste", "libqzoo", "onnxruntime", "openvino"),
    *LONG,
]


@pytest.mark.filterwarnings("ignore::qzoo.errors.BackendWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_are_refused(kind: str, artifact: qzoo.Artifact) -> None:
    model = make(kind, artifact)
    images = zoo.small_images(NAME, 3)
    with torch.no_grad():
        expected = model(images)
        for value in (float("nan"), float("inf"), -float("inf")):
            damaged = images.clone()
            damaged[1, 2, 31, 5] = value
            with pytest.raises(qzoo.ArgumentError, match=r"1 of the 3 images .* \(number 1,"):
                model(damaged)
            with pytest.raises(qzoo.ArgumentError, match="3 of the 3 images"):
                model(torch.full_like(images, value))
            if isinstance(model, qzoo.runtimes.CompiledModel):
                with pytest.raises(qzoo.ArgumentError, match=r"1 of the 3 images .* \(number 1,"):
                    model(damaged.numpy())
        # What cancels in a sum, and finite values that overflow in one.
        opposite = images.clone()
        opposite[0, 0, 0, 0], opposite[2, 0, 0, 0] = float("inf"), -float("inf")
        with pytest.raises(qzoo.ArgumentError, match=r"2 of the 3 images .* \(number 0, 2,"):
            model(opposite)
        assert bool(torch.isfinite(model(torch.full_like(images, 3e38))).all())
        assert torch.equal(model(images), expected)


@pytest.mark.parametrize("runtime", ["libqzoo", "torch", "onnxruntime", "openvino"])
def test_compiled_models_are_copied_whole(runtime: str, artifact: qzoo.Artifact) -> None:
    if runtime not in qzoo.available_runtimes():
        pytest.skip(f"{runtime} is not installed")
    images = zoo.small_images(NAME, 2)
    model = qzoo.compile(artifact, runtime, threads=1, batch_size=2, input_size=32)
    twins = [pickle.loads(pickle.dumps(model))]
    if runtime == "torch":  # one mechanism does both
        twins.append(copy.deepcopy(model))
    for twin in twins:
        assert type(twin) is type(model)
        for name in ("threads", "batch_size", "size", "why", "runtime"):
            assert getattr(twin, name) == getattr(model, name)
        assert getattr(twin, "engine", None) == getattr(model, "engine", None)
        assert torch.equal(twin(images), model(images))
        assert np.array_equal(twin(images.numpy()), model(images.numpy()))


def _answer(model: Any, images: Any, answers: Any) -> None:
    answers.put(model(images).tolist())


@pytest.mark.extended
@pytest.mark.parametrize("kind", ["native", "libqzoo", "torch", "onnxruntime", "openvino"])
def test_models_go_to_spawned_processes(kind: str, artifact: qzoo.Artifact) -> None:
    if kind != "native" and kind not in qzoo.available_runtimes():
        pytest.skip(f"{kind} is not installed")
    model: Any = to_native(artifact)
    if kind != "native":
        model = qzoo.compile(artifact, kind, threads=1, input_size=32)
    images: Any = zoo.small_images(NAME, 2)
    if kind != "native":
        images = images.numpy()
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    process = spawn.Process(target=_answer, args=(model, images, answers))
    process.start()
    answer = answers.get(timeout=120)
    process.join(60)
    assert answer == model(images).tolist()


FORK = """
import os, sys, warnings
import torch
import qzoo
warnings.simplefilter("ignore")
model = qzoo.shufflenet_v2_x0_5(quantize=True, num_classes=4)
images = torch.zeros(8, 3, 64, 64)
compiled = qzoo.compile(model, sys.argv[1], threads=int(sys.argv[2]), input_size=64)
compiled(images)
child = os.fork()
if not child:
    compiled(images)
    compiled(images.numpy())
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.extended
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("runtime", "threads"),
    [("libqzoo", 2), ("libqzoo", 1), ("torch", 1), ("onnxruntime", 1), ("openvino", 1)],
)
def test_models_outlive_a_fork(runtime: str, threads: int, tmp_path: Path) -> None:
    if runtime not in qzoo.available_runtimes():
        pytest.skip(f"{runtime} is not installed")
    script = tmp_path / "fork.py"
    script.write_text(FORK, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "QZOO_HOME": str(tmp_path)}
    command = [sys.executable, str(script), runtime, str(threads)]
    subprocess.run(command, env=environment, timeout=120, check=True)


@pytest.fixture
def deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("engine", zoo.ENGINES)
@pytest.mark.parametrize("name", [NAME, "mobilenet_v3_small"])
def test_deterministic_algorithms_run_or_say_why_not(engine: str, name: str) -> None:
    images = zoo.small_images(name)
    model = zoo.uncalibrated(name, backend=engine)
    if engine in ("fbgemm", "x86"):
        with pytest.raises(qzoo.ArgumentError, match=r'results never vary.*backend="onednn"'):
            model(images)
        model = to_native(from_native(model), "onednn")
    assert torch.equal(model(images), model(images))


@pytest.mark.usefixtures("deterministic")
def test_the_engine_is_chosen_among_those_that_run(artifact: qzoo.Artifact) -> None:
    if not {*zoo.ENGINES} - {"fbgemm", "x86"}:
        pytest.skip("no engine but those")
    images = zoo.small_images(NAME)
    model = qzoo.compile(artifact, "torch", input_size=32)
    assert torch.equal(model(images), model(images))
