"""The comparison of post-training quantization, on a tiny model and the digits."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import qzoo.quantize
from qzoo.importers.checkpoint import load_float
from tests.helpers.places import REFERENCES

MODEL = "shufflenet_v2_x0_5"
#: Of each tool the quickest ways; the others differ in one argument.
TESTED = (
    *("float", "torchvision", "onnxruntime-minmax", "nncf-minmax-fast", "qzoo-fast", "qzoo-best"),
)
NAMES = (
    *("compare_ptq", "ptq_case", "ptq_methods", "ptq_own", "ptq_peers"),
    *("readme_tables", "train"),
)


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; what they set for their process is undone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REFERENCES))
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        yield {name: importlib.import_module(name) for name in NAMES}
        torch.set_num_threads(threads)
        torch.set_rng_state(state)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, scripts: dict[str, ModuleType]) -> Path:
    """A folder with a checkpoint that has learned a little of the digits."""
    root = tmp_path_factory.mktemp("checkpoints")
    options = [
        *("--data", "digits", "--model", MODEL, "--epochs", "3", "--batch-size", "64"),
        *("--lr", "0.05", "--train-crop-size", "40", "--augment", "none", "--threads", "1"),
        *("--output-dir", str(root / MODEL)),
    ]
    done = CliRunner().invoke(scripts["train"].main, options)
    assert done.exit_code == 0, done.output
    return root


def compare(scripts: dict[str, ModuleType], checkpoints: Path, *options: object) -> Result:
    arguments = [
        *("--data", "digits", "--models", MODEL, "--checkpoints", checkpoints, "--threads", 1),
        *("--images", 20, *options),
    ]
    words = list(map(str, arguments))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare_ptq.py", *words])
        return CliRunner().invoke(scripts["compare_ptq"].main, words)


def read(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, scripts: dict[str, ModuleType], checkpoints: Path
) -> Path:
    pytest.importorskip("onnxruntime")
    results = tmp_path_factory.mktemp("compared") / "results.csv"
    done = compare(scripts, checkpoints, "--results", results, "--methods", ",".join(TESTED))
    assert done.exit_code == 0, done.output
    return results


@pytest.mark.extended
def test_every_installed_method_gets_a_row(
    compared: Path, scripts: dict[str, ModuleType], checkpoints: Path
) -> None:
    rows = read(compared)
    methods = scripts["ptq_methods"].METHODS
    assert set(rows) == {name for name in TESTED if not methods[name].missing()}
    trained = load_float(checkpoints / MODEL / "model.safetensors")
    metrics = trained._qzoo_info.metrics["digits (held-out 25 %)"]
    assert float(rows["float"]["top1"]) == metrics["acc@1"] > 30
    for name, row in rows.items():
        top1, low, high = (float(row[k]) for k in ("top1", "top1_low", "top1_high"))
        assert low < top1 < high
        assert row["n_test"] == "445"
        # Whoever quantized anything else than this model would be nowhere near.
        assert abs(top1 - metrics["acc@1"]) < 12, name
        if name != "float":
            assert 0 < float(row["mib"]) < float(rows["float"]["mib"])
            assert float(row["seconds"]) > 0


@pytest.mark.extended
def test_all_calibrate_on_the_same_images_but_torchvision(compared: Path) -> None:
    rows = read(compared)
    digests = {n: r["calibration_sha256"] for n, r in rows.items() if n != "float"}
    first = {d for n, d in digests.items() if n.startswith("torchvision")}
    rest = {d for n, d in digests.items() if not n.startswith("torchvision")}
    assert len(first) == len(rest) == 1
    assert first != rest
    assert rows["qzoo-fast"]["calibration_images"] == "20"
    assert rows["torchvision"]["backend"] == "fbgemm"


@pytest.mark.extended
def test_qzoo_runs_on_onnxruntime_with_the_same_accuracy(compared: Path) -> None:
    for name, row in read(compared).items():
        if name.startswith(("qzoo", "torchvision")):
            assert row["runtime"] == "torch"
            assert abs(float(row["onnxruntime_top1"]) - float(row["top1"])) < 2
        else:
            assert row["onnxruntime_top1"] == ""


def test_torchvision_sees_the_first_images_of_a_sorted_folder(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    def stop(model: Any, data: Any, **kwargs: Any) -> None:
        seen.update(kwargs, labels=[data.dataset.targets[i] for i in data.indices])
        raise KeyboardInterrupt

    monkeypatch.setattr(scripts["ptq_own"], "ptq", stop)

    class Train:
        targets = (2, 0, 1, 0, 2, 1, 0)

    calibration = type("Calibration", (), {"seed": 0})()
    images = torch.zeros(4)
    case = scripts["ptq_case"].Case(
        "mobilenet_v2", tmp_path, None, Train(), calibration, images, tmp_path
    )
    with pytest.raises(KeyboardInterrupt):
        scripts["ptq_methods"].METHODS["torchvision"](case)
    assert seen["labels"] == [0, 0, 0, 1, 1, 2, 2]
    assert (seen["backend"], seen["recipe"], seen["images"]) == ("qnnpack", "torchvision", 1024)


@pytest.mark.extended
def test_rows_are_kept_until_something_changes(
    compared: Path, checkpoints: Path, tmp_path: Path, scripts: dict[str, ModuleType]
) -> None:
    results = tmp_path / "results.csv"
    results.write_bytes(compared.read_bytes())
    kept = ("--results", results, "--methods", "float,qzoo-fast")
    assert "top-1" not in compare(scripts, checkpoints, *kept).output
    assert results.read_bytes() == compared.read_bytes()
    assert compare(scripts, checkpoints, *kept, "--again").output.count("top-1") == 2
    other = compare(scripts, checkpoints, *kept, "--seed", 1).output
    assert (other.count("top-1"), other.count("qzoo-fast: top-1")) == (1, 1)
    assert read(results)["qzoo-fast"]["calibration_seed"] == "1"
    assert read(results)["qzoo-best"] == read(compared)["qzoo-best"]


@pytest.mark.extended
def test_a_failing_method_loses_its_row_and_says_so(
    compared: Path,
    checkpoints: Path,
    tmp_path: Path,
    scripts: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = tmp_path / "results.csv"
    results.write_bytes(compared.read_bytes())
    methods = scripts["ptq_methods"].METHODS

    def fail(case: Any, **settings: Any) -> None:
        raise RuntimeError("out of\nluck")

    failing = dataclasses.replace(methods["onnxruntime-minmax"], build=fail)
    monkeypatch.setitem(methods, "onnxruntime-minmax", failing)
    options = ("--results", results, "--methods", "onnxruntime-minmax", "--again")
    done = compare(scripts, checkpoints, *options)
    assert done.exit_code == 1
    assert f"{MODEL}, onnxruntime-minmax: RuntimeError: out of luck\n" in done.stderr
    assert set(read(compared)) - set(read(results)) == {"onnxruntime-minmax"}


def test_a_method_that_is_not_installed_is_named(
    checkpoints: Path,
    tmp_path: Path,
    scripts: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    methods = scripts["ptq_methods"].METHODS
    absent = dataclasses.replace(methods["nncf-fast"], packages=("openvino", "no_such_package"))
    monkeypatch.setitem(methods, "nncf-fast", absent)
    results = tmp_path / "results.csv"
    done = compare(scripts, checkpoints, "--results", results, "--methods", "nncf-fast")
    assert done.exit_code == 0
    assert "no_such_package, which is not installed" in done.stderr
    assert not results.exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--methods", "float,nnfc*"], 2, "'nnfc*' matches none of float"),
        (["--models", "resnet19"], 2, "Did you mean 'resnet18'"),
        (["--models", "resnet18"], 1, "does not exist; check the path"),
        (["--checkpoints", "@"], 1, "is not a resnet18 trained on digits"),
    ],
)
def test_bad_input_is_one_sentence(
    options: list[str],
    code: int,
    message: str,
    checkpoints: Path,
    tmp_path: Path,
    scripts: dict[str, ModuleType],
) -> None:
    (tmp_path / "resnet18").mkdir()
    weights = (checkpoints / MODEL / "model.safetensors").read_bytes()
    (tmp_path / "resnet18" / "model.safetensors").write_bytes(weights)
    results = tmp_path / "results.csv"
    given = [o.replace("@", str(tmp_path)) for o in options]
    if "@" in options:
        given += ["--models", "resnet18"]
    done = compare(scripts, checkpoints, "--results", results, *given)
    assert done.exit_code == code
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not results.exists()


def test_a_faulty_export_is_refused(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    peers = scripts["ptq_peers"]
    images = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Flatten()
    own = peers.Peers(model, images, tmp_path)
    own._check("ONNX", model)
    with pytest.raises(ValueError, match="ONNX export gives other logits"):
        own._check("ONNX", scripts["ptq_case"].Call(lambda x: model(x) * 1.01))


def test_digests_cover_the_code_that_makes_the_figures(scripts: dict[str, ModuleType]) -> None:
    methods = scripts["ptq_methods"]
    covered: dict[str, set[Path]] = {}
    for name, method in methods.METHODS.items():
        for pattern in (*methods._ALWAYS, *method.code):
            found = set(methods.ROOT.glob(pattern))
            assert found, f"{pattern} of {name} names no file any more"
            covered.setdefault(name, set()).update(found)
    rooms = ("qzoo.quantize", "qzoo.reference", "qzoo.native", "qzoo.artifact")
    assert callable(qzoo.quantize.ptq)  # its import brings all that a recipe computes with
    used = {Path(str(m.__file__)) for n, m in sys.modules.items() if n.startswith(rooms)}
    assert used <= covered["qzoo-best"]


def test_code_is_told_apart_by_what_it_does(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = scripts["ptq_methods"]
    monkeypatch.setattr(methods, "ROOT", tmp_path)
    method = methods.Method(lambda case: case, {"a": 1}, code=("*.py",))

    def digest(text: str) -> str:
        (tmp_path / "a.py").write_text(text)
        return str(method.code_sha256(MODEL))

    before = digest('def f():\n    """Says one."""\n    return 1\n')
    assert digest('def f():\n    """Says 1."""\n    return 1  # why not\n') == before
    assert digest('def f():\n    """Says one."""\n    return 2\n') != before
    digest('def f():\n    """Says one."""\n    return 1\n')
    assert dataclasses.replace(method, settings={"a": 2}).code_sha256(MODEL) != before


def test_the_table_shows_intervals_and_the_best(scripts: dict[str, ModuleType]) -> None:
    def row(model: str, method: str, top1: float) -> dict[str, str]:
        ends = {"top1": top1, "top1_low": top1 - 1, "top1_high": top1 + 0.8}
        return {"model": model, "method": method, **{k: str(v) for k, v in ends.items()}}

    rows = [
        row("b", "float", 80),
        row("b", "nncf-fast", 79.5),
        row("b", "qzoo-best", 79.75),
        row("a", "float", 70),
        row("a", "qzoo-best", 69),
    ]
    assert scripts["readme_tables"].ptq_table_of(rows).splitlines() == [
        "| top-1, % | `a` | `b` |",
        "|---|---:|---:|",
        "| float | 70.00 ±0.90 | 80.00 ±0.90 |",
        "| NNCF, fast bias correction |  | 79.50 ±0.90 |",
        "| **qzoo**, `best` | **69.00** ±0.90 | **79.75** ±0.90 |",
    ]


def test_the_table_names_every_method(scripts: dict[str, ModuleType]) -> None:
    assert list(scripts["readme_tables"].PTQ_METHODS) == list(scripts["ptq_methods"].METHODS)


def test_the_table_of_training_has_a_line_per_model(scripts: dict[str, ModuleType]) -> None:
    def row(model: str, data: str, ptq: str) -> dict[str, str]:
        figures = {"float_top1": "70", "ptq_top1": ptq, "qat_top1": "70.5"}
        interval = {"qat_top1_low": "69.5", "qat_top1_high": "71.5"}
        return {"model": model, "data": data, **figures, **interval}

    rows = [row("b", "fractals", "69.5"), row("a", "digits", ""), row("b", "digits", "60.125")]
    assert scripts["readme_tables"].qat_table_of(rows).splitlines() == [
        "| top-1, % | digits: float | digits: PTQ | digits: QAT | fractals: float | fractals: PTQ "
        "| fractals: QAT |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| `a` | 70.00 |  | 70.50 ±1.00 |  |  |  |",
        "| `b` | 70.00 | 60.12 | 70.50 ±1.00 | 70.00 | 69.50 | 70.50 ±1.00 |",
    ]
