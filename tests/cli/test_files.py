"""The commands on files: convert, download, verify, push, cache."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from torch.ao import quantization as tq
from torchvision.models import quantization as tv

import qzoo
from qzoo.metadata import read_metadata
from qzoo.native.model import model_info
from qzoo.sharing import pretrained
from qzoo.sharing.convert import guess_architecture
from tests.helpers.commands import invoke

DIGITS = "ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("QZOO_OFFLINE", "QZOO_MIRROR", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QZOO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def good(*args: object) -> str:
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: object) -> str:
    """The one sentence with which a command ends, having written nothing."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    result = invoke(*args)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: ")
    assert len(lines) == 1 or lines[0].startswith("Usage: ")
    return lines[-1]


def facts_of(member: Any) -> dict[str, Any]:
    """What `weights_meta/` says of weights; every reader sees what is changed in it."""
    entry: dict[str, Any] = read_metadata(member.meta["architecture"])["weights"][member.name]
    return entry


def digits() -> Any:
    return qzoo.get_weight(DIGITS)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's int8 state dict, of 10 classes."""
    torch.save(digits().get_state_dict(), tmp_path / "mine.pth")
    return Path("mine.pth")


def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def same(path: str, model: torch.nn.Module, backend: str = "x86") -> bool:
    x = pictures()
    return torch.equal(qzoo.load(path, backend)(x), model(x))


def int8() -> torch.nn.Module:
    return qzoo.shufflenet_v2_x0_5(weights=DIGITS, quantize=True)


# convert


