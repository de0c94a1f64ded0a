"""Names, extras, and what `auto` measures, remembers and says."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

import qzoo
from qzoo._core.timing import Timing
from qzoo.native.model import from_native
from qzoo.native.model import to_native as to_native_model
from qzoo.runtimes import api, choice, measure, torch_native
from tests.helpers.obstacles import OBSTACLES, put


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QZOO_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "_in_process", {})
    monkeypatch.setattr(measure, "BUDGET_S", 0.05)


@functools.cache
def digits() -> qzoo.Artifact:
    return from_native(qzoo.shufflenet_v2_x0_5(weights="DIGITS_X86_V1", quantize=True))


def auto(**options: object) -> qzoo.runtimes.CompiledModel:
    return qzoo.compile(digits(), threads=1, input_size=32, **options)  # type: ignore[arg-type]


def forget() -> None:
    choice._in_process.clear()


def test_auto_tells_why_and_remembers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = auto()
    assert first.why is not None and not first.why.remembered
    assert first.runtime == first.why.name == first.why.measured[0].name
    assert {m.name for m in first.why.measured} >= {"torch", "onnxruntime", "openvino"}
    assert {"inductor", "executorch"} <= set(first.why.skipped)
    lines = str(first.why).splitlines()
    assert first.runtime in lines[0] and "32x32" in lines[0]
    assert all(any(m.name in line for line in lines[1:]) for m in first.why.measured)
    assert first(torch.zeros(3, 3, 32, 32)).shape == (3, 10)

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    forget()
    monkeypatch.setattr(measure, "_time", never)
    again = auto()
    assert again.why is not None and again.why.remembered and "remembered" in str(again.why)
    assert again.runtime == first.runtime and again.why.measured == first.why.measured
    with pytest.raises(AssertionError, match="measured again"):
        auto(batch_size=2)
    assert (tmp_path / "cache" / "auto.json").exists()


def test_another_cpu_or_package_is_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> str:
        return choice.choice_key("runtime", digits(), ["torch"], 1, (32, 32), 1)

    first = key()
    assert key() == first
    monkeypatch.setattr(choice, "machine", lambda: "another CPU")
    second = key()
    monkeypatch.setattr(choice, "version", lambda package: "99")
    assert len({first, second, key()}) == 3


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 2}', '{"version": 2, "choices": {"a": 3}}', "\x00"]
)
def test_a_damaged_memory_is_ignored_with_a_word(content: str, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "auto.json").write_text(content)
    with pytest.warns(UserWarning, match=r"auto\.json.*damaged"):
        model = auto(candidates=["onnxruntime", "openvino"])
    assert model.why is not None and not model.why.remembered
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = auto(candidates=["onnxruntime", "openvino"])
    assert again.why is not None and again.why.remembered


def test_a_damaged_entry_is_measured_anew(tmp_path: Path) -> None:
    auto(candidates=["onnxruntime"])
    path = tmp_path / "cache" / "auto.json"
    data = json.loads(path.read_text())
    data["choices"] = {key: {"name": "onnxruntime"} for key in data["choices"]}
    path.write_text(json.dumps(data))
    forget()
    model = auto(candidates=["onnxruntime"])
    assert model.why is not None and not model.why.remembered


@pytest.mark.skipif(os.name != "posix", reason="pipes and links are made as on Unix")
@pytest.mark.parametrize("kind", [*OBSTACLES, "huge", "deep"])
def test_whatever_lies_where_the_memory_belongs(kind: str, tmp_path: Path) -> None:
    path, outside = tmp_path / "cache" / "auto.json", None
    path.parent.mkdir()
    if kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "deep":
        path.write_bytes(b"[" * 100_000)
    else:
        outside = put(kind, path)
    with pytest.warns(UserWarning, match=r"auto\.json"):
        assert choice.recall("key") is None
        choice.remember("key", _MADE)
    forget()
    assert choice.recall("key") == dataclasses.replace(_MADE, remembered=True)
    assert outside is None or outside.read_bytes() == b"mine"


_MADE = choice.Choice("torch", (Timing("torch", 1.0, 1.0, 1.0, 1.0, 3),), 1, (32, 32), 1)


@pytest.mark.parametrize(
    "change",
    [
        {"name": ["torch"], "batch_size": None},
        {"batch_size": "9" * 5000},
        {"input_size": [1]},
        {"input_size": {"0": 1}},
        {"threads": 10**400, "measured": [{"name": "a"}]},
        {"measured": [{**dataclasses.asdict(_MADE.measured[0]), "low_ms": "fast"}]},
        {"measured": [{**dataclasses.asdict(_MADE.measured[0]), "low_ms": 10**400}]},
        {"measured": [{**dataclasses.asdict(_MADE.measured[0]), "more": 1}]},
        {"measured": 3},
        {"skipped": []},
    ],
    ids=str,
)
def test_entries_of_other_types_are_measured_anew(
    change: dict[str, object], tmp_path: Path
) -> None:
    choice.remember("key", _MADE)
    path = tmp_path / "cache" / "auto.json"
    data = json.loads(path.read_text())
    data["choices"]["key"].update(change)
    path.write_text(json.dumps(data))
    forget()
    assert choice.recall("key") is None


def test_a_later_version_of_the_memory_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "auto.json").write_text('{"version": 99, "things": 1}')
    assert auto(candidates=["onnxruntime"]).runtime == "onnxruntime"


def test_without_a_writable_cache_the_process_remembers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QZOO_HOME", str(tmp_path / "file" / "below"))
    assert auto(candidates=["onnxruntime"]).why.remembered is False  # type: ignore[union-attr]
    assert auto(candidates=["onnxruntime"]).why.remembered is True  # type: ignore[union-attr]


def test_the_memory_stays_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(choice, "_MAX_ENTRIES", 3)
    for n in range(5):
        made = choice.Choice("torch", (Timing("torch", 1, 1, 1, 1, 3),), 1, (32, 32), 1)
        choice.remember(f"key {n}", made)
    stored = json.loads((tmp_path / "cache" / "auto.json").read_text())["choices"]
    assert list(stored) == ["key 2", "key 3", "key 4"]


def test_a_candidate_that_fails_is_named_and_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    build = api._build

    def fails(name: str, *rest: object) -> qzoo.runtimes.CompiledModel:
        if name == "openvino":
            raise qzoo.ArgumentError("no such operation")
        return build(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(api, "_build", fails)
    model = auto(candidates=["onnxruntime", "openvino"])
    assert model.why is not None and model.why.skipped == {"openvino": "no such operation"}
    with pytest.raises(qzoo.ArgumentError, match="no such operation"):
        auto(candidates=["openvino"])


def test_unknown_names_and_counts() -> None:
    with pytest.raises(qzoo.UnknownNameError, match=r"'opnvino'.*Did you mean 'openvino'"):
        qzoo.compile(digits(), "opnvino")
    with pytest.raises(qzoo.UnknownNameError, match="choose one of auto"):
        qzoo.compile(digits(), candidates=["torhc"])
    with pytest.raises(qzoo.UnknownNameError):
        qzoo.compile(digits(), 3)  # type: ignore[arg-type]
    with pytest.raises(qzoo.ArgumentError, match="candidates"):
        qzoo.compile(digits(), "torch", candidates=["torch"])
    for wrong in ([], "torch"):
        with pytest.raises(qzoo.ArgumentError, match="candidates"):
            qzoo.compile(digits(), candidates=wrong)
    for number in (0, -1, 1.5, True):
        for name in ("threads", "batch_size"):
            with pytest.raises(qzoo.ArgumentError, match=name):
                qzoo.compile(digits(), "torch", **{name: number})  # type: ignore[arg-type]
    for size in (0, (32,), (32, -1), "32"):
        with pytest.raises(qzoo.ArgumentError, match="input_size"):
            qzoo.compile(digits(), "torch", input_size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "executorch", "inductor"])
def test_a_missing_package_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(qzoo.MissingDependencyError, match=rf'pip install "qzoo\[{name}\]"'):
        qzoo.compile(digits(), name)
    with pytest.raises(qzoo.MissingDependencyError, match=name):
        qzoo.compile(digits(), candidates=[name])
    assert name not in qzoo.available_runtimes()


def test_with_one_runtime_there_is_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(api.importlib.util, "find_spec", lambda package: None)
    monkeypatch.setattr(api, "missing_library", lambda: "is not there")
    monkeypatch.setattr(api, "_library_missing", lambda: True)
    monkeypatch.setattr(torch_native, "available_engines", lambda: ["onednn"])
    model = auto()
    assert model.runtime == "torch" and model.why is not None
    assert model.why.measured == () and not model.why.remembered
    assert "not installed" in model.why.skipped["openvino"]
    first, *rest = str(model.why).splitlines()
    assert first == "torch: the only runtime to choose from, so nothing was measured"
    assert len(rest) == len(api.RUNTIMES) - 1
    assert not (tmp_path / "cache" / "auto.json").exists()


def test_without_torch_ao_there_is_no_runtime_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        @staticmethod
        def find_spec(name: str, path: object, target: object = None) -> None:
            if name == "torch.ao":
                raise ModuleNotFoundError(name)

    assert "torch" in qzoo.available_runtimes()
    monkeypatch.setattr(sys, "meta_path", [Gone, *sys.meta_path])
    assert "torch" not in qzoo.available_runtimes()
    with pytest.raises(qzoo.MissingDependencyError, match=r"needs torch\.ao, which this"):
        qzoo.compile(digits(), "torch")
    assert auto(candidates=["onnxruntime"]).runtime == "onnxruntime"


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(qzoo.MissingDependencyError, match=r"compiler.*CXX"):
        qzoo.compile(digits(), "inductor")
    assert "inductor" not in qzoo.available_runtimes()
    assert "torch" in qzoo.available_runtimes()


@pytest.mark.parametrize(
    ("command", "found"),
    [("no-such-compiler", False), (sys.executable, True), (f"{sys.executable} -O2", True)],
)
def test_the_compiler_is_the_one_that_inductor_calls(
    command: str, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setenv("CXX", command)  # even where another one is installed
    assert ("inductor" in qzoo.available_runtimes()) == found


def test_the_engine_is_chosen_by_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def to_native(artifact: qzoo.Artifact, engine: str) -> torch.nn.Module:
        built.append(engine)
        return to_native_model(artifact, engine)

    monkeypatch.setattr(torch_native, "to_native", to_native)
    model = qzoo.compile(digits(), "torch", threads=1, input_size=32)
    assert len(built) == len(set(built)) and model.engine in built  # type: ignore[attr-defined]
    engines = model.engines  # type: ignore[attr-defined]
    if len(engines.measured) > 1:
        assert engines.name == model.engine == engines.measured[0].name  # type: ignore[attr-defined]
    assert model.why is None
