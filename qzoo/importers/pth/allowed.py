"""The globals that a checkpoint may refer to, each mapped to inert data or a function of our own.

The names are those that `torch.save` writes for state dicts and training checkpoints
(`torch._utils`, `torch.storage`, `Tensor.__reduce_ex__`). What other code put beside the weights
stays a name (`Foreign`); of Python's own modules, whose functions hostile files call, only those
that hold plain values are on the list, and anything else is refused by name.
"""

from __future__ import annotations

import sys
from typing import Any

from .inert import (
    Dtype,
    Foreign,
    Function,
    Namespace,
    OrderedItems,
    RefusedError,
    StorageRef,
    TensorRef,
    shown,
)

_STORAGES = {
    "DoubleStorage": Dtype("float64", "float64"),
    "FloatStorage": Dtype("float32", "float32"),
    "HalfStorage": Dtype("float16", "float16"),
    "BFloat16Storage": Dtype("bfloat16", "bfloat16"),
    "LongStorage": Dtype("int64", "int64"),
    "IntStorage": Dtype("int32", "int32"),
    "ShortStorage": Dtype("int16", "int16"),
    "CharStorage": Dtype("int8", "int8"),
    "ByteStorage": Dtype("uint8", "uint8"),
    "BoolStorage": Dtype("bool", "bool"),
    "ComplexFloatStorage": Dtype("complex64", "complex64"),
    "ComplexDoubleStorage": Dtype("complex128", "complex128"),
    "UntypedStorage": Dtype("untyped", "uint8"),
    "QInt8Storage": Dtype("qint8", "int8", quantized=True),
    "QUInt8Storage": Dtype("quint8", "uint8", quantized=True),
    "QInt32Storage": Dtype("qint32", "int32", quantized=True),
}

# Dtypes that torch.save stores untyped, with the dtype as an argument of _rebuild_tensor_v3.
_UNTYPED_DTYPES = {
    f"torch.{name}": name for name in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")
}

_TORCH_NAMES = frozenset(
    [
        "float64", "double", "float32", "float", "float16", "half", "bfloat16", "complex64",
        "complex128", "bool", "uint8", "int8", "int16", "short", "int32", "int", "int64", "long",
        "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "qint8", "quint8", "qint32",
        "quint4x2", "quint2x4", "per_tensor_affine", "per_channel_affine", "per_tensor_symmetric",
        "per_channel_symmetric", "per_channel_affine_float_qparams", "strided",
    ]
)  # fmt: skip


# Modules and names of Python that stand for plain values. Nothing of them is run or kept either.
_PLAIN_MODULES = frozenset(
    ["datetime", "decimal", "fractions", "pathlib", "typing", "uuid", "zoneinfo"]
)
_BUILTINS = (
    "Ellipsis", "bool", "bytearray", "bytes", "complex", "dict", "float", "int", "list",
    "long", "object", "range", "slice", "str", "tuple", "type", "unicode", "xrange",
)  # fmt: skip
_PLAIN_NAMES = frozenset(
    [
        ("_codecs", "encode"),  # how protocol 2 writes bytes
        ("functools", "partial"),
        ("time", "struct_time"),
        *((module, name) for module in ("builtins", "__builtin__") for name in _BUILTINS),
    ]
)
# Python's modules, and those whose name was another one in Python 2, which protocol 2 writes.
_PYTHON = sys.stdlib_module_names | {"__builtin__", "commands", "copy_reg"}


def _ordered_dict() -> OrderedItems:
    return OrderedItems()


def _default_dict(factory: object = None) -> OrderedItems:
    return OrderedItems()


def _sequence(items: object = (), most: object = None) -> list[object]:
    if not isinstance(items, (list, tuple)):
        raise RefusedError("is damaged: a set or deque is not made of a list")
    # A list is handed on instead of copied, as in _counter.
    return items if isinstance(items, list) else list(items)


def _counter(items: object = None) -> object:
    # Handing the dict on instead of copying it keeps memory bounded; it is plain data either way.
    items = {} if items is None else items
    if not isinstance(items, dict):
        raise RefusedError("is damaged: a collections.Counter is not made of a dict")
    return items


def _tensor(
    storage: object, offset: object, shape: object, stride: object, **extra: Any
) -> TensorRef:
    if not isinstance(storage, StorageRef):
        raise RefusedError("is damaged: a tensor has no storage")
    return TensorRef(storage, offset, shape, stride, **extra)


