"""libqzoo/qzoo_file.h reads artifacts as Python does."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save

import qzoo
from qzoo._core import strict_json
from qzoo.artifact.format import Artifact
from qzoo.artifact.graph import INPUT, Graph
from qzoo.artifact.interpret import interpret
from qzoo.libqzoo import binding
from qzoo.libqzoo.binding import _Node
from qzoo.native.model import from_native
from tests.helpers.artifact_fuzz import KINDS, Mutator, bases
from tests.helpers.artifact_parts import Parts, checksum, node, put_together, take_apart
from tests.helpers.graphs import PRESET, any_artifact, every_operation
from tests.helpers.places import EMBEDDED
from tests.helpers.programs import program
from tests.helpers.zoo import BUILDERS, quiet, small_images, uncalibrated

EMBEDDED_MODELS = sorted(EMBEDDED.glob("*.safetensors"))


class File(ctypes.Structure):
    """`qz_file`."""

    _fields_ = (
        ("node_count", ctypes.c_int32),
        ("nodes", ctypes.POINTER(_Node)),
        ("names", ctypes.POINTER(ctypes.c_char_p)),
        ("channels", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("class_count", ctypes.c_int32),
        ("classes", ctypes.POINTER(ctypes.c_char_p)),
        ("crop_size", ctypes.c_int32),
        ("resize_size", ctypes.c_int32),
        ("interpolation", ctypes.c_char_p),
        ("mean", ctypes.c_float * 3),
        ("std", ctypes.c_float * 3),
        ("architecture", ctypes.c_char_p),
        ("memory", ctypes.c_void_p),
    )


class Refused(Exception):
    """The reader's message."""


