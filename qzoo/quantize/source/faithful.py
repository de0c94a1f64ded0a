"""Whether a float model computes what its int8 model will: the architecture's own forward pass.

An int8 artifact holds numbers, but no graph: what runs is what the builder's model does. So a model
with another pool, a hook that changes values or a forward pass of its own would be quantized as if
it had none of them. Here both run on the same images before anything is quantized: the user's model
as it is, and the graph that int8 models run, in float. They are compared module by module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ...artifact.layers import RANGED_OPS
from ...artifact.picture_size import usual_size
from ...errors import ArgumentError, listed
from ...native.hooks import output_hooks
from ...native.layers import float_weights
from ...reference.run import compute, compute_weighted
from ...reference.trace import INPUT_AFFINE
from .float_model import eval_copy, fuse
from .layers import Source

#: Largest difference of a module's outputs, as a share of their size: a 40th of an int8 step.
#: Folding batch norm and the order of sums make at most 2e-6 on the zoo's builders.
TOLERANCE = 1e-4
#: Outputs that differ by less than this are the same, however small they are.
_NOTHING = 1e-12


def check_same_answers(model: nn.Module, source: Source, images: Tensor) -> None:
    """Checks that a float model computes what its int8 model will, up to rounding.

    Args:
        model: The user's model.
        source: What was found of it: a copy with batch norm folded, without hooks, and the
            architecture's forward pass.
        images: Float32 [N, 3, H, W].

    Raises:
        ArgumentError: It does not; the message names the place. Or it cannot process such images.
    """
    check = _Check(model, source)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        found = check.compare(images)
        if found is None and 2 * max(images.shape[2:]) < usual_size(source.info):
            # On small images the last layers see a single pixel, of which all pools give the same.
            # A model that takes no other size fails here; then the first comparison decides.
            with contextlib.suppress(ArgumentError):
                found = check.compare(noise(2 * max(images.shape[2:])))
    if found is not None:
        raise ArgumentError(found)


def noise(side: int) -> Tensor:
    """Returns random input for where there are no images, float32 [1, 3, side, side]."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(1, 3, side, side, generator=generator, dtype=torch.float32, device="cpu")


class _Check:
    """Compares a model with the graph that its int8 model will run; see `check_same_answers`."""

    def __init__(self, model: nn.Module, source: Source) -> None:
        self.model, self.source = model, source
        self.own = eval_copy(model, torch.float32)
        self.calls = [
            n for n in source.recording.graph.nodes
            if n.op == "call_module" and n.target != INPUT_AFFINE
        ]  # fmt: skip
        # Folding leaves no value in front of a batch norm or a ReLU that was folded in.
        self.compared = [n for n in self.calls if not self._folded(n)]

    def compare(self, images: Tensor) -> str | None:
        """Returns in words where the two part, or None.

        Raises:
            ArgumentError: One of them cannot process the images.
        """
        found = self._compare(images, torch.float32)
        if found is not None:
            # Where large sums cancel out, float32 is too coarse to tell: float64 decides.
            with contextlib.suppress(Exception):  # code of the user's may insist on float32
                found = self._compare(images, torch.float64)
        return found

    def _compare(self, images: Tensor, dtype: torch.dtype) -> str | None:
        own, fused = self.own, self.source.fused
        if dtype != torch.float32:
            own = eval_copy(self.model, dtype)
            fused = fuse(own)
        expected, logits = self._expected(images.to(dtype), fused)
        comparison = _Comparison(expected)
        names = list(dict.fromkeys(str(node.target) for node in self.calls))
        there = {name for name, _ in own.named_modules()}
        failure: Exception | None = None
        result: Any = None
        with output_hooks(own, [name for name in names if name in there], comparison.watch):
            try:
                result = own(images.to(dtype))
            except Exception as error:  # code of the user's
                failure = error
        if comparison.place is None and failure is not None:
            raise ArgumentError(
                f"The model itself fails on images {list(images.shape)} "
                f"({type(failure).__name__}: {_first_line(failure)}): mend it first."
            ) from failure
        if comparison.place is None and not _apart(result, logits):
            return None
        check_all_ran([name for name in names if self._op(name) in RANGED_OPS], comparison.ran)
        return self._words(comparison, [name for name in names if name not in comparison.ran])

    def _expected(self, images: Tensor, fused: nn.Module) -> tuple[dict[str, list[Tensor]], Tensor]:
        """Returns the outputs of the architecture's modules, call by call, and the logits."""
        values: dict[fx.Node, Any] = {}
        *nodes, output = self.source.recording.graph.nodes
        try:
            for node in nodes:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                if node.op == "placeholder":
                    values[node] = images
                elif node.op == "call_module":
                    values[node] = self._module(fused, str(node.target), *args)
                else:
                    values[node] = compute(fused, node, args, kwargs)
        except RuntimeError as error:
            raise cannot_process(images, error) from error
        expected: dict[str, list[Tensor]] = {}
        for node in self.compared:
            expected.setdefault(str(node.target), []).append(values[node])
        return expected, values[output.args[0]]

    def _module(self, fused: nn.Module, name: str, *args: Any) -> Any:
        """Returns what a module of the architecture gives, with the weights of `fused`."""
        recording, layer = self.source.recording, self.source.layers.get(name)
        if name == INPUT_AFFINE:
            assert recording.affine is not None
            gain, offset = (v.reshape(1, 3, 1, 1).to(args[0]) for v in recording.affine)
            return args[0] * gain + offset
        if layer is None:  # not in place: the input may be compared, too
            return recording.modules[name](args[0].clone())
        match layer.op:
            case "conv2d" | "linear":
                weight, bias = float_weights(fused, name)
                return compute_weighted(layer, args[0], weight, bias)
            case "functional":
                op, *operands = args
                result = getattr(torch, op.removesuffix("_relu"))(*operands)
                return F.relu(result) if op.endswith("_relu") else result
            case "hardswish":
                return F.hardswish(*args)
        return args[0]

    def _folded(self, node: fx.Node) -> bool:
        return any(self._op(str(user.target)) == "identity" for user in node.users)

    def _op(self, name: str) -> str:
        layer = self.source.layers.get(name)
        return "" if layer is None else layer.op

    def _words(self, comparison: _Comparison, silent: Sequence[str]) -> str:
        name = self.source.info.architecture
        text = (
            f"This model cannot be quantized: it computes something else than {name}, whose "
            "forward pass the int8 model has. "
        )
        text += "Its logits differ" if comparison.place is None else self._place(comparison.place)
        if comparison.last is not None:
            text += f", after {comparison.last!r}, where both agree"
        if silent:
            text += f" ({', '.join(map(repr, silent[:3]))} never ran)"
        return text + (
            ". Take the builder's modules and undo what changes their output: hooks, or a forward "
            "of one's own."
        )

    def _place(self, name: str) -> str:
        first = node = next(n for n in self.calls if n.target == name)
        while self._op(str(first.target)) == "identity":
            first = first.args[0]
        text = f"They part at {name!r}"
        if first is not node:
            text = f"They part between {str(first.target)!r} and {name!r}"
        own = _shown(self.model.get_submodule(name))
        builders = _shown(self.source.recording.modules[name])
        return text if own == builders else f"{text} ({own} instead of {builders})"