def test_own_state_dict_to_artifact_and_back(own):
    Path("names.txt").write_text("\n".join(f"digit {i}" for i in range(10)) + "\n")
    out = good(
        *("convert", own, "mine.safetensors", "--backend", "x86", "--classes", "names.txt"),
        *("--like", DIGITS),
    )
    assert out.startswith("mine.safetensors: shufflenet_v2_x0_5, int8 for x86")
    info = model_info(qzoo.load("mine.safetensors"))
    assert info.builder_kwargs == {"num_classes": 10}
    assert info.classes == [f"digit {i}" for i in range(10)]
    assert info.transforms == model_info(int8()).transforms
    assert same("mine.safetensors", int8())
    good("convert", "mine.safetensors", "back.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = tv.shufflenet_v2_x0_5(quantize=True, num_classes=10)
        engine = torch.backends.quantized.engine
        theirs.load_state_dict(torch.load("back.pth", weights_only=False))
    torch.backends.quantized.engine = engine
    ours = torch.load("mine.pth", weights_only=False)
    assert theirs.state_dict().keys() == ours.keys()
    good("convert", "back.pth", "again.safetensors", "--backend", "x86")
    assert same("again.safetensors", int8())


def test_qat_checkpoint(tmp_path):
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model: Any = qzoo.shufflenet_v2_x0_5(num_classes=5).train()
        model.fuse_model(is_qat=True)
        model.qconfig = tq.get_default_qat_qconfig("x86")
        tq.prepare_qat(model, inplace=True)(torch.randn(4, 3, 64, 64))
        averaged = {f"module.{key}": value for key, value in model.state_dict().items()}
        torch.save({"model_ema": {"n_averaged": 1, **averaged}, "epoch": 1}, "qat.pth")
        expected = tq.convert(model.eval(), inplace=False)
    command = ("convert", "qat.pth", "qat.safetensors", "--part", "model_ema", "--backend", "x86")
    good(*command, "--arch", "shufflenet_v2_x0_5", "--num-classes", 5)
    assert same("qat.safetensors", expected)
    good("convert", "qat.pth", "int8.pth", "--to", "torchvision", "--backend", "x86")
    good("convert", "int8.pth", "int8.safetensors", "--backend", "x86")
    assert same("int8.safetensors", expected)


def test_published_files_are_known_by_their_hash(own, monkeypatch):
    member: Any = qzoo.ShuffleNet_V2_X0_5_QuantizedWeights.IMAGENET1K_FBGEMM_V1
    with pytest.warns(qzoo.UncalibratedWarning):
        state = qzoo.shufflenet_v2_x0_5(quantize=True, backend="fbgemm").state_dict()
    torch.save(state, "published.pth")
    digest = hashlib.sha256(Path("published.pth").read_bytes()).hexdigest()
    monkeypatch.setitem(facts_of(member), "sha256_prefix", digest[:8])
    good("convert", "published.pth", "published.safetensors")
    info = model_info(qzoo.load("published.safetensors"))
    assert (info.backend, info.classes) == ("fbgemm", "imagenet-1k")
    assert info.metrics == member.meta["_metrics"]
    assert info.transforms == member.transforms().to_dict()
    assert "IMAGENET1K_FBGEMM_V1" in good("verify", "published.pth")


def test_shared_folders_can_be_converted():
    int8().save_pretrained("shared")
    good("convert", "shared", "shared.pth")
    good("convert", "shared", "copy.safetensors", "--to", "artifact")
    assert same("copy.safetensors", int8())


@pytest.mark.parametrize("name", qzoo.list_models())
def test_architectures_are_told_apart(name):
    entry = qzoo.registry.get_entry(name)
    state = entry.skeleton({"num_classes": 7, "aux_logits": True} if entry.aux else {})
    entries = {key: torch.empty_like(value) for key, value in state.state_dict().items()}
    assert guess_architecture(entries) == name
    assert guess_architecture({f"module.{k}": v for k, v in entries.items()}) == name


def test_transformed_inputs_must_be_told(monkeypatch):
    with pytest.warns(qzoo.UncalibratedWarning):
        state = qzoo.googlenet(quantize=True, backend="fbgemm", num_classes=2).state_dict()
    torch.save(state, "g.pth")
    assert "--transform-input" in refused("convert", "g.pth", "g.safetensors")
    good("convert", "g.pth", "g.safetensors", "--transform-input")
    info = model_info(qzoo.load("g.safetensors"))
    assert info.builder_kwargs["transform_input"] is True


def test_bad_conversions(own):
    Path("text.pth").write_text("hello")
    Path("empty.txt").write_text("\n")
    Path("two.txt").write_text("cat\ndog\n")
    torch.save(qzoo.resnet18().state_dict(), "float.pth")
    torch.save({"conv.weight": torch.ones(1, 1, 1, 1)}, "alien.pth")
    torch.save({"model": {}, "epoch": 3}, "checkpoint.pth")
    Path("cut.pth").write_bytes(own.read_bytes()[:-100])
    good("convert", own, "a.safetensors")
    out = "out.safetensors"
    for words, *args in (
        ("does not exist", "gone.pth", out),
        ("no file of torch.save", "text.pth", out),
        ("is cut short", "cut.pth", out),
        ("fit no model of the zoo: name the model with --model", "alien.pth", out),
        ("does not fit", "alien.pth", out, "--model", "resnet18"),
        ("for another one", own, out, "--model", "shufflenet_v2_x1_0"),
        ("Unknown model", own, out, "--model", "resnet51"),
        ("Unknown backend", own, out, "--backend", "neon"),
        ("has a weight of shape", own, out, "--num-classes", 7),
        ("holds no dict under 'model_ema'", "checkpoint.pth", out, "--part", "model_ema"),
        ("holds no class names", own, out, "--classes", "empty.txt"),
        ("Cannot read the class names", own, out, "--classes", "gone.txt"),
        ("classes", own, out, "--classes", "two.txt"),
        ("Unknown weights", own, out, "--like", "Nothing"),
        ("no int8 weights", own, out, "--like", "ResNet50_Weights.IMAGENET1K_V1"),
        ("no input to transform", own, out, "--transform-input"),
        ("is an artifact, which says itself what it is", "a.safetensors", "b", "--model", "x"),
        ("Cannot write", own, "gone/out.safetensors"),
        ("Cannot write", own, "."),
        ("Missing argument", own),
        ("holds no model.safetensors", ".", out),
    ):
        assert words in refused("convert", *args), args


# download, cache


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    root = tmp_path / "site"
    root.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(root))
    )
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QZOO_MIRROR", f"http://127.0.0.1:{server.server_address[1]}")
    yield root
    server.shutdown()
    server.server_close()


