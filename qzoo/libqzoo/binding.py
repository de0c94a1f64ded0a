"""libqzoo's functions, called through ctypes; libqzoo/include/qzoo.h describes them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.graph import INPUT, Graph, Node
from ..errors import ArgumentError, ArtifactError, MissingDependencyError, QzooError

_MESSAGE = 200
#: The operations in the order of `qz_op`.
OPS = (
    "affine", "quantize", "dequantize", "conv2d", "linear", "add", "mul", "concat", "table", "clip",
    "max_pool2d", "avg_pool2d", "mean", "channel_shuffle", "slice", "pad", "flatten", "reshape",
)  # fmt: skip
_Pair, _Four = ctypes.c_int32 * 2, ctypes.c_int32 * 4


class _Node(ctypes.Structure):
    """`qz_node`."""

    _fields_ = (
        ("op", ctypes.c_int32),
        ("input_count", ctypes.c_int32),
        ("inputs", ctypes.POINTER(ctypes.c_int32)),
        ("scale", ctypes.c_float),
        ("zero_point", ctypes.c_int32),
        ("low", ctypes.c_int32),
        ("high", ctypes.c_int32),
        ("kernel", _Pair),
        ("stride", _Pair),
        ("padding", _Four),
        ("dilation", _Pair),
        ("groups", ctypes.c_int32),
        ("ceil_mode", ctypes.c_int32),
        ("count_include_pad", ctypes.c_int32),
        ("keep_dimensions", ctypes.c_int32),
        ("start", ctypes.c_int32),
        ("stop", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int32 * 3),
        ("affine_count", ctypes.c_int32),
        ("gain", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("weight_shape", _Four),
        ("weight", ctypes.c_void_p),
        ("float_weight", ctypes.c_void_p),
        ("scale_count", ctypes.c_int32),
        ("weight_scale", ctypes.c_void_p),
        ("weight_zero_point", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
    )


#: What to do where the library is missing.
BUILD_LIBQZOO = "python -m qzoo.libqzoo.build builds it in a checkout"


def libqzoo_files() -> list[Path]:
    """Returns the library's file, or nothing where the package was built without it."""
    return sorted(Path(__file__).parent.glob("_qzoo.*"))


def missing_library() -> str | None:
    """Returns what the library is that was not built or cannot be loaded, what to do; or None."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def library() -> ctypes.CDLL:
    """Returns the library that was built with the package.

    Raises:
        MissingDependencyError: It was not built here, or cannot be loaded.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise MissingDependencyError(f"libqzoo {loaded}.")
    return loaded


@functools.cache
def _load() -> ctypes.CDLL | str:
    """Loads the library, or returns what keeps it from that and what to do."""
    files = libqzoo_files()
    if not files:
        return f"was not built with this installation of qzoo: {BUILD_LIBQZOO}"
    try:
        loaded = ctypes.CDLL(str(files[0]))
    except OSError as error:
        return f"cannot be loaded ({error})"
    pointer, whole, message = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
    out = ctypes.POINTER(pointer)
    for name, result, arguments in (
        ("model_create", whole, [ctypes.POINTER(_Node), whole, whole, whole, out, message]),
        ("instructions", message, []),
        ("model_free", None, [pointer]),
        ("model_memory", ctypes.c_size_t, [pointer]),
        ("session_create", whole, [pointer, whole, whole, whole, whole, out, message]),
        ("session_free", None, [pointer]),
        ("session_run", None, [pointer, whole, pointer, pointer]),
        ("session_run_bytes", None, [pointer, whole, pointer, pointer, pointer]),
        ("session_times", whole, [pointer, pointer, message]),
        ("session_classes", whole, [pointer]),
        ("session_memory", ctypes.c_size_t, [pointer]),
        ("session_value", whole, [pointer, whole, pointer, ctypes.c_size_t, message]),
    ):
        try:
            function = getattr(loaded, f"qz_{name}")
        except AttributeError:
            return f"is not that of this version of qzoo: {BUILD_LIBQZOO}"
        function.restype, function.argtypes = result, arguments
    return loaded