class _Comparison:
    """Compares a model's outputs, while it runs, with what they should be.

    Attributes:
        place: The first module whose output differs, or None.
        last: The last one before it whose output does not.
        ran: The modules that ran.
    """

    def __init__(self, expected: Mapping[str, Sequence[Tensor]]) -> None:
        self.place: str | None = None
        self.last: str | None = None
        self.ran: set[str] = set()
        self._rest = {name: list(reversed(values)) for name, values in expected.items()}

    def watch(self, name: str, output: Any) -> None:
        """Takes note of a module's output."""
        self.ran.add(name)
        if self.place is not None or name not in self._rest:
            return
        if not self._rest[name] or _apart(output, self._rest[name].pop()):
            self.place = name
        else:
            self.last = name


def check_all_ran(wanted: Sequence[str], ran: Collection[str]) -> None:
    """Checks that a forward pass has reached every layer.

    Args:
        wanted: The layers whose range is needed.
        ran: Those that ran.

    Raises:
        ArgumentError: A layer never ran, so that nothing is known of its range.
    """
    if silent := [name for name in wanted if name not in ran]:
        others = f" (nor {listed(silent[1:], 3)})" if len(silent) > 1 else ""
        raise ArgumentError(
            f"Layer {silent[0]!r} never ran during calibration{others}, so its range is unknown: "
            "this model's forward pass leaves out what its architecture has. Undo that."
        )


def cannot_process(images: Tensor, error: Exception) -> ArgumentError:
    """Returns the error that says that images are not what the model takes."""
    return ArgumentError(
        f"The model cannot process calibration images {list(images.shape)} "
        f"({_first_line(error)}): give them the size that its evaluation transforms crop to."
    )


def _apart(given: Any, expected: Tensor) -> bool:
    """Whether two outputs differ by more than rounding explains."""
    if not isinstance(given, Tensor) or given.shape != expected.shape:
        return True
    given, expected = (torch.nan_to_num(t.detach().double()) for t in (given, expected))
    error, size = (float(t.square().mean().sqrt()) for t in (given - expected, expected))
    return error > TOLERANCE * size + _NOTHING


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def _shown(module: nn.Module) -> str:
    """Returns a module's type and settings, in one line."""
    return f"{type(module).__name__}({' '.join(module.extra_repr().split())})"[:120]