def test_download_verify_and_clear(mirror, own_cache, monkeypatch):
    state = digits().get_state_dict()
    for member in qzoo.ResNet50_QuantizedWeights:
        path = mirror / urlsplit(member.url).path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**state, "name": torch.tensor(len(member.name))}, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(facts_of(member), "sha256_prefix", digest[:8])
    (default,) = good("download", "resnet50").split()
    assert own_cache in Path(default).parents and Path(default).is_file()
    paths = good("download", "resnet50", "resnet50", "--weights", "all").split()
    assert default in paths and len(paths) == 2
    listing = json.loads(good("cache", "--json"))
    assert {row["path"] for row in listing} == set(paths)
    assert all(row["complete"] and row["size"] > 0 for row in listing)
    assert "Cache: 2 files" in good("cache")
    Path(default).write_bytes(b"damaged")
    result = invoke("verify")
    assert result.exit_code == 2 and f"BAD  {default} is damaged" in result.stdout
    assert "ok   ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1" in result.stdout
    assert "Removed: 2 files" in good("cache", "--clear")
    assert "Cache: 0 files" in good("cache")
    assert good("verify").count("ok   ") == good("verify").count("\n") >= 1


def test_downloads_that_cannot_be(mirror, monkeypatch):
    assert "Unknown model" in refused("download", "resnet51")
    assert "has no member" in refused("download", "resnet50", "--weights", "V9")
    assert "has no member" in refused("download", "wide_resnet50_2", "--weights", "all")
    assert "404" in invoke("download", "resnet18").stderr
    monkeypatch.setenv("QZOO_OFFLINE", "1")
    assert "QZOO_OFFLINE is set" in invoke("download", "resnet18").stderr
    assert good("download", "shufflenet_v2_x0_5", "--weights", "DIGITS_X86_V1").strip() == str(
        digits().file()
    )


# verify


def test_verify_files_and_folders(own):
    good("convert", own, "good.safetensors")
    Path("bad").mkdir()
    content = bytearray(Path("good.safetensors").read_bytes())
    content[-1] ^= 1
    Path("bad/changed.safetensors").write_bytes(content)
    Path("bad/cut.pth").write_bytes(own.read_bytes()[:-100])
    Path("bad/net-0123abcd.pth").write_bytes(own.read_bytes())
    torch.save({"step": torch.ones(1)}, "bad/other.pt")
    assert good("verify", own, "good.safetensors").count("ok   ") == 2
    result = invoke("verify", "bad", "good.safetensors", "gone.pth")
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    assert [line[:5] for line in lines] == ["BAD  ", "BAD  ", "BAD  ", "ok   ", "ok   ", "BAD  "]
    assert "checksum" in lines[0] and "cut short" in lines[1] and "its name ends in" in lines[2]
    assert "of no model known here" in lines[3] and "does not exist" in lines[5]
    assert result.stderr == "Error: 4 of the files are bad.\n"
    Path("none").mkdir()
    assert "holds no .safetensors" in refused("verify", "none")


# push


def test_push(monkeypatch, own):
    pushed: list[Any] = []
    push_to_hub = pretrained.push_to_hub

    def record(model: Any, repo: str, **options: Any) -> str:
        pushed.append((qzoo.as_artifact(model).info.architecture, repo, options))
        return "https://hub/commit/1"

    monkeypatch.setattr("qzoo.sharing.push_to_hub", record)
    int8().save_pretrained("shared")
    assert good("push", "shared", "org/name", "--private") == "https://hub/commit/1\n"
    name, repo, options = pushed[0]
    assert (name, repo, options["private"]) == ("shufflenet_v2_x0_5", "org/name", True)
    assert "does not exist" in refused("push", "gone.safetensors", "org/name") or not pushed[1:]
    monkeypatch.setattr("qzoo.sharing.push_to_hub", push_to_hub)
    assert "cannot be the name" in refused("push", "shared", "a/b/c")
    monkeypatch.setenv("QZOO_OFFLINE", "1")
    assert "QZOO_OFFLINE is set" in refused("push", "shared", "org/name")


# all


def test_in_a_process_of_its_own(own):
    command = Path(sys.executable).parent / "qzoo"
    done = subprocess.run(
        [command, "convert", "gone.pth", "out.safetensors"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: gone.pth does not exist; check the path or download it first.\n"


@pytest.mark.parametrize("command", ["convert", "download", "verify", "push", "cache"])
def test_help_has_an_example(command):
    assert f"  qzoo {command}" in good(command, "--help")
