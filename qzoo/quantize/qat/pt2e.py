"""Quantization-aware training by torchao's PT2E flow, the second way; batch norm is folded first.

torchao's patterns for batch norm in training have an epsilon of 1e-5, whatever the model has
("TODO: allow setting eps" in torchao 0.18's `pt2e/qat_utils.py`). MobileNetV3, GoogLeNet and
Inception have 0.001, so that they would train as other models than they are;
pytorch/pytorch#114859 lost 12 points on MobileNetV3. Converting such a graph also mixes up which
convolution is which layer.

Modes are switched here, because torchao's own switch sets every dropout to 0.5 on the way.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...artifact.format import Artifact
from ...errors import ArgumentError, QuantizationWarning, listed, warn
from ...importers.pt2e import from_pt2e
from ..flows import pt2e
from ..source.float_model import float_copy
from ..state import Quantization
from .convert import check_converged
from .model import InTraining, QatPlan


class Pt2eModel(InTraining):
    """A model that torchao prepared for training, with the usual modes.

    In train mode its observers watch, unless they are frozen; in eval mode nothing moves. Its graph
    holds parameters under the user's names, after "prepared.".
    """

    def __init__(self, prepared: fx.GraphModule, plan: QatPlan) -> None:
        super().__init__()
        self.prepared, self.plan = prepared, plan
        self._frozen = False
        # A state dict of eval mode switches observers off.
        self.register_load_state_dict_post_hook(_restore_mode)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuses to be pickled.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError(
            "A model that trains by PT2E cannot be pickled, because what torchao needs to convert "
            'its graph would be lost: save its state_dict(), or train with flow="eager".'
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits, float32 [N, classes], of images, float32 [N, 3, H, W]."""
        y = self.prepared(x)
        return y if isinstance(y, Tensor) else y[0]

    def train(self, mode: bool = True) -> Pt2eModel:
        """Switches between training and evaluation."""
        self.training = mode
        _switch_dropout(self.prepared, mode)
        for module in _fake_quantizers(self.prepared):
            module.enable_observer(mode and not self._frozen)
        return self

    def freeze_observers(self, frozen: bool = True) -> None:
        """Stops batches from moving the ranges, or lets them move on."""
        self._frozen = frozen
        self.train(self.training)

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Does nothing: batch norm was folded."""

    def get_extra_state(self) -> Tensor:
        """Returns whether observers are frozen, bool [1], for the state dict."""
        return torch.tensor([self._frozen], dtype=torch.bool, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Freezes what a state dict says."""
        self.freeze_observers(bool(state[0]))

    def to_artifact(self) -> Artifact:
        """Returns the int8 artifact; see `qat.to_artifact`."""
        state = self.plan.state
        scales = ((f"{n}.scale", m.scale) for n, m in _named_fake_quantizers(self.prepared))
        check_converged([*self.prepared.named_parameters(), *scales])
        prepared = copy.deepcopy(self.prepared).cpu()
        if any(bool(m.scale.eq(1).all()) for m in _fake_quantizers(prepared)):
            raise ArgumentError(
                "This model has no ranges yet, so there is nothing to convert: train it for a step."
            )
        _switch_dropout(prepared, False)
        artifact = from_pt2e(
            pt2e.convert(prepared),
            state.info,
            state.calibration,
            keep_float=state.keep_float,
            backend=state.backend.name,
        )
        changed = artifact.info.recipe.get("changed", {})
        if changed:
            warn(
                f"{len(changed)} layers round in int8 where PT2E's training did not, or otherwise "
                f"({listed(changed, 3)}), so evaluate the int8 model itself.",
                QuantizationWarning,
            )
        recipe = {**state.info.recipe, **artifact.info.recipe, "method": "QAT (pt2e)"}
        return dataclasses.replace(artifact, info=dataclasses.replace(artifact.info, recipe=recipe))


def _restore_mode(model: nn.Module, _: Any) -> None:
    model.train(model.training)


def prepare_pt2e(state: Quantization, source: nn.Module) -> Pt2eModel:
    """Exports a float model in train mode and puts torchao's fake quantization into it.

    Args:
        state: The model on its way to int8, with its folded weights and calibration images, the
            first of which are the example of the export.
        source: The float model.

    Raises:
        ArgumentError: The model cannot be exported.
        MissingDependencyError: torchao, or the backend's quantizer, is not installed.
    """
    plain = float_copy(source)
    _fold(plain, state)
    plain.requires_grad_().train()
    example = next(iter(state.calibration))
    prepared = pt2e.prepare(plain, example, state.backend, keep_float=state.keep_float, is_qat=True)
    return Pt2eModel(prepared, QatPlan(state))


def _fold(plain: nn.Module, state: Quantization) -> None:
    """Gives a float model the folded weights, and identities for batch norms."""
    for name in state.weighted():
        layer: Any = plain.get_submodule(name)
        layer.weight = nn.Parameter(state.weight(name).clone())
        layer.bias = nn.Parameter(state.bias(name).clone())
    for name, module in list(plain.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            plain.get_submodule(parent)._modules[child] = nn.Identity()


def _switch_dropout(graph: fx.GraphModule, training: bool) -> None:
    """Tells the exported dropouts whether they are in training."""
    for node in graph.graph.nodes:
        if str(node.target) in ("aten.dropout.default", "aten.dropout_.default"):
            node.update_arg(2, training)
    graph.recompile()


def _fake_quantizers(graph: nn.Module) -> list[Any]:
    return [module for _, module in _named_fake_quantizers(graph)]


def _named_fake_quantizers(graph: nn.Module) -> list[tuple[str, Any]]:
    return [
        (n, module) for n, module in graph.named_modules() if hasattr(module, "observer_enabled")
    ]