class Reader:
    """qzoo_file.h, compiled as a library."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.qz_file_read.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(File), ctypes.c_char_p,
        ]  # fmt: skip

    def read(self, content: bytes) -> File:
        """Reads a file; its nodes are there as long as the content is."""
        file, message = File(), ctypes.create_string_buffer(200)
        status = self._library.qz_file_read(content, len(content), ctypes.byref(file), message)
        if status:
            assert status == 2 and file.memory is None
            assert message.value and message.value.isascii()
            raise Refused(message.value.decode())
        return file

    def free(self, file: File) -> None:
        self._library.qz_file_free(ctypes.byref(file))
        assert file.memory is None

    def nodes(self, content: bytes) -> list[dict[str, Any]]:
        file = self.read(content)
        found = [fields_of(file.nodes[i]) for i in range(file.node_count)]
        self.free(file)
        return found


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    source = folder / "reader.c"
    source.write_text('#define QZOO_FILE_IMPLEMENTATION\n#include "qzoo_file.h"\n')
    return Reader(
        program(folder / "reader.so", source, "-shared", "-fvisibility=default", "-Werror")
    )


def fields_of(made: _Node) -> dict[str, Any]:
    """Returns all that a node says, with what it points to."""
    weights = math.prod(made.weight_shape) if made.weight or made.float_weight else 0
    sizes = {"gain": 4 * made.affine_count, "offset": 4 * made.affine_count, "weight": weights,
             "float_weight": 4 * weights, "weight_scale": 4 * made.scale_count,
             "weight_zero_point": made.scale_count, "bias": 4 * made.weight_shape[0],
             "table": 256}  # fmt: skip
    found: dict[str, Any] = {}
    for name, *_ in made._fields_:
        value = getattr(made, name)
        if name == "inputs":
            value = [value[i] for i in range(made.input_count)]
        elif name in sizes:
            value = ctypes.string_at(value, sizes[name]) if value else None
        elif isinstance(value, ctypes.Array):
            value = list(value)
        found[name] = value
    return found


def pythons_nodes(graph: Graph) -> list[dict[str, Any]]:
    """Returns the nodes that the Python binding makes of a graph."""
    kept: list[Any] = []
    numbers = {INPUT: -1} | {node.name: i for i, node in enumerate(graph.nodes)}
    made = [binding._node(node, numbers, graph.tensors, kept) for node in graph.nodes]
    return [fields_of(node) for node in made]


def test_nodes_are_those_of_the_binding(reader: Reader) -> None:
    first = [path.read_bytes() for path in EMBEDDED_MODELS]
    made = [every_operation().to_bytes(), any_artifact().to_bytes(), *bases()[:2]]
    operations = set()
    for content in first + made:
        artifact = read_by_python(content)
        assert artifact is not None
        assert reader.nodes(content) == pythons_nodes(artifact.graph)
        operations |= {node.op for node in artifact.graph.nodes}
    assert operations == set(binding.OPS)


def read_by_python(content: bytes) -> Artifact | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.safetensors")
        path.write_bytes(content)
        try:
            return Artifact.read(path)
        except qzoo.QzooError:
            return None


def test_what_else_a_file_says(reader: Reader) -> None:
    content = every_operation().to_bytes()
    file = reader.read(content)
    assert (file.height, file.width, file.channels) == (32, 48, 3)
    names = [file.classes[i].decode() for i in range(file.class_count)]
    assert names == ["tench", "Gruß", "魚", '"quoted"', "a\nb"]
    assert (file.crop_size, file.resize_size, file.interpolation) == (32, 36, b"bilinear")
    assert list(file.mean) == [np.float32(v) for v in (0.485, 0.456, 0.406)]
    assert list(file.std) == [np.float32(v) for v in (0.229, 0.224, 0.225)]
    assert file.architecture is None
    assert file.names[0] == b"scaled" and file.names[file.node_count - 1] == b"logits"
    reader.free(file)
    parts = take_apart(content)
    for key in ("classes", "transforms", "input_size"):
        parts.header[key] = None
    parts.header["architecture"] = "x"
    content = put_together(parts)
    file = reader.read(content)
    assert (file.height, file.width, file.class_count, file.crop_size) == (0, 0, 0, 0)
    assert not file.classes and file.architecture == b"x"
    reader.free(file)


def of_header(key: str, value: Any) -> Callable[[Parts], None]:
    return lambda parts: parts.header.update({key: value})


def of_node(name: str, /, **fields: Any) -> Callable[[Parts], None]:
    return lambda parts: node(parts, name).update(fields)


def of_tensor(name: str, change: Callable[[Any], Any]) -> Callable[[Parts], None]:
    return lambda parts: parts.tensors.update({name: change(parts.tensors[name])})


def without(name: str) -> Callable[[Parts], Any]:
    return lambda parts: (parts.tensors if "." in name else parts.header).pop(name)


REFUSED: list[tuple[Callable[[Parts], Any], str]] = [
    (of_header("format", "other"), "no artifact"),
    (of_header("version", 4), "version 4 is newer"),
    (of_header("version", 2), "version 2 has no graph"),
    (of_header("version", 3.0), "no artifact"),
    (of_header("more", 1), "fields that version 3 has not"),
    (without("recipe"), "'recipe' is missing"),
    (of_header("recipe", []), "'recipe' is missing or of a wrong type"),
    (of_header("backend", "tpu"), "backend"),
    (of_header("input_size", [32, 0]), "input size"),
    (of_header("input_size", [32]), "input size"),
    (of_header("classes", ["a", 1]), "classes"),
    (of_header("classes", ["a" * 1001]), "classes"),
    (of_header("classes", "other"), "classes"),
    (of_header("transforms", {**PRESET, "std": [0.2, 0, 0.2]}), "transforms"),
    (of_header("transforms", {**PRESET, "mean": [0.2, 0.2]}), "transforms"),
    (of_header("transforms", {**PRESET, "crop_size": 1025}), "transforms"),
    (of_header("transforms", {**PRESET, "interpolation": "cubic"}), "transforms"),
    (of_header("transforms", {**PRESET, "more": 1}), "transforms"),
    (of_header("nodes", []), "0 nodes"),
    (of_header("nodes", [[]]), "node 0"),
    (of_node("sum", name="mean2"), "two nodes are called 'mean2'"),
    (of_node("sum", name=""), "possible name"),
    (of_node("sum", name="input"), "possible name"),
    (of_node("sum", name="x" * 201), "possible name"),
    (of_node("sum", op="subtract"), "unknown operation"),
    (of_node("sum", inputs=["gated", "logits"]), "no earlier node"),
    (of_node("sum", inputs=["gated", "\x1b[31m"]), r"'\?\[31m'"),
    (of_node("sum", inputs=["gated", 3]), "list of names"),
    (of_node("sum", inputs=["gated"] * 65), "list of names"),
    (of_node("sum", inputs=["cut", "cut"]), "'gated' feeds no other"),
    (of_node("sum", more=1), "fields that no add has"),
    (of_node("sum", float=True), "fields that no add has"),
    (of_node("head", float=False), "lacks its weight"),
    (of_node("sum", relu=1), "impossible relu"),
    (of_node("sum", low=0), "impossible bounds"),
    (of_node("sum", low=31, high=30), "impossible bounds"),
    (of_node("sum", high=256), "impossible high"),
    (of_node("sum", zero_point=-1), "impossible zero_point"),
    (of_node("sum", zero_point=30.0), "impossible zero_point"),
    (of_node("sum", zero_point=10**30), "impossible zero_point"),
    (of_node("sum", scale=2.0**-41), "impossible scale"),
    (of_node("sum", scale="1"), "impossible scale"),
    (of_node("zeros", stride=[0, 1]), "impossible stride"),
    (of_node("zeros", stride=[1, 1, 1]), "impossible stride"),
    (of_node("zeros", padding=[1, 1, 1, 32768]), "impossible padding"),
    (of_node("zeros", padding=[[1], 1, 1, 1]), "impossible padding"),
    (of_node("zeros", groups=0), "impossible groups"),
    (of_node("most", ceil_mode=None), "impossible ceil_mode"),
    (of_node("pairs", shape=[3, 2, 2, 1]), "impossible shape"),
    (of_node("pairs", shape=[12, 0]), "impossible shape"),
    (of_node("scaled", gain=[]), "gain"),
    (of_node("scaled", gain=[1, 2, 2.0**41]), "gain"),
    (of_node("scaled", offset=[1, 2]), "offset"),
    (of_node("curve", function="sine"), "unknown function"),
    (of_node("curve", function="tanh"), "not the function tanh"),
    (without("curve.table"), "lacks its table"),
    (of_tensor("curve.table", lambda t: t[:255]), "lacks its table"),
    (of_tensor("curve.table", lambda t: t ^ 3), "not the function gelu"),
    (without("double.weight"), "lacks its weight"),
    (of_tensor("double.weight", lambda t: t.float()), "lacks its weight"),
    (of_tensor("double.weight", lambda t: t[0]), "lacks its weight"),
    (of_tensor("double.weight", lambda t: t[:0]), "lacks its weight"),
    (without("double.weight_scale"), "weight scales"),
    (of_tensor("double.weight_scale", lambda t: t * 0), "weight scales"),
    (of_tensor("double.weight_scale", lambda t: t * math.nan), "weight scales"),
    (of_tensor("double.weight_scale", lambda t: t * 1e300), "weight scales"),
    (of_tensor("faint.weight_scale", lambda t: t[:7]), "weight scales"),
    (of_tensor("faint.weight_zero_point", lambda t: t[:7]), "weight zero points"),
    (of_tensor("zeros.bias", lambda t: t[:7]), "impossible bias"),
    (of_tensor("zeros.bias", lambda t: t.double()), "impossible bias"),
    (of_tensor("zeros.bias", lambda t: t.half()), "dtype that no artifact holds"),
    (of_tensor("zeros.bias", lambda t: t.reshape(1, 2, 2, 2, 1)), "impossible shape"),
    (lambda parts: parts.tensors.update({"a.b": parts.tensors["zeros.bias"] + 1}), "no node"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_is_wrong_is_said(change: Callable[[Parts], Any], words: str, reader: Reader) -> None:
    parts = take_apart(every_operation().to_bytes())
    parts.tensors.update({name: t.clone() for name, t in parts.tensors.items()})
    change(parts)
    content = put_together(parts)
    with pytest.raises(Refused, match=words):
        reader.read(content)
    old = "version 2" in words  # which Python reads, and finds other fields in
    assert old or read_by_python(content) is None


def with_table(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Returns a file whose table of tensors was changed."""
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    change(table)
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def at_bias(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda content: with_table(content, lambda table: table["stem.bias"].update(fields))


BROKEN: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda b: b"", "fewer than 8 bytes"),
    (lambda b: b[:7], "fewer than 8 bytes"),
    (lambda b: b[:8], "truncated"),
    (lambda b: b[:100], "truncated"),
    (lambda b: bytes(8), "no JSON"),
    (lambda b: b"PK\3\4" + b[4:], "no safetensors file"),
    (lambda b: b"\2\0\0\0\0\0\0\0{}", "no artifact"),
    (lambda b: b"\3\0\0\0\0\0\0\0{\xff}", "no UTF-8"),
    (lambda b: b[:-1], "ends before its tensors"),
    (lambda b: b + b"\0", "goes on"),
    (lambda b: b[:-1] + bytes([b[-1] ^ 1]), "checksum"),
    (lambda b: b.replace(b"onednn", b"x86   "), "checksum"),
    (lambda b: with_table(b, lambda t: t.update(__metadata__={})), "no artifact"),
    (lambda b: with_table(b, lambda t: t.update(__metadata__={"qzoo": {}})), "no artifact"),
    (lambda b: with_table(b, lambda t: t.update(__metadata__={"qzoo": "[]"})), "no artifact"),
    (lambda b: with_table(b, lambda t: t.update(more=3)), "lacks its dtype"),
    (lambda b: with_table(b, lambda t: t.pop("stem.bias")), "overlap others or leave a gap"),
    (at_bias(more=1), "lacks its dtype"),
    (at_bias(dtype="F8"), "dtype"),
    (at_bias(dtype=3), "dtype"),
    (at_bias(shape=[2**40]), "impossible shape"),
    (at_bias(shape=[2**30, 2**30]), "impossible shape"),
    (at_bias(shape=[-16]), "impossible shape"),
    (at_bias(shape=[0, 2**39, 2**39]), "impossible shape"),
    (at_bias(shape=[15]), "another size"),
    (at_bias(data_offsets=[0]), "another size"),
    (at_bias(data_offsets=[64, 0]), "another size"),
    (at_bias(data_offsets=[2**40 - 65, 2**40 - 1]), "overlap others or leave a gap"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), BROKEN, ids=[words for _, words in BROKEN])
