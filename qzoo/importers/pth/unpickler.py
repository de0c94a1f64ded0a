"""A restricted unpickler: the few pickle instructions that checkpoints are made of, and no other.

It is an interpreter of its own rather than a subclass of `pickle.Unpickler` because that class
cannot be bounded: its `LONG_BINPUT` allocates a memo of any size that a file asks for, and its
`EXT`, `INST`, `OBJ` and `BUILD` reach code and attributes without going through `find_class`.
Here an instruction that is not in the table does not exist. The instructions are documented in
CPython's `Lib/pickletools.py`.
"""

from __future__ import annotations

import pickletools
import struct

from .inert import MAX_INSTRUCTIONS, MAX_NAME, RefusedError, StorageRef, TruncatedError
from .instructions import HANDLERS, unknown_instruction

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class Unpickler:
    """Reads pickles out of `data`, one after the other.

    Attributes:
        position: Offset of the next byte to read.
        protocol: Of the pickle that is being read, as it says itself.
        storages: The storages that persistent ids have named so far, by key.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.protocol = 2
        self.storages: dict[str, StorageRef] = {}
        self._left = MAX_INSTRUCTIONS
        self._stack: list[object] = []
        self._marks: list[list[object]] = []
        self._memo: dict[int, object] = {}

    def load(self) -> object:
        """The next object: plain Python values and the classes of `inert`.

        Raises:
            TruncatedError: The data ended first.
            RefusedError: The pickle is damaged, too large, or asks for what qzoo does not run.
        """
        self._stack, self._marks, self._memo = [], [], {}
        try:
            return self._run()
        except (IndexError, KeyError, UnicodeDecodeError, struct.error) as error:
            # An empty stack, an unknown memo slot, bytes that are no text.
            raise RefusedError(
                f"is damaged: its pickle makes no sense at byte {self.position}"
            ) from error

    def _run(self) -> object:
        data, handlers = self.data, HANDLERS
        while True:
            if self.position >= len(data):
                raise TruncatedError("is cut short: its pickle has no end")
            code = data[self.position]
            self.position += 1
            self._left -= 1
            if self._left < 0:
                raise RefusedError(
                    f"is too large for a checkpoint: more than {MAX_INSTRUCTIONS} instructions"
                )
            if code == 0x2E:  # STOP
                break
            handler = handlers.get(code)
            if handler is None:
                raise unknown_instruction(_NAMES.get(code, f"0x{code:02x}"))
            handler(self)
        (result,) = self._stack if len(self._stack) == 1 else (None,)
        if len(self._stack) != 1 or self._marks:
            raise RefusedError("is damaged: its pickle ends in the middle of an object")
        return result

    # What the instructions work with.

    def take(self, count: int) -> bytes:
        """Returns the next bytes of the pickle."""
        end = self.position + count
        if end > len(self.data):
            raise TruncatedError("is cut short: its pickle has no end")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def line(self) -> str:
        """Returns the text up to the next line break."""
        end = self.data.find(b"\n", self.position, self.position + MAX_NAME)
        if end < 0:
            if self.position + MAX_NAME > len(self.data):
                raise TruncatedError("is cut short: its pickle has no end")
            raise RefusedError("is damaged: it refers to a name of unreasonable length")
        text = self.data[self.position : end].decode("utf-8")
        self.position = end + 1
        return text

    def push(self, value: object) -> None:
        """Puts a value on the stack."""
        self._stack.append(value)

    def pop(self) -> object:
        """Takes the topmost value from the stack."""
        return self._stack.pop()

    def top(self) -> object:
        """Returns the topmost value, which stays."""
        return self._stack[-1]

    def mark(self) -> None:
        """Begins a new part of the stack."""
        self._marks.append(self._stack)
        self._stack = []

    def pop_mark(self) -> list[object]:
        """Returns the part of the stack above the last mark, and ends it."""
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def remember(self, slot: int | None = None) -> None:
        """Notes the topmost value under a number, or the next free one."""
        self._memo[len(self._memo) if slot is None else slot] = self._stack[-1]

    def recall(self, slot: int) -> None:
        """Puts the value that was noted under a number on the stack."""
        self._stack.append(self._memo[slot])
