"""The methods of post-training quantization that references/compare_ptq.py compares."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ptq_own
import ptq_peers
from ptq_case import Case, Quantized

from qzoo.registry import get_entry

ROOT = Path(__file__).parent.parent


#: The packages of the peers.
ONNXRUNTIME, OPENVINO = ("onnx", "onnxruntime", "onnxscript"), ("openvino", "nncf")


@dataclass(frozen=True)
class Method:
    """One row per model.

    Attributes:
        build: Quantizes a case's model.
        settings: Keyword arguments of `build`.
        packages: Packages that its figures depend on, besides torch.
        code: Files that its figures depend on, as patterns below the repository's root, besides
            the definition of the model.
        images: What it calibrates on: "stratified" (the case's images), "first" (those of a folder
            sorted by class) or "none".
    """

    build: Callable[..., Quantized]
    settings: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    images: str = "stratified"

    def __call__(self, case: Case) -> Quantized:
        """Quantizes a case's model."""
        return self.build(case, **self.settings)

    def missing(self) -> list[str]:
        """Returns the packages that it needs and that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def code_sha256(self, model: str) -> str:
        """Returns a digest of the code behind its figures; comments and docstrings do not count."""
        family = get_entry(model).builder.__module__.rpartition(".")[2]
        patterns = (f"qzoo/models/{family}.py", *_ALWAYS, *self.code)
        digest = hashlib.sha256(f"{sorted(self.settings.items())}\n".encode())
        for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern)}):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if isinstance(body, list) and body and _is_text(body[0]):
                    body[0] = ast.Pass()
            digest.update(f"{path.relative_to(ROOT).as_posix()}\n{ast.dump(tree)}\n".encode())
        return digest.hexdigest()


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


_ALWAYS = ("qzoo/models/_common.py", "references/ptq_case.py")
_QZOO = (
    "references/ptq_own.py",
    *("qzoo/quantize/**/*.py", "qzoo/reference/*.py", "qzoo/native/*.py", "qzoo/artifact/*.py"),
)


def _onnxruntime(**settings: Any) -> Method:
    return Method(ptq_peers.onnxruntime, settings, ONNXRUNTIME, ("references/ptq_peers.py",))


def _nncf(**settings: Any) -> Method:
    return Method(ptq_peers.nncf, settings, OPENVINO, ("references/ptq_peers.py",))


def _torchvision(**settings: Any) -> Method:
    return Method(ptq_own.torchvision_ptq, settings, code=_QZOO, images="first")


def _qzoo(**settings: Any) -> Method:
    return Method(ptq_own.qzoo_ptq, settings, code=_QZOO)


#: By the name in results files.
METHODS = {
    "float": Method(ptq_own.float_model, code=("references/ptq_own.py",), images="none"),
    "torchvision": _torchvision(),
    "torchvision-fbgemm": _torchvision(backend="fbgemm"),
    "onnxruntime-minmax": _onnxruntime(calibrate_method="MinMax"),
    "onnxruntime-entropy": _onnxruntime(calibrate_method="Entropy"),
    "onnxruntime-percentile": _onnxruntime(calibrate_method="Percentile"),
    "nncf-fast": _nncf(),
    "nncf-accurate": _nncf(fast_bias_correction=False),
    "nncf-mixed-fast": _nncf(preset="MIXED"),
    "nncf-mixed-accurate": _nncf(preset="MIXED", fast_bias_correction=False),
    "nncf-minmax-fast": _nncf(preset="MIXED", range_estimator="MINMAX"),
    "nncf-minmax-accurate": _nncf(
        preset="MIXED", range_estimator="MINMAX", fast_bias_correction=False
    ),
    "qzoo-fast": _qzoo(recipe="fast"),
    "qzoo-default": _qzoo(recipe="default"),
    "qzoo-best": _qzoo(recipe="best"),
}
