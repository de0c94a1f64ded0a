"""The wheels of a release hold libqzoo for the machine that they name, and install there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import qzoo
from tests.helpers.places import ROOT

pytestmark = [
    pytest.mark.extended,
    pytest.mark.timeout(900),  # the part of the C library for Windows takes long
    pytest.mark.xdist_group("wheels"),  # one process makes them, with --dist loadgroup
    pytest.mark.skipif(
        importlib.util.find_spec("ziglang") is None, reason="the package ziglang is not installed"
    ),
]
#: The platforms of a wheel's name, the library in it, and the only libraries that this one needs.
EXPECTED = {
    "linux-x86_64": (
        "manylinux_2_17_x86_64.manylinux2014_x86_64", "_qzoo.so", r"lib(c|m|pthread)\.so\.\d",
    ),
    "linux-aarch64": (
        "manylinux_2_17_aarch64.manylinux2014_aarch64", "_qzoo.so", r"lib(c|m|pthread)\.so\.\d",
    ),
    "macos-arm64": ("macosx_11_0_arm64", "_qzoo.dylib", r"/usr/lib/libSystem\.B\.dylib"),
    "windows-x86_64": ("win_amd64", "_qzoo.dll", r"KERNEL32\.dll|api-ms-win-crt-.*\.dll"),
}  # fmt: skip
EVERY = pytest.mark.parametrize("target", EXPECTED)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, str(ROOT / "packaging" / "wheels.py"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def wheel(folder: Path, distribution: str, target: str) -> Path:
    return folder / f"{distribution}-{qzoo.__version__}-py3-none-{EXPECTED[target][0]}.whl"


@pytest.fixture
def library(wheels: Path, target: str, tmp_path: Path) -> Path:
    """The library in the wheel for one kind of machine."""
    with zipfile.ZipFile(wheel(wheels, "qzoo", target)) as archive:
        return Path(archive.extract(f"qzoo/libqzoo/{EXPECTED[target][1]}", tmp_path))


def test_every_distribution_has_a_wheel_for_every_machine(wheels: Path) -> None:
    wanted = {wheel(wheels, name, target) for name in ("qzoo", "qzoo_lite") for target in EXPECTED}
    assert set(wheels.iterdir()) == wanted


@EVERY
def test_both_distributions_hold_the_same_package(wheels: Path, target: str) -> None:
    held = []
    for name in ("qzoo", "qzoo_lite"):
        path = wheel(wheels, name, target)
        entries = zipfile.ZipFile(path).infolist()
        held.append({e.filename: e.CRC for e in entries if ".dist-info/" not in e.filename})
        about = next(e.filename for e in entries if e.filename.endswith(".dist-info/WHEEL"))
        lines = zipfile.ZipFile(path).read(about).decode().splitlines()
        assert "Root-Is-Purelib: false" in lines
        tags = {f"py3-none-{platform}" for platform in EXPECTED[target][0].split(".")}
        assert {line.removeprefix("Tag: ") for line in lines if line.startswith("Tag: ")} == tags
    assert held[0] == held[1]
    assert [name for name in held[0] if "_qzoo." in name] == [f"qzoo/libqzoo/{EXPECTED[target][1]}"]


@EVERY
def test_the_library_gives_the_header_s_functions_and_needs_the_system_s_own(
    library: Path, target: str
) -> None:
    lief = pytest.importorskip("lief", reason="the package lief is not installed")
    assert library.stat().st_size <= 2**20
    read = lief.parse(str(library))
    header = (ROOT / "libqzoo" / "include" / "qzoo.h").read_text(encoding="utf-8")
    functions = re.findall(r"^QZ_API [^;]*?\*?(qz_\w+)\(", header, re.MULTILINE)
    assert len(functions) > 9
    exported = {symbol.name for symbol in read.exported_functions}
    if target.startswith("macos"):
        exported = {name.removeprefix("_") for name in exported}
        exported -= {"_mh_dylib_header", "__dso_handle"}  # every library has these
    assert exported == set(functions)
    needed = {str(getattr(found, "name", found)) for found in read.libraries}
    needed -= {f"@rpath/{library.name}"}  # on macOS its own name stands among them
    assert needed
    assert not [name for name in needed if not re.fullmatch(EXPECTED[target][2], name)]


@pytest.mark.parametrize("target", ["linux-x86_64", "linux-aarch64"])
def test_the_linux_libraries_run_on_an_old_glibc(library: Path) -> None:
    lief = pytest.importorskip("lief", reason="the package lief is not installed")
    read = lief.parse(str(library))
    wanted = [
        version.name
        for needed in read.symbols_version_requirement
        for version in needed.get_auxiliary_symbols()
    ]
    assert wanted
    for name in wanted:
        major, minor = re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", name).groups()
        assert (int(major), int(minor)) <= (2, 17), name
    assert not list(read.symtab_symbols), "not stripped"


@pytest.mark.parametrize("target", ["macos-arm64"])
def test_the_macos_library_is_signed_and_runs_on_macos_11(library: Path) -> None:
    lief = pytest.importorskip("lief", reason="the package lief is not installed")
    read = lief.parse(str(library))
    assert read.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64
    assert list(read.build_version.minos) == [11, 0, 0]
    assert read.has_code_signature  # macOS refuses others on this processor


@pytest.mark.parametrize("target", ["windows-x86_64"])
def test_the_windows_library_is_for_x86_64(library: Path) -> None:
    lief = pytest.importorskip("lief", reason="the package lief is not installed")
    assert lief.parse(str(library)).header.machine == lief.PE.Header.MACHINE_TYPES.AMD64
