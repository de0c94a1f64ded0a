"""PyTorch's own ways to int8, whose observers choose the ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...artifact.format import Artifact
from ...artifact.layers import weighted_layers
from ...backends import Backend
from ...errors import ArgumentError
from ...importers.pt2e import from_pt2e
from ...native.engines import quantized_engine, run_engine
from ...native.markers import require_torch_ao
from ...native.model import attach_info, from_native
from ..data import Calibration
from ..observers import IntegerRange, Observer
from ..options import FLOWS as FLOWS
from ..options import PTQOptions
from ..source import Source, open_source, ranged_layers
from ..source.faithful import check_all_ran
from ..state import match_layers
from ..steps.calibrate import forward

Before = Callable[[Tensor], Tensor]


def torch_artifact(
    model: nn.Module, calibration: Calibration, backend: Backend, options: PTQOptions
) -> Artifact:
    """Quantizes by one of PyTorch's flows, with the default observers of a backend.

    Args:
        model: A float model of the zoo; left as it was.
        calibration: The images.
        backend: The numeric configuration.
        options: Which flow, and what it takes.

    Raises:
        ArgumentError: A pattern that matches nothing, or a model that the flow does not take.
        ArtifactError: Settings whose result an int8 artifact cannot hold.
        MissingDependencyError: torchao, or ExecuTorch's quantizer, is not installed.
    """
    run = _Run(model, calibration, backend, options)
    # Converting makes modules whose random weights are then replaced.
    with torch.random.fork_rng(devices=[]):
        return _FLOWS[options.flow](run)


@dataclass(frozen=True)
class _Run:
    """A model on its way through one of the flows; see `torch_artifact`."""

    model: Any
    calibration: Calibration
    backend: Backend
    options: PTQOptions

    def eager(self) -> Artifact:
        if self.options.keep_float:
            raise ArgumentError(
                'keep_float goes with qzoo\'s own steps or with flow="fx" and "pt2e", not with '
                "PyTorch's eager observers: leave one of them out."
            )
        require_torch_ao('The recipe "torchvision"')
        from ...native import eager

        source = self._source()
        observed: Any = source.fused
        eager.insert_observers(observed, self.backend.qconfig())
        wanted = ranged_layers(source.recording, source.layers)
        with _noting(observed, wanted) as ran:
            self._calibrate(observed)
        # PyTorch would give a layer that never ran the scale 1.0.
        check_all_ran(wanted, ran)
        with quantized_engine(run_engine(self.backend.name)):
            eager.convert_observed(observed)
            return from_native(attach_info(observed, source.info))

    def fx(self) -> Artifact:
        require_torch_ao('flow="fx"')
        from ...importers.fx import from_fx
        from ...native import fx

        mapping = self.options.qconfig_mapping
        if mapping is not None:
            fx.check_mapping(mapping)
        source = self._source()
        plain: Any = source.plain
        before = None
        if getattr(plain, "transform_input", False):
            # FX would quantize this float arithmetic in front of the model, which artifacts do not.
            before, plain.transform_input = self.model._transform_input, False
        example = next(self._images("", before))
        mapping = fx.mapping_for(self.backend.name, mapping, self._kept(source))
        prepared = fx.prepare_graph(plain, mapping, example)
        self._calibrate(prepared, before)
        with quantized_engine(run_engine(self.backend.name)):
            converted = fx.convert_graph(prepared)
            images = self._images("measure ranges", before)
            grid = IntegerRange(0, self.backend.activation_max)
            return from_fx(converted, source.info, example, images, lambda: Observer(grid))

    def pt2e(self) -> Artifact:
        from . import pt2e

        source = self._source()
        kept = self._kept(source)
        example = next(iter(self.calibration))
        prepared = pt2e.prepare(source.plain, example, self.backend, self.options.quantizer, kept)
        self._calibrate(prepared)
        images = self._images("measure ranges")
        return from_pt2e(pt2e.convert(prepared), source.info, images, keep_float=kept)

    def _source(self) -> Source:
        return open_source(self.model, self.backend, self.calibration)

    def _kept(self, source: Source) -> set[str]:
        """Returns the names of the layers to keep in float."""
        return match_layers(self.options.keep_float, weighted_layers(source.layers))

    def _images(self, title: str, before: Before | None = None) -> Iterator[Tensor]:
        """Yields the calibration images, each through `before`, with a bar if it has a title."""
        hidden = not (self.options.progress and title)
        bar = tqdm(self.calibration, title, unit="batch", leave=False, disable=hidden)
        yield from bar if before is None else map(before, bar)

    def _calibrate(self, observed: nn.Module, before: Before | None = None) -> None:
        with torch.no_grad():
            for batch in self._images("calibrate", before):
                forward(observed, batch)


_FLOWS = {"eager": _Run.eager, "fx": _Run.fx, "pt2e": _Run.pt2e}


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