def test_broken_files(damage: Callable[[bytes], bytes], words: str, reader: Reader) -> None:
    content = damage(any_artifact().to_bytes())
    with pytest.raises(Refused, match=words):
        reader.read(content)
    assert read_by_python(content) is None


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_json_is_that_of_python(reader: Reader) -> None:
    """What Python's reader takes for JSON, the one in C takes, and nothing else."""
    texts = (
        '{"a":1,"a":2}', '{"a":1,"b":{"a":2}}', '{"b":[],"a":{},"c":""}', '{"a":1,"\\u0061":2}',
        "{}", "[]", '{"a"}', '{"a":}', '{"a":1,}', '{,}', "{1:2}", '{"a" 1}', "{'a':1}",
        '{"a":[1,]}', '{"a":[,]}', '{"a":[1 2]}', '{"a":[1}', '{"a":01}', '{"a":-0.5}', '{"a":1.}',
        '{"a":.5}', '{"a":+1}', '{"a":-}', '{"a":1e}', '{"a":100000.0}', '{"a":1e999}',
        '{"a":-1e999}',
        '{"a":1.7976931348623157e+308}', '{"a":1.7976931348623159e+308}', '{"a":NaN}',
        '{"a":Infinity}', '{"a":tru}', '{"a":truex}', '{"a":null,"b":true,"c":false}',
        '{"a":"\x01"}', '{"a":"\t"}', '{"a":"\x7f"}', '{"a":"\\x"}', '{"a":"\\u12"}',
        '{"a":"\\u12g4"}', '{"a":"\\ud83d\\ude00 \\u00e9 \\n\\t\\"\\\\\\/\\b\\f\\r\\u001f"}',
        '{"a":"\\ud83d"}', '{"a":"\\ud83dx"}', '{"a":"\\ude00"}', '{"a":"\\ud83d\\ud83d"}',
        '{"a":"é 魚 😀"}', '{"a":"', '{"a":"\\', '{"a":"\\u', " \n\r\t{ } ", "{}\x00", "{}\x0b",
        f'{{"a":{nested(30)}}}', f'{{"a":{nested(31)}}}', nested(31), nested(32), nested(9000),
        '{"a":' * 31 + "1" + "}" * 31, '{"a":' * 5000, f'{{"a":1{"0" * 400}}}',
    )  # fmt: skip
    parts = take_apart(any_artifact().to_bytes())
    for text in texts:
        found: Any = None
        try:
            found = strict_json.parse(f'{{"recipe":{text}}}')["recipe"]
            good = isinstance(found, dict)  # as a recipe is
            digest = checksum(Parts({**parts.header, "recipe": found}, parts.tensors))
            json.dumps(found, ensure_ascii=False).encode()
        except ValueError:
            good, digest = False, "0" * 64
        header = json.dumps({**parts.header, "recipe": "PLACE", "sha256": digest})
        content = save(parts.tensors, metadata={"qzoo": header.replace('"PLACE"', text)})
        assert (read_by_python(content) is not None) is good, text
        assert took(reader, content) is good, text