#: What `instructions` says where the library has no fast kernels for the processor.
PLAIN = "plain C"


def instructions() -> str:
    """Returns which instructions the library's kernels use here, such as "AVX-512 VNNI"."""
    name: bytes = library().qz_instructions()
    return name.decode("ascii")


_ERRORS: dict[int, type[QzooError]] = {1: ArgumentError, 2: ArtifactError, 3: QzooError}


def _create(function: Any, *arguments: Any) -> int:
    """Calls a function that makes something, and returns its address."""
    made, message = ctypes.c_void_p(), ctypes.create_string_buffer(_MESSAGE)
    status = function(*arguments, ctypes.byref(made), message)
    if status:
        raise _ERRORS[status](f"libqzoo: {message.value.decode('ascii', 'replace')}.")
    assert made.value is not None
    return made.value


class Model:
    """A model in memory of the library's own; any number of sessions in any thread may use it.

    Args:
        graph: A checked graph.
        plain: Whether to compute in plain C, for comparing the fast kernels with it.
        skip: How many of the best kernel sets that the processor has to leave out, for comparing.

    Raises:
        MissingDependencyError: The library is not there.
        ArtifactError: The library refuses the graph.
    """

    def __init__(self, graph: Graph, plain: bool = False, skip: int = 0) -> None:
        self.graph = graph
        self._library = library()
        kept: list[Any] = []  # arrays that the nodes point to
        numbers = {INPUT: -1} | {node.name: i for i, node in enumerate(graph.nodes)}
        nodes = (_Node * len(graph.nodes))(
            *(_node(node, numbers, graph.tensors, kept) for node in graph.nodes)
        )
        self._address = _create(
            self._library.qz_model_create, nodes, len(nodes), 3, int(plain) | skip << 1
        )

    @property
    def memory(self) -> int:
        """Bytes that the model takes: its weights, mostly."""
        size: int = self._library.qz_model_memory(self._address)
        return size

    def session(
        self, height: int, width: int, threads: int = 1, keep: bool = False, times: bool = False
    ) -> Session:
        """Makes the model ready for images of one size.

        Args:
            height: In pixels.
            width: In pixels.
            threads: How many compute a call, the caller's included.
            keep: Whether all nodes' integers can be read after a run.
            times: Whether the time of each node is taken.

        Raises:
            ArgumentError: The model takes no such images.
        """
        return Session(self, (height, width), threads, keep, times)

    def __del__(self) -> None:
        if address := getattr(self, "_address", None):
            self._library.qz_model_free(address)


