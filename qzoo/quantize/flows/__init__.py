"""PyTorch's own ways to int8, whose observers choose the ranges."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...artifact.format import Artifact
from ...artifact.layers import WEIGHTED_OPS
from ...backends import Backend, quantized_engine, run_engine
from ...errors import ArgumentError
from ...importers.pt2e import from_pt2e
from ...native.markers import require_torch_ao
from ...native.model import attach_info, from_native
from ..data import Calibration
from ..observers import IntegerRange, Observer
from ..source import Source, open_source, ranged_layers
from ..source.faithful import check_all_ran
from ..state import match_layers
from ..steps.calibrate import forward

FLOWS = ("eager", "fx", "pt2e")


def torch_artifact(
    model: nn.Module,
    calibration: Calibration,
    backend: Backend,
    flow: str,
    progress: bool,
    *,
    keep_float: Collection[str] = (),
    settings: Any = None,
) -> Artifact:
    """Quantizes by one of PyTorch's flows, with the default observers of a backend.

    Args:
        model: A float model of the zoo; left as it was.
        calibration: The images.
        backend: The numeric configuration.
        flow: "eager", "fx" or "pt2e".
        progress: Whether to show a progress bar.
        keep_float: Names or patterns of layers whose weights stay float; not with "eager".
        settings: A QConfigMapping for "fx", a quantizer of torchao for "pt2e"; None takes
            PyTorch's default of the backend.

    Raises:
        ArgumentError: A pattern that matches nothing, or a model that the flow does not take.
        ArtifactError: Settings whose result an int8 artifact cannot hold.
        MissingDependencyError: torchao, or ExecuTorch's quantizer, is not installed.
    """
    # Converting makes modules whose random weights are then replaced.
    with torch.random.fork_rng(devices=[]):
        return _FLOWS[flow](model, calibration, backend, progress, keep_float, settings)


def _eager(
    model: nn.Module,
    calibration: Calibration,
    backend: Backend,
    progress: bool,
    keep_float: Collection[str],
    settings: Any,
) -> Artifact:
    if keep_float:
        raise ArgumentError(
            'keep_float goes with qzoo\'s own steps or with flow="fx" and "pt2e", not with '
            "PyTorch's eager observers: leave one of them out."
        )
    require_torch_ao('The recipe "torchvision"')
    from ...native import eager

    source = open_source(model, backend, calibration)
    observed: Any = source.fused
    eager.insert_observers(observed, backend.qconfig())
    wanted = ranged_layers(source.recording, source.layers)
    with _noting(observed, wanted) as ran:
        _calibrate(observed, _Images(calibration, "calibrate", progress))
    # PyTorch would give a layer that never ran the scale 1.0.
    check_all_ran(wanted, ran)
    with quantized_engine(run_engine(backend.name)):
        eager.convert_observed(observed)
        return from_native(attach_info(observed, source.info))


def _fx(
    model: Any,
    calibration: Calibration,
    backend: Backend,
    progress: bool,
    keep_float: Collection[str],
    settings: Any,
) -> Artifact:
    require_torch_ao('flow="fx"')
    from ...importers.fx import from_fx
    from ...native import fx

    if settings is not None:
        fx.check_mapping(settings)
    source = open_source(model, backend, calibration)
    kept = _kept(source, keep_float)
    plain: Any = source.plain
    before = None
    if getattr(plain, "transform_input", False):
        # FX would quantize this float arithmetic in front of the model, which artifacts do not.
        before, plain.transform_input = model._transform_input, False
    example = next(iter(_Images(calibration, "", False, before)))
    mapping = fx.mapping_for(backend.name, settings, kept)
    prepared = fx.prepare_graph(plain, mapping, example)
    _calibrate(prepared, _Images(calibration, "calibrate", progress, before))
    with quantized_engine(run_engine(backend.name)):
        converted = fx.convert_graph(prepared)
        images = _Images(calibration, "measure ranges", progress, before)
        grid = IntegerRange(0, backend.activation_max)
        return from_fx(converted, source.info, example, images, lambda: Observer(grid))


def _pt2e(
    model: nn.Module,
    calibration: Calibration,
    backend: Backend,
    progress: bool,
    keep_float: Collection[str],
    settings: Any,
) -> Artifact:
    from .pt2e import convert, prepare

    source = open_source(model, backend, calibration)
    kept = _kept(source, keep_float)
    prepared = prepare(source.plain, next(iter(calibration)), backend, settings, kept)
    _calibrate(prepared, _Images(calibration, "calibrate", progress))
    images = _Images(calibration, "measure ranges", progress)
    return from_pt2e(convert(prepared), source.info, images, keep_float=kept)


_FLOWS = {"eager": _eager, "fx": _fx, "pt2e": _pt2e}


def _kept(source: Source, keep_float: Collection[str]) -> set[str]:
    """Returns the names of the layers to keep in float."""
    weighted = [name for name, layer in source.layers.items() if layer.op in WEIGHTED_OPS]
    return match_layers(list(keep_float), weighted)


class _Images:
    """Calibration images, read anew for every pass, with a progress bar."""

    def __init__(
        self,
        calibration: Calibration,
        title: str,
        progress: bool,
        before: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.calibration, self.title, self.progress = calibration, title, progress
        self.before = before

    def __iter__(self) -> Iterator[Tensor]:
        hidden = not self.progress
        bar = tqdm(self.calibration, self.title, unit="batch", leave=False, disable=hidden)
        for images in bar:
            yield images if self.before is None else self.before(images)


@contextmanager
def _noting(observed: nn.Module, names: Sequence[str]) -> Iterator[set[str]]:
    """Notes which of the named layers, whose outputs are observed, run inside a block."""
    ran: set[str] = set()
    handles = []
    for name in names:
        # A FloatFunctional is never called itself, but calls its observer.
        watched = observed.get_submodule(name).activation_post_process
        handles.append(
            watched.register_forward_hook(lambda *_, name=name: ran.add(name))  # type: ignore
        )
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def _calibrate(observed: nn.Module, images: _Images) -> None:
    with torch.no_grad():
        for batch in images:
            forward(observed, batch)
