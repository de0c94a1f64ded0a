"""Sizes of tensors, of which height, width and batch may be open.

Every convolution and pool turns a size n into floor((n + shift) / divisor); so does any chain of
them. Two open sizes are thus equal for all pictures exactly if shift and divisor are.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ArtifactError


@dataclass(frozen=True)
class Open:
    """A size that depends on the input: floor((axis + shift) / divisor).

    Attributes:
        axis: "batch", "height" or "width" of the input, in images or pixels; or the text of a size
            that has no such form.
        shift: Added to it, in pixels.
        divisor: The strides so far, multiplied.
    """

    axis: str
    shift: int = 0
    divisor: int = 1

    def __str__(self) -> str:
        """Returns the size as people write it."""
        shifted = f"{self.axis}{self.shift:+d}" if self.shift else self.axis
        return shifted if self.divisor == 1 else f"floor(({shifted})/{self.divisor})"

    __repr__ = __str__


Size = int | Open


def may_be_same(first: Size, second: Size) -> bool:
    """Whether two sizes are equal for some input at least, as far as they say."""
    return first == second or isinstance(first, Open) or isinstance(second, Open)


def window(
    size: Size,
    kernel: int,
    stride: int,
    before: int = 0,
    after: int = 0,
    dilation: int = 1,
    ceil: bool = False,
) -> Size:
    """Returns the size after a window has moved over it, as PyTorch counts.

    Args:
        size: Height or width, in pixels.
        kernel: The window's size.
        stride: How far it moves each time.
        before: Padding in front.
        after: Padding behind.
        dilation: Distance of the window's pixels.
        ceil: Whether a window that the padded size cuts short counts too, provided that it does
            not start in the padding behind.

    Raises:
        ArtifactError: The window is larger than a fixed size.
    """
    # The last start of a window, before division: size + room.
    room = before + after - dilation * (kernel - 1) - 1
    more = stride - 1 if ceil else 0
    if isinstance(size, int):
        if size + room < 0:
            raise ArtifactError(f"has a window of {dilation * (kernel - 1) + 1} pixels over {size}")
        count = (size + room + more) // stride + 1
        return count - 1 if ceil and (count - 1) * stride >= size + before else count
    if ceil and room + more >= before:
        # For some sizes the last window would start in the padding and is left out, so that no
        # shift and divisor give the count.
        return Open(f"ceil(({size}{room:+d})/{stride})+1 below {size}+{before}")
    shift = size.shift + size.divisor * (room + more + stride)
    return Open(size.axis, shift, size.divisor * stride)
