"""What all runtimes have in common: one small interface, and the checks on what goes in."""

from __future__ import annotations

import abc
import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .._core.finite import check_finite
from .._core.given import alike, as_array, is_tensor
from ..artifact.format import Artifact, ModelInfo
from ..artifact.picture_size import picture_size
from ..errors import ArgumentError, QzooError
from ..labels import Labelled

if TYPE_CHECKING:
    from torch import Tensor

    from .choice import Choice
    from .profile import Profile


@dataclass(frozen=True)
class Setting:
    """What a model is made ready for, checked.

    Attributes:
        threads: Threads to compute with; None leaves that to the runtime.
        batch_size: The only number of images per call; None takes any.
        size: Height and width of the images, in pixels.
    """

    threads: int | None
    batch_size: int | None
    size: tuple[int, int]

    @classmethod
    def of(
        cls,
        artifact: Artifact,
        threads: int | None,
        batch_size: int | None,
        input_size: int | Sequence[int] | None,
    ) -> Setting:
        """Checks what `compile` was asked for; without a size, the model's own counts.

        Raises:
            ArgumentError: A number is not a whole one above 0.
        """
        for name, value in (("threads", threads), ("batch_size", batch_size)):
            if value is not None and (type(value) is not int or value < 1):
                raise ArgumentError(
                    f"{name} must be a whole number above 0 or None, not {value!r}."
                )
        return cls(threads, batch_size, picture_size(artifact, input_size))


def _made(cls: type[CompiledModel], options: dict[str, Any]) -> CompiledModel:
    return cls(**options)


