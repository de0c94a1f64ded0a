"""Hostile files through every public door: no memory beyond a bound, no file outside the cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import qzoo
from qzoo.artifact.format import Artifact

WEIGHTS = "ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1"
MIB = 1 << 20


def growth(call: Callable[[], object]) -> int:
    """By how many bytes the process grew at most during the call."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not report a process's peak memory")
    before = status("VmRSS")
    call()
    return status("VmHWM") - before


def edited(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> bytes:
    """A good artifact's file after `change(header, tensors)`, with a checksum that is right."""
    artifact = Artifact.read(qzoo.get_weight(WEIGHTS).file())  # type: ignore[attr-defined]
    header = artifact.header()
    tensors = {n: torch.from_numpy(a) for n, a in artifact.graph.tensors.items()}
    change(header, tensors)
    sha = hashlib.sha256(
        json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    )
    for name in sorted(tensors):
        sha.update(f"{name}:{tensors[name].dtype}:{list(tensors[name].shape)}".encode())
        sha.update(tensors[name].contiguous().numpy().tobytes())
    header["sha256"] = sha.hexdigest()
    return save(tensors, metadata={"qzoo": json.dumps(header)})


def renamed(name: str) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    def change(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for node in header["nodes"]:
            node["name"] = name if node["name"] == "fc" else node["name"]
            node["inputs"] = [name if source == "fc" else source for source in node["inputs"]]
        for key in [key for key in tensors if key.startswith("fc.")]:
            tensors[name + key[2:]] = tensors.pop(key)

    return change


def builds(**kwargs: Any) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    return lambda header, tensors: header["builder_kwargs"].update(kwargs)


@pytest.mark.parametrize(
    "change",
    [
        renamed("/etc/passwd"),
        renamed("../../fc"),
        renamed("__class__"),
        renamed("fc.weight.__init__"),
        renamed(""),
        builds(num_classes=1 << 40),
        builds(num_classes=1 << 62),
        builds(stages_out_channels=[24, 1 << 20, 1 << 20, 1 << 20, 1 << 20]),
        builds(stages_repeats=[1 << 20, 8, 4]),
        lambda header, tensors: header.update(architecture="resnext101_64x4d"),
        lambda header, tensors: header.update(architecture="../resnet18"),
        lambda header, tensors: header.update(versions={str(i): "x" for i in range(50_000)}),
    ],
)
def test_artifacts(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()
    Path("m/model.safetensors").write_bytes(edited(change))

    def load() -> None:
        try:
            qzoo.from_pretrained("m")
        except qzoo.ArtifactError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000

    assert growth(load) < 96 * MIB
    assert sorted(map(str, Path().rglob("*"))) == ["m", "m/model.safetensors"]


def test_a_header_that_claims_an_enormous_tensor(tmp_path):
    content = edited(lambda header, tensors: None)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for claim in ({"shape": [1 << 31, 1 << 31]}, {"data_offsets": [0, 1 << 62]}):
        header["fc.weight"] = {**header["fc.weight"], **claim}
        text = json.dumps(header).encode()
        path = tmp_path / "m.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

        def load(path: Path = path) -> None:
            with pytest.raises(qzoo.ArtifactError):
                qzoo.load(path)

        assert growth(load) < 32 * MIB


def hostile_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("../../../evil", b"evil")
        archive.writestr("/evil", b"evil")


def hostile_pickle(path: Path) -> None:
    path.write_bytes(b"\x80\x02cos\nsystem\nX\x10\x00\x00\x00touch /tmp/evil;1\x85R.")


def artifact_instead(path: Path) -> None:
    path.write_bytes(edited(renamed("../../fc")))


def test_hostile_published_files_leave_nothing_outside_the_cache(tmp_path):
    """The hash is that of the hostile file, as if the publisher himself were the attacker."""
    folders = {name: tmp_path / name for name in ("home", "cwd", "tmp", "cache", "site")}
    for folder in folders.values():
        folder.mkdir()
    writers = [hostile_zip, hostile_pickle, artifact_instead]
    for number, write in enumerate(writers):
        write(folders["site"] / f"{number}.pth")
    code = f"""
        import hashlib, http.server, os, pathlib, threading, qzoo

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args): pass
            def translate_path(self, path): return str(served)
            def end_headers(self):
                self.send_header("Content-Disposition", "attachment; filename=../../evil")
                self.send_header("ETag", '"../../evil"')
                super().end_headers()

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["QZOO_MIRROR"] = f"http://127.0.0.1:{{server.server_address[1]}}/../.."
        member = qzoo.ResNet18_QuantizedWeights.DEFAULT
        for served in sorted(pathlib.Path({str(folders["site"])!r}).iterdir()):
            member.meta["sha256_prefix"] = hashlib.sha256(served.read_bytes()).hexdigest()
            qzoo.hub.clear_cache()
            try:
                qzoo.resnet18(weights=member, quantize=True, progress=False)
            except qzoo.ArtifactError as error:
                print("refused:", error)
    """
    proxies = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=folders["cwd"],
        capture_output=True,
        text=True,
        env={
            **proxies,
            "HOME": str(folders["home"]),
            "TMPDIR": str(folders["tmp"]),
            "QZOO_HOME": str(folders["cache"]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0 and done.stdout.count("refused:") == len(writers), done.stderr
    outside = [
        path
        for name, folder in folders.items()
        for path in folder.rglob("*")
        if path.is_file() and name not in ("cache", "site")
    ]
    assert outside == []
    assert {path.name for path in tmp_path.iterdir()} == set(folders)
    assert not Path("/tmp/evil").exists() and not Path("/evil").exists()