class Session:
    """A model made ready; see `Model.session`. It runs one call at a time."""

    def __init__(
        self, model: Model, size: tuple[int, int], threads: int, keep: bool, times: bool
    ) -> None:
        self.model, self.size = model, size
        self._library = model._library
        options = int(keep) | int(times) << 1
        self._address = _create(
            self._library.qz_session_create, model._address, *size, threads, options
        )
        self.classes: int = self._library.qz_session_classes(self._address)

    @property
    def memory(self) -> int:
        """Bytes that the session takes: tensors between the nodes, mostly."""
        size: int = self._library.qz_session_memory(self._address)
        return size

    def run(self, images: np.ndarray) -> np.ndarray:
        """Returns logits, float32 [N, classes].

        Args:
            images: float32 [N, 3, height, width] of the session's size, in one piece of memory.
        """
        assert images.shape[1:] == (3, *self.size)
        assert images.dtype == np.float32
        assert images.flags.c_contiguous
        logits = np.empty((len(images), self.classes), np.float32)
        self._library.qz_session_run(
            self._address, len(images), images.ctypes.data, logits.ctypes.data
        )
        return logits

    def run_bytes(self, pictures: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Returns logits, float32 [N, classes], of pictures: as `run` of `values` of their bytes.

        Args:
            pictures: uint8 [N, height, width, 3] of the session's size, in one piece of memory.
            values: float32 [3, 256]: the real number that each byte of a channel stands for.
        """
        assert pictures.shape[1:] == (*self.size, 3)
        assert values.shape == (3, 256)
        assert pictures.dtype == np.uint8
        assert values.dtype == np.float32
        assert pictures.flags.c_contiguous
        assert values.flags.c_contiguous
        logits = np.empty((len(pictures), self.classes), np.float32)
        self._library.qz_session_run_bytes(
            self._address, len(pictures), pictures.ctypes.data, values.ctypes.data,
            logits.ctypes.data,
        )  # fmt: skip
        return logits

    def times(self) -> np.ndarray:
        """Returns the seconds that each node of the graph took for an image, float64 [nodes].

        It is the last one, or where each thread had images of its own, the calling thread's last.
        A node that is computed with another, or needs no computing, has 0.
        """
        seconds = np.empty(len(self.model.graph.nodes))
        self._check(self._library.qz_session_times, seconds.ctypes.data)
        return seconds

    def _check(self, function: Any, *arguments: Any) -> None:
        message = ctypes.create_string_buffer(_MESSAGE)
        if status := function(self._address, *arguments, message):
            raise _ERRORS[status](f"libqzoo: {message.value.decode('ascii', 'replace')}.")

    def value(self, name: str) -> np.ndarray:
        """Returns the integers that a node gave for the last image, uint8, without the batch."""
        nodes = [node.name for node in self.model.graph.nodes]
        shape: Any = self.model.graph.sized(*self.size)[name][1:]
        result = np.empty(shape, np.uint8)
        self._check(
            self._library.qz_session_value, nodes.index(name), result.ctypes.data, result.nbytes
        )
        return result

    def __del__(self) -> None:
        if address := getattr(self, "_address", None):
            self._library.qz_session_free(address)


def _node(
    node: Node, numbers: Mapping[str, int], tensors: Mapping[str, np.ndarray], kept: list[Any]
) -> _Node:
    """Returns a node as the library takes it; `kept` takes the arrays that it points to."""
    a = node.attributes
    inputs = (ctypes.c_int32 * len(node.inputs))(*(numbers[name] for name in node.inputs))
    kept.append(inputs)
    made = _Node(op=OPS.index(node.op), input_count=len(inputs), inputs=inputs)
    if node.grid is not None:
        made.scale, made.zero_point = node.grid.scale, node.grid.zero_point
        made.low, made.high = node.grid.low, node.grid.high
    made.kernel, made.stride = _Pair(*a.get("kernel", ())), _Pair(*a.get("stride", ()))
    made.dilation = _Pair(*a.get("dilation", (1, 1)))
    padding = a.get("padding", ())
    made.padding = _Four(*(padding if len(padding) == 4 else [*padding, *padding]))
    made.groups = a.get("groups", 1)
    for flag in ("ceil_mode", "count_include_pad", "keep_dimensions"):
        setattr(made, flag, int(a.get(flag, False)))
    made.start, made.stop = a.get("start", 0), a.get("stop", 0)
    made.rank = len(a.get("shape", ()))
    made.shape = (ctypes.c_int32 * 3)(*a.get("shape", ()))

    def pointer(array: Any, dtype: Any) -> int:
        kept.append(np.require(array, dtype, "C"))
        address: int = kept[-1].ctypes.data
        return address

    if node.op == "affine":
        made.affine_count = len(a["gain"])
        made.gain, made.offset = (pointer(a[key], np.float32) for key in ("gain", "offset"))
    if node.op == "table":
        made.table = pointer(tensors[f"{node.name}.table"], np.uint8)
    if node.weighted:
        weight = tensors[f"{node.name}.weight"]
        made.weight_shape = _Four(*weight.shape, *[1] * (4 - weight.ndim))
        if (bias := tensors.get(f"{node.name}.bias")) is not None:
            made.bias = pointer(bias, np.float32)
        if node.float:
            made.float_weight = pointer(weight, np.float32)
        else:
            made.weight = pointer(weight, np.int8)
            scale = tensors[f"{node.name}.weight_scale"]
            made.scale_count, made.weight_scale = scale.size, pointer(scale, np.float32)
            if (zero := tensors.get(f"{node.name}.weight_zero_point")) is not None:
                made.weight_zero_point = pointer(zero, np.int8)
    return made