def took(reader: Reader, content: bytes) -> bool:
    try:
        reader.free(reader.read(content))
    except Refused:
        return False
    return True


def test_numbers_are_those_of_python(reader: Reader) -> None:
    rnd = random.Random(3)
    texts = ["0", "-0", "-0.0", "0.1", "1e-400", "2.5e-324", "1e-45", "16777217.0", "1e11",
             "0.000001E+6", "1" + "0" * 12, "0." + "0" * 400 + "1e400", "1" * 800 + "e-790",
             "1.00000005960464477539062500", "1.0000000596046448" + "0" * 800 + "1",
             "1099511627775", "1e-99999999999999999999"]  # fmt: skip
    texts += [repr(rnd.uniform(-1, 1) * 10.0 ** rnd.randint(-40, 11)) for _ in range(500)]
    texts += [f"{rnd.randint(0, 9)}.{rnd.getrandbits(200)}e{rnd.randint(-60, 10)}" for _ in texts]
    parts = take_apart(every_operation().to_bytes())
    for key in ("gain", "offset"):
        node(parts, "scaled")[key] = [0] * len(texts)
    # The checksum is over the texts that the file has.
    header = json.dumps(
        parts.header | {"sha256": "f" * 64}, separators=(",", ":"), ensure_ascii=False
    )
    header = header.replace(str([0] * len(texts)).replace(" ", ""), f"[{','.join(texts)}]")
    with pytest.raises(Refused, match="checksum"):
        reader.read(save(parts.tensors, metadata={"qzoo": header}))
    digest = hashlib.sha256(re.sub(',"sha256":"f*"', "", header).encode())
    for name in sorted(parts.tensors):
        array = parts.tensors[name].numpy()
        digest.update(f"{name}:torch.{array.dtype}:{list(array.shape)}".encode() + array.tobytes())
    header = header.replace("f" * 64, digest.hexdigest())
    content = save(parts.tensors, metadata={"qzoo": header})
    file = reader.read(content)
    gain = fields_of(file.nodes[0])["gain"]
    assert gain == np.array([float(text) for text in texts]).astype(np.float32).tobytes()
    reader.free(file)


