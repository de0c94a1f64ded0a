"""The pickle instructions that checkpoints are made of, one small handler each."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .allowed import find_global
from .inert import (
    MAX_INT_BYTES,
    MAX_KEY,
    Dtype,
    Foreign,
    Function,
    Namespace,
    OddKey,
    OrderedItems,
    RefusedError,
    StorageRef,
    shown,
)

if TYPE_CHECKING:
    from .unpickler import Unpickler

Handler = Callable[["Unpickler"], None]

HANDLERS: dict[int, Handler] = {}  # by instruction byte; STOP is the interpreter's own
_INT32 = struct.Struct("<i")
_DOUBLE = struct.Struct(">d")


def _instruction(*codes: bytes, **fixed: Any) -> Callable[[Any], Any]:
    """Registers a handler for these instructions, which give it these arguments."""

    def register(handler: Any) -> Any:
        for code in codes:
            HANDLERS[code[0]] = partial(handler, **fixed) if fixed else handler
        return handler

    return register


@_instruction(pickle.PROTO)
def _proto(vm: Unpickler) -> None:
    version = vm.take(1)[0]
    if not 2 <= version <= 5:
        raise RefusedError(f"uses pickle protocol {version}; torch.save writes 2 to 5")
    vm.protocol = version


@_instruction(pickle.FRAME)
def _frame(vm: Unpickler) -> None:
    vm.take(8)  # a hint for readers of streams


@_instruction(pickle.NONE, value=None)
@_instruction(pickle.NEWTRUE, value=True)
@_instruction(pickle.NEWFALSE, value=False)
@_instruction(pickle.EMPTY_TUPLE, value=())
def _constant(vm: Unpickler, value: object) -> None:
    vm.push(value)


@_instruction(pickle.BININT1, width=1)
@_instruction(pickle.BININT2, width=2)
def _unsigned(vm: Unpickler, width: int) -> None:
    vm.push(_number(vm, width))


@_instruction(pickle.BININT)
def _int4(vm: Unpickler) -> None:
    vm.push(_INT32.unpack(vm.take(4))[0])


@_instruction(pickle.LONG1)
def _long(vm: Unpickler) -> None:
    count = vm.take(1)[0]
    if count > MAX_INT_BYTES:
        raise RefusedError(f"is damaged: it holds an integer of {count} bytes")
    vm.push(int.from_bytes(vm.take(count), "little", signed=True))


@_instruction(pickle.BINFLOAT)
def _float(vm: Unpickler) -> None:
    vm.push(_DOUBLE.unpack(vm.take(8))[0])


# The BINSTRING pair is how Python 2 wrote text.
@_instruction(pickle.SHORT_BINUNICODE, pickle.SHORT_BINSTRING, width=1)
@_instruction(pickle.BINUNICODE, pickle.BINSTRING, width=4)
def _text(vm: Unpickler, width: int) -> None:
    vm.push(vm.take(_number(vm, width)).decode("utf-8"))


# Bytes lie beside the weights only, and nothing asks for them.
@_instruction(pickle.SHORT_BINBYTES, name="SHORT_BINBYTES", width=1, since=3)
@_instruction(pickle.BINBYTES, name="BINBYTES", width=4, since=3)
@_instruction(pickle.BYTEARRAY8, name="BYTEARRAY8", width=8, since=5)
def _bytes(vm: Unpickler, name: str, width: int, since: int) -> None:
    """Skips bytes whose count takes `width` bytes, where the pickle's protocol has them."""
    if vm.protocol < since:
        raise unknown_instruction(name)
    vm.take(_number(vm, width))
    vm.push(Foreign("bytes"))


@_instruction(pickle.TUPLE1, count=1)
@_instruction(pickle.TUPLE2, count=2)
@_instruction(pickle.TUPLE3, count=3)
def _short_tuple(vm: Unpickler, count: int) -> None:
    last_first = [vm.pop() for _ in range(count)]
    vm.push(tuple(reversed(last_first)))


@_instruction(pickle.MARK)
def _mark(vm: Unpickler) -> None:
    vm.mark()


@_instruction(pickle.TUPLE)
def _tuple(vm: Unpickler) -> None:
    items = vm.pop_mark()
    vm.push(tuple(items))


# Sets, as protocol 4 writes them, come out as lists.
@_instruction(pickle.FROZENSET)
def _frozenset(vm: Unpickler) -> None:
    vm.push(vm.pop_mark())


@_instruction(pickle.EMPTY_LIST, pickle.EMPTY_SET)
def _empty_list(vm: Unpickler) -> None:
    vm.push([])


@_instruction(pickle.APPEND)
def _append(vm: Unpickler) -> None:
    item = vm.pop()
    _as_list(vm.top()).append(item)


@_instruction(pickle.APPENDS, pickle.ADDITEMS)
def _appends(vm: Unpickler) -> None:
    items = vm.pop_mark()
    _as_list(vm.top()).extend(items)


@_instruction(pickle.EMPTY_DICT)
def _empty_dict(vm: Unpickler) -> None:
    vm.push({})


@_instruction(pickle.SETITEM)
def _setitem(vm: Unpickler) -> None:
    value, key = vm.pop(), vm.pop()
    _set_items(vm.top(), [key, value])