class CompiledModel(Labelled, abc.ABC):
    """An int8 model made ready for one runtime; call it like a module.

    Float32 images [N, 3, H, W] in, float32 logits [N, classes] out: a NumPy array for an array, a
    PyTorch tensor on the CPU for a tensor, the same numbers to the bit. It may be called from
    several threads at once.

    Args:
        artifact: The model's numbers.
        threads: Threads to compute with; None leaves that to the runtime.
        batch_size: The only batch size to take; None for any.
        input_size: Height and width of the images in pixels, or one number for both; None takes
            what the model was made for.

    Attributes:
        runtime: Name of what executes it.
        artifact: The model's numbers.
        threads: Threads it computes with; None leaves that to the runtime.
        batch_size: The only batch size it takes, or None for any.
        size: Height and width of the images it was made ready for, in pixels.
        setting: The three together.
        why: How `auto` came to choose this runtime; None where the user named it.
        classes: Class names in the order of the logits; None where nobody named them.
        transforms: What makes the input of a picture; None if not recorded.
    """

    runtime: str
    #: Whether it takes images of `size` alone.
    one_size = False

    def __init__(
        self,
        artifact: Artifact,
        threads: int | None = None,
        batch_size: int | None = None,
        input_size: int | Sequence[int] | None = None,
    ) -> None:
        self.setting = Setting.of(artifact, threads, batch_size, input_size)
        self.artifact = artifact
        self.threads, self.batch_size = threads, batch_size
        self.size = self.setting.size
        self.why: Choice | None = None
        self._prepare()

    @abc.abstractmethod
    def _prepare(self) -> None:
        """Makes the model ready for `artifact`, `threads`, `batch_size` and `size`."""

    @overload
    def __call__(self, x: np.ndarray) -> np.ndarray: ...
    @overload
    def __call__(self, x: Tensor) -> Tensor: ...
    def __call__(self, x: Any) -> Any:
        """Returns float32 logits [N, classes] of float32 images [N, 3, H, W].

        Args:
            x: A NumPy array, or a PyTorch tensor on the CPU; the result is of the same kind.

        Raises:
            ArgumentError: Neither of them, another dtype, layout, device or shape, another batch
                size than the model was compiled for, or values that are NaN or infinite.
        """
        return alike(self._run(self._checked(x)), x)

    def profile(self, images: np.ndarray | Tensor | None = None, repeats: int = 20) -> Profile:
        """Measures where the time of an image goes, node by node; only "libqzoo" can tell.

        Args:
            images: What a call takes; each is timed by itself. None takes a random one.
            repeats: How often each image is timed, after one round that is not.

        Returns:
            Time, products and share of the machine's peak of each node: `print` it to see the
            table, and `plot("profile.png")` it to see a chart.

        Raises:
            QzooError: The model runs on another runtime.
            ArgumentError: Images that the model does not take, or `repeats` below 1.
        """
        raise QzooError(
            f"The runtime {self.runtime!r} does not tell what its time goes to: compile with "
            'runtime="libqzoo" for a profile.'
        )

    def _model_info(self) -> ModelInfo:
        return self.artifact.info

    @abc.abstractmethod
    def _run(self, x: np.ndarray) -> np.ndarray:
        """Executes the model on a checked input.

        Args:
            x: In one piece of aligned memory that may be written to, which some packages insist on.

        Returns:
            An array that is not used for anything else.
        """

    @functools.cached_property
    def float_layers(self) -> tuple[str, ...]:
        """Layers with int8 weights that the runtime multiplies in float; empty when there are none.

        Those that the artifact itself keeps in float (`artifact.float_layers`) are not among them.
        Found out at the first access, because asking a runtime what it made of a model can take as
        long as compiling it.
        """
        return self._float_layers()

    def _float_layers(self) -> tuple[str, ...]:
        return ()

    @contextlib.contextmanager
    def _explained(self, height: int, width: int) -> Iterator[None]:
        """Turns whatever a runtime raises, each its own types, into one clear error."""
        try:
            yield
        except QzooError:
            raise
        except Exception as error:
            raise ArgumentError(
                f"The runtime {self.runtime!r} cannot run {self.artifact.info.name} on "
                f"images of {height}x{width} pixels: {str(error).strip()[-300:]}"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the model as its artifact and options, of which the reader makes it ready anew.

        So it goes to the processes that `multiprocessing` spawns. It is copied in the same way.
        """
        return _made, (type(self), self._options()), {"why": self.why}

    def _options(self) -> dict[str, Any]:
        """Returns the arguments that make another model like this one."""
        return {
            "artifact": self.artifact,
            "threads": self.threads,
            "batch_size": self.batch_size,
            "input_size": self.size,
        }

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.artifact.info.name}, runtime={self.runtime!r}, "
            f"threads={self.threads}, batch_size={self.batch_size})"
        )

    def _check_tensor(self, x: Tensor) -> None:
        """Checks that a tensor is dense, float32 and on the CPU."""
        if x.device.type != "cpu":
            raise ArgumentError(
                f"The input is on {x.device}, but {self.runtime} runs int8 models on the CPU: pass "
                "x.cpu()."
            )
        if str(x.layout) != "torch.strided":
            raise ArgumentError(
                f"The input has the layout {x.layout}, but the model takes dense images: pass "
                "x.to_dense()."
            )
        if str(x.dtype) != "torch.float32":
            raise ArgumentError(
                f"The input is {x.dtype}, but the model takes normalized float32 images: pass "
                "x.float() after the weights' transforms."
            )

    def _checked(self, x: Any) -> np.ndarray:
        """Checks the input, and returns an array that a runtime can read as it is."""
        if is_tensor(x):
            self._check_tensor(x)
            x = as_array(x)
        # Masked arrays are subclasses; where nobody imported numpy.ma, which takes 10 ms, none is.
        masked = "numpy.ma" in sys.modules and isinstance(x, np.ma.MaskedArray)
        if not isinstance(x, np.ndarray) or masked:
            raise ArgumentError(
                f"The input must be a NumPy array or a torch tensor, not {type(x).__name__}."
            )
        if x.dtype != np.float32:
            raise ArgumentError(
                f"The input is {x.dtype}, but the model takes normalized float32 images: pass "
                "x.astype(np.float32) after the weights' transforms."
            )
        if x.ndim != 4 or x.shape[1] != 3 or x.size == 0:
            raise ArgumentError(
                f"The input has the shape {x.shape}, but the model takes [N, 3, H, W]."
            )
        if self.batch_size is not None and x.shape[0] != self.batch_size:
            raise ArgumentError(
                f"The input has {x.shape[0]} images, but the model was compiled for "
                f"batch_size={self.batch_size}: pass that many, or compile with batch_size=None."
            )
        if self.one_size and x.shape[2:] != self.size:
            height, width = x.shape[2:]
            raise ArgumentError(
                f"The input has {height}x{width} pixels, but the model was compiled for "
                f"{self.size[0]}x{self.size[1]}: pass those, or compile with "
                f"input_size=({height}, {width})."
            )
        check_finite(x)
        return x if x.flags.carray else np.array(x, order="C")
