"""No call of qzoo changes the process it runs in."""

from __future__ import annotations

import copy
import functools
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import qzoo
from qzoo._core.optional import require
from qzoo._core.process import quiet, undisturbed
from qzoo._torch.threads import torch_threads
from qzoo.native import eager
from qzoo.runtimes.torch_native import TorchModel
from tests.helpers.calling import python
from tests.helpers.zoo import BUILDERS, ENGINES, engine, small_images, uncalibrated

OTHER_ENGINE = next((e for e in ENGINES if e != torch.backends.quantized.engine), ENGINES[0])


def process_state() -> dict[str, Any]:
    return {
        "engine": torch.backends.quantized.engine,
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),
        "random": random.getstate(),
        "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "filters": copy.copy(warnings.filters),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "showwarning": warnings.showwarning,
        "recursion": sys.getrecursionlimit(),
        "handlers": list(logging.root.handlers),
        "environment": {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
    }


@pytest.fixture
def untouched() -> Iterator[Callable[[], None]]:
    """Gives a check that everything process-wide is as it was when the test began."""
    before = process_state()

    def check() -> None:
        for what, value in process_state().items():
            assert value == before[what], f"{what} was changed"

    yield check
    check()


@pytest.mark.parametrize("name", BUILDERS)
def test_int8_model_is_built_without_a_forward_pass_and_warns_once(
    name: str, untouched: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_forward(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a forward pass ran")

    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        patch.setattr(nn.Module, "__call__", no_forward)
        warnings.simplefilter("always")
        model = qzoo.get_model_builder(name)(quantize=True)
    assert [w.category for w in caught] == [qzoo.UncalibratedWarning]
    assert caught[0].filename == __file__, "the warning should point at the caller"
    assert name in str(caught[0].message)
    untouched()
    assert not model.training
    with torch.no_grad():
        logits = model(small_images(name))
    assert logits.shape == (2, 1000) and logits.dtype == torch.float32
    assert bool(torch.isfinite(logits).all())
    assert len(logits[0].unique()) > 20
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("backend", ENGINES)
def test_building_saving_and_loading_for_another_engine(
    backend: str, untouched: Callable[[], None], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    model = uncalibrated("shufflenet_v2_x0_5", backend=backend)
    untouched()
    qzoo.save(model, path)
    untouched()
    qzoo.load(path)
    untouched()
    qzoo.load(path, backend=OTHER_ENGINE)
    untouched()
    qzoo.Artifact.read(path).to_bytes()


def test_failures_restore_the_engine(untouched: Callable[[], None], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    qzoo.save(uncalibrated("resnet18", num_classes=4), path)
    artifact = qzoo.Artifact.read(path)
    del artifact.layers["layer1.0.conv1"]
    with pytest.raises(qzoo.ArtifactError):
        qzoo.native.model.to_native(artifact, OTHER_ENGINE)
    untouched()
    with pytest.raises(qzoo.QzooError):
        uncalibrated("resnet18", no_such_keyword=1)
    untouched()
    with pytest.raises(qzoo.QzooError):
        qzoo.load(path, backend="tpu")


def test_two_models_without_weights_are_equal_whatever_the_seed() -> None:
    torch.manual_seed(1)
    first = uncalibrated("resnet18")
    torch.manual_seed(2)
    second = uncalibrated("resnet18")
    images = small_images("resnet18")
    with torch.no_grad():
        assert torch.equal(first(images), second(images))


def test_defaults_of_the_process_do_not_leak_into_a_model(tmp_path: Path) -> None:
    images = small_images("resnet18")
    path = tmp_path / "model.safetensors"
    model = uncalibrated("resnet18")
    qzoo.save(model, path)
    with torch.no_grad():
        expected = model(images)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        built, loaded = uncalibrated("resnet18"), qzoo.load(path)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        assert torch.equal(built(images), expected)
        assert torch.equal(loaded(images), expected)


def test_float_models_draw_like_any_module() -> None:
    torch.manual_seed(3)
    first = qzoo.resnet18()
    second = qzoo.resnet18()
    assert not torch.equal(first.fc.weight, second.fc.weight)
    torch.manual_seed(3)
    assert torch.equal(qzoo.resnet18().fc.weight, first.fc.weight)


def test_the_engine_of_the_user_stays_selected() -> None:
    with engine(OTHER_ENGINE):
        uncalibrated("resnet18")
        assert torch.backends.quantized.engine == OTHER_ENGINE


def runs_while_another_thread_packs(
    call: Callable[[], torch.Tensor], layer: nn.Module, path: Path, patch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, set[str]]:
    """Calls a model; amid the call another thread starts to load `path`, until the call's end.

    Returns what the call gave, and the engines that the process had meanwhile.
    """
    packing, over, seen = threading.Event(), threading.Event(), set()
    build = eager.build_native

    def slow(*args: Any) -> nn.Module:
        packing.set()
        over.wait(10)
        return build(*args)

    patch.setattr(eager, "build_native", slow)
    loader = threading.Thread(target=qzoo.load, args=(path,))

    def start(*_: Any) -> None:
        loader.start()
        packing.wait(0.3)
        seen.add(torch.backends.quantized.engine)

    handle = layer.register_forward_hook(start)
    try:
        with torch.no_grad():
            result = call()
    finally:
        over.set()
        loader.join()
        handle.remove()
    return result, seen


@pytest.mark.skipif(not {"x86", "qnnpack"} <= {*ENGINES}, reason="needs two kinds of engines")
@pytest.mark.parametrize("how", ["native", "copied", "compiled"])
@pytest.mark.parametrize(("own", "others"), [("x86", "qnnpack"), ("qnnpack", "x86")])
def test_loading_in_another_thread_leaves_a_running_model_its_engine(
    own: str,
    others: str,
    how: str,
    tmp_path: Path,
    untouched: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "other.safetensors"
    qzoo.save(uncalibrated("shufflenet_v2_x0_5", backend=others), path)
    images = small_images("resnet18")
    with engine(own):
        model: Any = uncalibrated("resnet18", backend=own)
        if how == "copied":
            model = copy.deepcopy(model)
        elif how == "compiled":
            compiled = TorchModel(qzoo.native.model.from_native(model), engine=own)
            model = compiled.model
        call = (lambda: compiled(images)) if how == "compiled" else (lambda: model(images))
        with torch.no_grad():
            expected = call()
        given, seen = runs_while_another_thread_packs(call, model.layer1, path, monkeypatch)
        assert torch.equal(given, expected)
        assert seen == {own}


@pytest.mark.skipif(not {"x86", "qnnpack"} <= {*ENGINES}, reason="needs two kinds of engines")
def test_models_of_all_engines_run_and_load_in_threads(
    tmp_path: Path, untouched: Callable[[], None]
) -> None:
    images = small_images("shufflenet_v2_x0_5")
    paths = {e: tmp_path / f"{e}.safetensors" for e in ("x86", "qnnpack")}
    for name, path in paths.items():
        qzoo.save(uncalibrated("shufflenet_v2_x0_5", num_classes=4, backend=name), path)
    models = {e: TorchModel(qzoo.Artifact.read(p), engine=e)
              for e, p in paths.items()}  # fmt: skip
    expected = {name: model(images) for name, model in models.items()}
    wrong: list[str] = []

    def work(name: str, other: str) -> None:
        for _ in range(10):
            if not torch.equal(models[name](images), expected[name]):
                wrong.append(name)
            qzoo.load(paths[other])

    threads = [
        threading.Thread(target=work, args=pair)
        for pair in (("x86", "qnnpack"), ("qnnpack", "x86"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "the threads wait for each other"
    assert not wrong


def test_a_model_may_be_loaded_while_one_runs_in_the_same_thread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    qzoo.save(uncalibrated("shufflenet_v2_x0_5", backend=OTHER_ENGINE), path)
    model: Any = uncalibrated("resnet18")
    model.layer1.register_forward_hook(lambda *_: qzoo.load(path) and None)
    with torch.no_grad():
        model(small_images("resnet18"))


def number_of_new_threads() -> int:
    numbers: list[int] = []
    thread = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return numbers[0]


def overlap(blocks: Sequence[Callable[[Callable[[], None]], None]], first_out: int) -> None:
    """Runs two blocks in threads of their own: the second one begins while the first one runs.

    Each is called with a function that it calls inside, which waits for the block's turn to end.
    """
    begin = [threading.Event() for _ in blocks]
    end = [threading.Event() for _ in blocks]

    def inside(index: int) -> None:
        begin[index].set()
        end[index].wait(10)

    threads = [
        threading.Thread(target=block, args=(functools.partial(inside, index),))
        for index, block in enumerate(blocks)
    ]
    for thread, begun in zip(threads, begin, strict=True):
        thread.start()
        begun.wait(10)
    for index in (first_out, 1 - first_out):
        end[index].set()
        threads[index].join()


@pytest.mark.parametrize("counts", [(3, 3), (3, 5), (3, None)])
@pytest.mark.parametrize("first_out", [0, 1])
def test_overlapping_calls_leave_the_number_of_threads(
    counts: tuple[int, int | None], first_out: int, untouched: Callable[[], None]
) -> None:
    before = torch.get_num_threads(), number_of_new_threads()
    during, after = {}, {}

    def work(index: int, inside: Callable[[], None]) -> None:
        with torch_threads(counts[index]):
            during[index] = torch.get_num_threads()
            inside()
        after[index] = torch.get_num_threads()

    overlap([functools.partial(work, index) for index in range(2)], first_out)
    assert during == {index: count or before[1] for index, count in enumerate(counts)}
    assert after == {0: before[1], 1: before[1]}
    assert (torch.get_num_threads(), number_of_new_threads()) == before


def test_concurrent_calls_of_compiled_models_leave_the_number_of_threads(
    untouched: Callable[[], None],
) -> None:
    before = number_of_new_threads()
    artifact = qzoo.native.model.from_native(uncalibrated("shufflenet_v2_x0_5"))
    images = small_images("shufflenet_v2_x0_5")
    models = [TorchModel(artifact, threads=n, engine=ENGINES[0]) for n in (3, 2)]
    threads = [
        threading.Thread(target=lambda m=m: [m(images) for _ in range(5)]) for m in models * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert number_of_new_threads() == before


@pytest.mark.parametrize("first_out", [0, 1])
def test_warnings_are_quiet_in_blocks_of_several_threads(
    first_out: int, untouched: Callable[[], None]
) -> None:
    def work(inside: Callable[[], None]) -> None:
        with quiet():
            inside()

    overlap([work, work], first_out)
    untouched()


DISTURBING = """
import logging, random, sys, torch, warnings
warnings.filterwarnings("ignore", message="of its own")
sys.setrecursionlimit(sys.getrecursionlimit() + 1000)
logging.warning("gives the root logger a handler")
torch.rand(3)
made = torch.zeros(2), torch.tensor([0.1]), torch.full((2,), 0.5), torch.tensor([])
made += torch.tensor([1, 2]) * 0.1, torch.tensor([1, 2]) / 3, torch.arange(3).byte() + 0.5
kept = torch.tensor([1, 2]), torch.tensor([1]).double(), torch.tensor([1.0]).to(torch.float16)
warnings.warn("imported")
"""


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_other_packages_set_is_put_back(
    default: torch.dtype,
    device: str,
    tmp_path: Path,
    untouched: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "disturbing.py").write_text(DISTURBING, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "disturbing", raising=False)
    monkeypatch.setattr(logging.root, "handlers", [])
    torch.set_default_dtype(default)
    try:
        with torch.device(device), warnings.catch_warnings():
            warnings.simplefilter("error")
            module = require("disturbing", "extra", "The test")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(t.dtype == torch.float32 for t in module.made)
    assert [t.dtype for t in module.kept] == [torch.int64, torch.float64, torch.float16]
    assert all(t.device.type == "cpu" for t in (*module.made, *module.kept))
    assert logging.root.handlers == []


def test_errors_inside_other_packages_put_all_back_too(untouched: Callable[[], None]) -> None:
    with pytest.raises(ZeroDivisionError), undisturbed():
        sys.setrecursionlimit(sys.getrecursionlimit() + 500)
        raise ZeroDivisionError
    untouched()


FIRST_USE = """
import logging, random, sys, warnings
import numpy, torch
import qzoo
from qzoo.artifact.native import from_native
from qzoo.quantize import ptq

def state():
    return (
        list(warnings.filters), torch.get_rng_state().tolist(), random.getstate(),
        repr(numpy.random.get_state()), sys.getrecursionlimit(), list(logging.root.handlers),
        logging.root.level, torch.get_num_threads(), torch.backends.quantized.engine,
    )

model, images = qzoo.shufflenet_v2_x0_5(num_classes=3).eval(), torch.randn(4, 3, 32, 32)
before = state()
if sys.argv[1] == "pt2e":
    ptq(model, images, flow="pt2e", backend=sys.argv[2], progress=False)
else:
    int8 = ptq(model, images, recipe="fast", progress=False)
    qzoo.compile(int8, sys.argv[1], input_size=32)(images)
for was, now in zip(before, state(), strict=True):
    assert was == now, (str(was)[:500], str(now)[:500])
"""


@pytest.mark.extended
@pytest.mark.parametrize(
    "arguments", [("pt2e", "x86"), ("pt2e", "qnnpack"), ("inductor",), ("executorch",)], ids=str
)
def test_the_first_use_of_other_packages_changes_nothing(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """In a process of its own, because they change settings when they are first imported."""
    needed = "executorch" if arguments[-1] == "qnnpack" else "torchao"
    pytest.importorskip(arguments[0] if arguments[0] == "executorch" else needed)
    script = tmp_path / "first_use.py"
    script.write_text(FIRST_USE, encoding="utf-8")
    python(script, *arguments)