def _tensor_v2(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    metadata: object = None,
) -> TensorRef:
    if metadata:
        raise RefusedError(
            "holds a tensor with a pending conjugation or negation, which qzoo does not read; "
            "call resolve_conj() and resolve_neg() on it before saving"
        )
    return _tensor(storage, offset, shape, stride)


def _tensor_v3(*arguments: object) -> TensorRef:
    """Takes what `_tensor_v2` takes, with a dtype before the metadata."""
    dtype = arguments[6] if len(arguments) > 6 else None
    ref = _tensor_v2(*arguments[:6], *arguments[7:])
    elements = _UNTYPED_DTYPES.get(dtype) if isinstance(dtype, str) else None
    if elements is None or ref.storage.kind.name != "untyped":
        raise RefusedError(
            f"holds a tensor of a dtype that qzoo does not know ({_described(dtype)}); "
            "save it with a plain dtype"
        )
    ref.elements = elements
    return ref


def _qtensor(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    qparams: object,
    requires_grad: object,
    hooks: object,
) -> TensorRef:
    if not isinstance(qparams, tuple):
        raise RefusedError("is damaged: a quantized tensor has no quantization parameters")
    return _tensor(storage, offset, shape, stride, qparams=qparams)


def _parameter(data: object, requires_grad: object, hooks: object, state: object = None) -> object:
    if not isinstance(data, TensorRef):
        raise RefusedError("is damaged: a parameter holds no tensor")
    return data


def _size(items: object = ()) -> object:
    if not isinstance(items, (tuple, list)):
        raise RefusedError("is damaged: a torch.Size is not made of numbers")
    # A list could be changed by a later instruction, but all geometry is checked at the end.
    return items


def _layout(name: object) -> str:
    if name != "torch.strided":
        raise RefusedError("holds a sparse layout, which qzoo does not read; save dense tensors")
    return name


def _device(kind: object, index: object = None) -> str:
    if not isinstance(kind, str) or not (index is None or type(index) is int):
        raise RefusedError("is damaged: a torch.device has no name")
    return kind if index is None else f"{kind}:{index}"


def _namespace() -> Namespace:
    return Namespace()


_FUNCTIONS = {
    (module, name): Function(f"{module}.{name}", run)
    for module, name, run in (
        ("collections", "OrderedDict", _ordered_dict),
        ("collections", "defaultdict", _default_dict),
        ("collections", "deque", _sequence),
        ("builtins", "set", _sequence),
        ("builtins", "frozenset", _sequence),
        ("__builtin__", "set", _sequence),
        ("__builtin__", "frozenset", _sequence),
        ("collections", "Counter", _counter),
        ("torch._utils", "_rebuild_tensor", _tensor),
        ("torch._utils", "_rebuild_tensor_v2", _tensor_v2),
        ("torch._utils", "_rebuild_tensor_v3", _tensor_v3),
        ("torch._utils", "_rebuild_qtensor", _qtensor),
        ("torch._utils", "_rebuild_parameter", _parameter),
        ("torch._utils", "_rebuild_parameter_with_state", _parameter),
        ("torch", "Size", _size),
        ("torch", "device", _device),
        ("torch.serialization", "_get_layout", _layout),
        ("argparse", "Namespace", _namespace),
        ("types", "SimpleNamespace", _namespace),
    )
}


def find_global(module: str, name: str) -> Function | Dtype | Foreign | str:
    """What stands for the global `module.name`.

    Raises:
        RefusedError: The global is one of Python's that is not on the list; nothing has been
            imported or run.
    """
    function = _FUNCTIONS.get((module, name))
    if function is not None:
        return function
    if module in ("torch", "torch.storage", "torch.cuda") and name in _STORAGES:
        return _STORAGES[name]
    if module == "torch" and name in _TORCH_NAMES:
        return f"torch.{name}"
    root = module.partition(".")[0]
    if root in _PYTHON and root not in _PLAIN_MODULES and (module, name) not in _PLAIN_NAMES:
        raise never_run(f"{module}.{name}")
    return Foreign(f"{module}.{name}")


def never_run(name: str) -> RefusedError:
    """The refusal of a file that needs what `name` would do."""
    return RefusedError(
        f"refers to {shown(name)}, which qzoo never runs; if you trust the file, load it with "
        "PyTorch and save its model.state_dict() alone"
    )


def _described(value: object) -> str:
    if isinstance(value, Foreign):
        return shown(value.name)
    return shown(value) if isinstance(value, str) else type(value).__name__
