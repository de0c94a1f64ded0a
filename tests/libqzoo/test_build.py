"""libqzoo is built for the right machine, by the compiler that is there, or its absence is told."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qzoo.libqzoo import build
from tests.helpers.places import ROOT

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no compiler cc here")
needs_ziglang = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="the package ziglang is not installed"
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets Python say that it runs elsewhere."""

    def set_machine(system: str, processor: str, libc: str = "glibc", bits: int = 64) -> str:
        monkeypatch.setattr(platform, "system", lambda: system)
        monkeypatch.setattr(platform, "machine", lambda: processor)
        monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
        monkeypatch.setattr(sys, "maxsize", 2 ** (bits - 1) - 1)
        return build.this_machine()

    return set_machine


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says what is there to compile with: ziglang or not, cc or not, QZOO_CC."""

    def set_packages(ziglang: bool, cc: bool, own: str | None = None) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: ziglang or None)
        monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/cc" if cc else None)
        monkeypatch.delenv("QZOO_CC", raising=False)
        if own is not None:
            monkeypatch.setenv("QZOO_CC", own)

    return set_packages


@pytest.mark.parametrize(
    ("system", "processor", "triple", "file", "tag"),
    [
        ("Linux", "x86_64", "x86_64-linux-gnu.2.17", "_qzoo.so", "manylinux_2_17_x86_64"),
        ("Linux", "aarch64", "aarch64-linux-gnu.2.17", "_qzoo.so", "manylinux_2_17_aarch64"),
        ("Darwin", "arm64", "aarch64-macos.11.0", "_qzoo.dylib", "macosx_11_0_arm64"),
        ("Darwin", "x86_64", "x86_64-macos.11.0", "_qzoo.dylib", "macosx_11_0_x86_64"),
        ("Windows", "AMD64", "x86_64-windows-gnu", "_qzoo.dll", "win_amd64"),
        ("Windows", "ARM64", "aarch64-windows-gnu", "_qzoo.dll", "win_arm64"),
    ],
)
def test_ziglang_compiles_for_this_machine(
    machine: Any, packages: Any, system: str, processor: str, triple: str, file: str, tag: str
) -> None:
    packages(ziglang=True, cc=True)
    name = machine(system, processor)
    command, tags = build.compiler(name)
    assert command == [sys.executable, "-m", "ziglang", "cc", "-target", triple]
    assert tags.split(".")[0] == tag
    assert build.library_name(name) == file


@pytest.mark.parametrize(
    "where",
    [
        ("Linux", "riscv64"),
        ("Linux", "x86_64", "musl"),
        ("Linux", "x86_64", ""),
        ("Linux", "x86_64", "glibc", 32),
        ("FreeBSD", "amd64"),
    ],
)
def test_other_machines_take_their_own_compiler(machine: Any, packages: Any, where: Any) -> None:
    """A library of ziglang's for 64 bits and glibc would not load there, nor its wheel install."""
    packages(ziglang=True, cc=True)
    command, tag = build.compiler(machine(*where))
    assert command == ["/usr/bin/cc"]
    assert "manylinux" not in tag


def test_what_compiles(packages: Any, machine: Any) -> None:
    name = machine("Linux", "x86_64")
    zig = [sys.executable, "-m", "ziglang"]
    packages(ziglang=True, cc=True, own="'my cc' -m64")
    assert build.compiler(name)[0] == ["my cc", "-m64"]
    # Only ziglang's libraries are known to run on an old glibc.
    assert not build.compiler(name)[1].startswith("manylinux")
    assert build.compiler("windows-x86_64")[0][:3] == zig
    packages(ziglang=False, cc=True)
    assert build.compiler(name)[0] == ["/usr/bin/cc"]
    with pytest.raises(build.BuildError, match="pip install ziglang"):
        build.compiler("windows-x86_64")
    packages(ziglang=False, cc=False)
    with pytest.raises(build.BuildError, match=r"no C compiler: install ziglang, or .* QZOO_CC"):
        build.compiler(name)
    packages(ziglang=False, cc=True)
    assert build.compiler(machine("Darwin", "arm64")) == (["/usr/bin/cc"], "macosx_11_0_arm64")


@pytest.mark.parametrize("own", ["false", "true", "/no/such/compiler", str(ROOT)])
def test_a_compiler_that_fails(own: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Installation goes on, with one sentence; what was there before stays."""
    monkeypatch.setenv("QZOO_CC", own)
    made = tmp_path / "_qzoo.so"
    made.write_bytes(b"before")
    with pytest.raises(build.BuildError, match=own):
        build.build(made, build.this_machine())
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("_qzoo.so", b"before")]
    said: list[str] = []
    data: dict[str, Any] = {"force_include": {}}
    build.into_wheel(data, False, said.append)
    assert data == {"force_include": {}}
    assert len(said) == 1
    assert said[0].startswith("libqzoo was not built (")
    assert said[0].endswith("); qzoo works without it, on other runtimes.")
    done = subprocess.run(
        [sys.executable, build.__file__], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("libqzoo was not built: ")


@pytest.mark.parametrize("target", ["amiga-m68k", "LINUX-X86_64"])
def test_a_target_that_there_is_not(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QZOO_TARGET", target)
    with pytest.raises(SystemExit, match=f"QZOO_TARGET is '{target}', but must be one of linux-"):
        build.into_wheel({"force_include": {}}, False, print)


def test_a_wheel_for_another_machine_has_its_library(
    monkeypatch: pytest.MonkeyPatch, packages: Any
) -> None:
    """Where this machine's wheel would go without, one that was asked for by name is an error."""
    packages(ziglang=False, cc=True)
    other = next(name for name in build.TARGETS if name != build.this_machine())
    monkeypatch.setenv("QZOO_TARGET", other)
    with pytest.raises(SystemExit, match=rf"not built: compiling for {other} needs .* ziglang\."):
        build.into_wheel({"force_include": {}}, False, print)


def test_an_installation_has_no_sources(tmp_path: Path) -> None:
    copy = tmp_path / "a" / "qzoo" / "libqzoo" / "build.py"
    copy.parent.mkdir(parents=True)
    shutil.copyfile(build.__file__, copy)
    done = subprocess.run([sys.executable, str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("libqzoo was not built: there are no C sources in ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "own",
    [
        pytest.param("cc", marks=needs_cc, id="cc"),
        pytest.param("", marks=[needs_ziglang, pytest.mark.extended], id="ziglang"),
    ],
)
def test_it_compiles_and_loads(own: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QZOO_CC", own)
    made = tmp_path / "_qzoo.so"
    tag = build.build(made, build.this_machine(), "-O1")
    assert tag.startswith("linux_" if own else "manylinux_2_17_")
    assert [path.name for path in tmp_path.iterdir()] == [made.name]
    instructions = ctypes.CDLL(str(made)).qz_instructions
    instructions.restype = ctypes.c_char_p
    assert instructions()
