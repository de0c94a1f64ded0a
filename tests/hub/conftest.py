"""Small disks, processes that download, and the servers of every test about downloads."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.places import ROOT
from tests.helpers.servers import home, hub_server, payload, server  # noqa: F401  fixtures


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A file system of 1 MiB as the cache; yields what remounts it with other options."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "qzoo-test", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command; the emulated disks stand for it")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")
    monkeypatch.setenv("QZOO_HOME", str(disk / "home"))

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)

    yield remount
    subprocess.run(["umount", "-l", str(disk)], check=True)


Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts Python processes that have `fetch`; the package's own imports are left out.

    They show on the way that downloads need no torch.
    """
    started: list[subprocess.Popen[str]] = []
    prelude = f"""
        import sys, types
        package = types.ModuleType("qzoo")
        package.__path__ = [{str(ROOT / "qzoo")!r}]
        sys.modules["qzoo"] = package
        from qzoo.hub import fetch
        assert "torch" not in sys.modules and "httpx" not in sys.modules
    """

    def start(code: str) -> subprocess.Popen[str]:
        text = textwrap.dedent(prelude) + textwrap.dedent(code)
        process = subprocess.Popen(
            [sys.executable, "-c", text],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Polls until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the awaited state never came"
        time.sleep(0.01)


@pytest.fixture
def until() -> Callable[..., None]:
    return wait_for


@pytest.fixture
def make_payload() -> Callable[..., bytes]:
    return payload