@pytest.mark.parametrize("seed", range(3))
def test_changed_files(seed: int, reader: Reader) -> None:
    """What Python's reader takes, the one in C takes, as the same nodes; and it ends cleanly."""
    base = [every_operation().to_bytes(), *bases()[:2]][seed]
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    both = 0
    for number in range(150):
        mutator = Mutator(base, 1000 * seed + number)
        content = getattr(mutator, kinds[number % len(kinds)])()
        try:
            nodes = reader.nodes(content)
        except Refused:
            nodes = None
        with quiet():
            artifact = read_by_python(content)
        if artifact is not None:
            assert nodes == pythons_nodes(artifact.graph), number
            both += 1
    assert both > 5


@pytest.mark.extended
@pytest.mark.skipif(not binding.libqzoo_files(), reason="built without libqzoo")
@pytest.mark.parametrize("name", BUILDERS)
def test_every_builder(name: str, reader: Reader) -> None:
    with quiet():
        artifact = from_native(uncalibrated(name))
    content, images = artifact.to_bytes(), small_images(name, 1).numpy()
    file = reader.read(content)
    found = [fields_of(file.nodes[i]) for i in range(file.node_count)]
    assert found == pythons_nodes(artifact.graph)
    model = binding.Model(artifact.graph)
    wanted = model.session(*images.shape[2:]).run(images)
    # The same from the nodes of the reader: a model without the constructor, which makes its own.
    own = object.__new__(binding.Model)
    own.graph, own._library = artifact.graph, model._library
    own._address = binding._create(
        model._library.qz_model_create, file.nodes, file.node_count, file.channels, 0
    )
    reader.free(file)
    del content
    logits = own.session(*images.shape[2:]).run(images)
    assert np.array_equal(logits, wanted)
    assert np.array_equal(logits, interpret(artifact.graph, images))