@_instruction(pickle.SETITEMS)
def _setitems(vm: Unpickler) -> None:
    items = vm.pop_mark()
    _set_items(vm.top(), items)


@_instruction(pickle.BINPUT, width=1)
@_instruction(pickle.LONG_BINPUT, width=4)
def _put(vm: Unpickler, width: int) -> None:
    vm.remember(_number(vm, width))


@_instruction(pickle.MEMOIZE)
def _memoize(vm: Unpickler) -> None:
    vm.remember()


@_instruction(pickle.BINGET, width=1)
@_instruction(pickle.LONG_BINGET, width=4)
def _get(vm: Unpickler, width: int) -> None:
    vm.recall(_number(vm, width))


@_instruction(pickle.GLOBAL)
def _global(vm: Unpickler) -> None:
    module, name = vm.line(), vm.line()
    vm.push(find_global(module, name))


@_instruction(pickle.STACK_GLOBAL)
def _stack_global(vm: Unpickler) -> None:
    name, module = vm.pop(), vm.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise RefusedError("is damaged: it refers to a name that is no text")
    vm.push(find_global(module, name))


@_instruction(pickle.INST)
def _inst(vm: Unpickler) -> None:
    # Refused like any unknown instruction, but by the name of what it would have called.
    module, name = vm.line(), vm.line()
    find_global(module, name)
    raise RefusedError(f"calls {shown(module)}.{shown(name)} in a way that torch.save never does")


@_instruction(pickle.REDUCE, pickle.NEWOBJ)
def _call(vm: Unpickler) -> None:
    arguments, function = vm.pop(), vm.pop()
    if not isinstance(function, (Function, Foreign)) or not isinstance(arguments, tuple):
        raise RefusedError("is damaged: it calls something that is no function")
    if isinstance(function, Foreign):
        vm.push(Foreign(function.name))
        return
    if arguments and isinstance(arguments[0], Foreign) and function.name.startswith("torch."):
        vm.push(arguments[0])  # a tensor made of what is never made is as foreign
        return
    try:
        vm.push(function.run(*arguments))
    except TypeError as error:
        raise RefusedError(
            f"calls {function.name} with {len(arguments)} arguments, which torch.save never does"
        ) from error


@_instruction(pickle.BUILD)
def _build(vm: Unpickler) -> None:
    state, target = vm.pop(), vm.top()
    if isinstance(target, Foreign):
        return
    if isinstance(target, Namespace) and isinstance(state, dict) and target.fields is None:
        target.fields = state
    elif isinstance(target, OrderedItems) and isinstance(state, dict):
        strange = next((key for key in state if key != "_metadata"), None)
        if strange is not None:
            raise RefusedError(
                f"sets the attribute {shown(str(strange))} on a dict; save the model's "
                "state_dict() as it is"
            )
        target.metadata = state.get("_metadata")
    else:
        raise RefusedError("is damaged: it sets attributes on something that has none")


@_instruction(pickle.BINPERSID)
def _persistent(vm: Unpickler) -> None:
    saved = vm.pop()
    if not isinstance(saved, tuple) or not saved or saved[0] != "storage":
        if isinstance(saved, tuple) and saved and saved[0] == "module":
            if len(saved) == 4 and isinstance(saved[1], Foreign):  # a class and its source
                vm.push(saved[1])
                return
            raise RefusedError("holds a whole module; save its state_dict() alone")
        raise RefusedError("is damaged: it refers to something that is no storage")
    if len(saved) == 6 and saved[5] is not None:
        raise RefusedError(
            "holds views of storages as PyTorch before 0.4 wrote them; "
            "load it with PyTorch and save it again"
        )
    if len(saved) not in (5, 6):
        raise RefusedError("is damaged: a storage's description is incomplete")
    kind, key, _, count = saved[1:5]
    if not isinstance(kind, Dtype) or not isinstance(key, str) or type(count) is not int:
        raise RefusedError("is damaged: a storage's description is incomplete")
    if not 0 <= count < 1 << 48:
        raise RefusedError(f"is damaged: a storage of {count} elements")
    ref = vm.storages.setdefault(key, StorageRef(kind, key, count))
    if ref.kind is not kind or ref.count != count:
        raise RefusedError(f"is damaged: it describes storage {shown(key)} in two ways")
    vm.push(ref)


def _number(vm: Unpickler, width: int) -> int:
    return int.from_bytes(vm.take(width), "little")


def unknown_instruction(name: str) -> RefusedError:
    """The refusal of a file with an instruction that is not among the handlers."""
    return RefusedError(
        f"uses the pickle instruction {name}, which no checkpoint needs and qzoo never runs; save "
        "the model's state_dict() with torch.save"
    )


def _as_list(target: object) -> list[object]:
    if isinstance(target, Foreign):
        return []  # its items are as foreign as itself
    if not isinstance(target, list):
        raise RefusedError("is damaged: it appends to something that is no list")
    return target


def _set_items(target: object, items: list[object]) -> None:
    target = target.items if isinstance(target, Foreign) else target
    if not isinstance(target, dict) or len(items) % 2:
        raise RefusedError("is damaged: it sets items of something that is no dict")
    for index in range(0, len(items), 2):
        key = items[index]
        plain = isinstance(key, str) or (type(key) is int and -MAX_KEY < key < MAX_KEY)
        target[key if plain else OddKey()] = items[index + 1]
