"""`QZOO_OFFLINE` and `QZOO_MIRROR` hold for every download that the package makes."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from typing import Any

import huggingface_hub.constants
import pytest

import qzoo
from qzoo.errors import DownloadError, QzooError, UploadError
from qzoo.hub import fetch, is_offline
from tests.helpers.commands import invoke

ARTIFACT = qzoo.ShuffleNet_V2_X0_5_QuantizedWeights.DIGITS_X86_V1.file()
HUB_URL = "hf://qzoo-test/tiny/int8/model.safetensors"
DATA = b"0123456789" * 100


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Lets nothing out, and returns what was asked for."""
    asked: list[object] = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        asked.append(args)
        raise OSError("no network")

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, refuse)
    return asked


@pytest.mark.parametrize("value", ["1", "ON", " yes ", "y", "2"])
@pytest.mark.parametrize(
    "call",
    [
        lambda: fetch("https://example.test/a.pth"),
        lambda: fetch("http://example.test/a.pth"),
        lambda: fetch("hf://a/b/c.bin"),
        lambda: qzoo.from_pretrained("a/b"),
        lambda: qzoo.resnet18(weights="DEFAULT"),
        lambda: qzoo.resnet18(weights="DEFAULT", quantize=True),
        lambda: qzoo.get_weight("ResNet18_QuantizedWeights.DEFAULT").get_state_dict(),
    ],
)
def test_offline_asks_nobody(
    call: Callable[[], object],
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    no_network: list[object],
) -> None:
    monkeypatch.setenv("QZOO_OFFLINE", value)
    assert is_offline()
    with pytest.raises(DownloadError, match="QZOO_OFFLINE is set"):
        call()
    assert not no_network


@pytest.mark.parametrize("value", ["", "0", "false", "No", "OFF"])
def test_not_offline(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QZOO_OFFLINE", value)
    assert not is_offline()


def test_offline_pushes_nothing(monkeypatch: pytest.MonkeyPatch, no_network: list[object]) -> None:
    monkeypatch.setenv("QZOO_OFFLINE", "1")
    model = qzoo.load(ARTIFACT)
    with pytest.raises(UploadError, match="QZOO_OFFLINE is set"):
        qzoo.push_to_hub(model, "a/b")
    assert not no_network


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["verify"], 0),
        (["verify", str(ARTIFACT)], 0),
        (["download", "shufflenet_v2_x0_5"], 2),
        (["push", str(ARTIFACT), "a/b"], 2),
        (["classify", str(ARTIFACT), "-m", "resnet18"], 2),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else None,
)
def test_commands_offline(
    command: list[str], code: int, monkeypatch: pytest.MonkeyPatch, no_network: list[object]
) -> None:
    monkeypatch.setenv("QZOO_OFFLINE", "1")
    result = invoke(*command)
    assert result.exit_code == code, result.output
    assert (code == 0) == ("QZOO_OFFLINE" not in result.stderr) and not no_network


def test_verify_asks_nobody(no_network: list[object]) -> None:
    assert invoke("verify").exit_code == 0 and not no_network


@pytest.mark.parametrize("prefix", ["", "/mirror/of"])
def test_a_mirror_of_float_and_int8_weights(server: Any, prefix: str, monkeypatch: Any) -> None:
    """What a mirror has is asked of it alone, by the path of the original."""
    monkeypatch.setenv("QZOO_MIRROR", server.base + prefix + "/")
    for call in (
        lambda: qzoo.resnet18(weights="DEFAULT", progress=False),
        lambda: qzoo.resnet18(weights="DEFAULT", quantize=True, progress=False),
        lambda: fetch("https://example.test/models/a.pth", progress=False),
    ):
        with pytest.raises(QzooError, match=server.base):
            call()
    paths = [seen.path for seen in server.seen]
    assert len(paths) == 3 and all(path.startswith(f"{prefix}/models/") for path in paths)


@pytest.mark.parametrize("variable", ["QZOO_MIRROR", "HF_ENDPOINT"])
def test_a_mirror_of_the_hub(hub_server: Any, variable: str, monkeypatch: Any) -> None:
    """A mirror gets no token, the user's own Hub does."""
    hub_server.commit("main", "int8/model.safetensors", DATA)
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv(variable, hub_server.base)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    digest = hashlib.sha256(DATA).hexdigest()
    assert fetch(HUB_URL, sha256=digest, progress=False).read_bytes() == DATA
    sent = {"hf_secret" in str(seen.headers) for seen in hub_server.seen}
    assert len(hub_server.seen) == 2 and sent == {variable == "HF_ENDPOINT"}


def test_an_endpoint_goes_before_the_mirror(hub_server: Any, server: Any, monkeypatch: Any) -> None:
    hub_server.commit("main", "int8/model.safetensors", DATA)
    monkeypatch.setenv("QZOO_MIRROR", server.base)
    assert fetch(HUB_URL, progress=False).read_bytes() == DATA and not server.seen


@pytest.mark.parametrize("mirror", ["ftp://a", "example.test", "http://[", "file:///etc"])
def test_a_mirror_that_is_none(mirror: str, monkeypatch: Any, no_network: list[object]) -> None:
    monkeypatch.setenv("QZOO_MIRROR", mirror)
    for url in ("https://example.test/a.pth", HUB_URL):
        with pytest.raises(DownloadError, match=r"QZOO_MIRROR|valid url"):
            fetch(url, progress=False)
    assert not no_network
