"""What users can do without qzoo: the same float model, quantized and run by each peer's own tools.

Every peer is built once per model into a working folder and then made ready for each batch and
number of threads. Calibration uses two random batches: it decides on numbers, not on speed.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import efficientnet
import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from qzoo.backends import quantized_engine

Call = Callable[[], object]
#: Models with auxiliary classifiers, which nobody runs.
AUX = ("googlenet", "inception_v3")


@functools.lru_cache(maxsize=1)  # the large ones take 350 MB each
def float_model(name: str) -> nn.Module:
    """Returns a float model with random weights, in eval mode: torchvision's quantizable one.

    Its batch norms have seen a batch, as after training: signals that fade from layer to layer
    would end in zero points and ranges that no real model has, and those do cost time.
    """
    kwargs: dict[str, Any] = {}
    if name in AUX:
        kwargs = {"init_weights": False, "aux_logits": False}
    torch.manual_seed(0)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if name == efficientnet.NAME:
            model: nn.Module = efficientnet.EfficientNetLite0().train()
        else:
            model = getattr(torchvision.models.quantization, name)(weights=None, **kwargs).train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model(torch.randn(4, 3, 224, 224))
    return model.eval()


class Peers:
    """The peers of one model.

    Args:
        name: A name of `float_model`.
        side: Height and width of the pictures, in pixels.
        folder: Where built files are kept.
        skipped: Filled with what could not be built, and why.
    """

    def __init__(self, name: str, side: int, folder: Path, skipped: dict[str, str]) -> None:
        self.name, self.side, self.folder, self.skipped = name, side, folder, skipped
        generator = torch.Generator().manual_seed(0)
        self.samples = [torch.randn(1, 3, side, side, generator=generator) for _ in range(2)]
        self._torchvision: dict[str, nn.Module] = {}

    def calls(self, batch: int, threads: int, x: Tensor) -> Iterator[tuple[str, str, Call]]:
        """Yields name, precision and call of each peer, ready to be timed.

        PyTorch's number of threads is set by whoever calls.
        """
        for name, precision, build in (
            ("torch fp32", "fp32", self._torch_fp32),
            ("torch bf16", "bf16", self._torch_bf16),
            ("torchvision fbgemm", "int8", lambda *a: self.torchvision_int8("fbgemm", a[-1])),
            ("torchvision x86", "int8", lambda *a: self.torchvision_int8("x86", a[-1])),
            ("onnxruntime fp32", "fp32", lambda *a: self._onnxruntime(self._onnx(), *a)),
            ("onnxruntime int8", "int8", lambda *a: self._onnxruntime(self._onnx_int8(), *a)),
            ("openvino fp32", "fp32", lambda *a: self._openvino(self._ir(), "f32", *a)),
            ("openvino bf16", "bf16", lambda *a: self._openvino(self._ir(), "bf16", *a)),
            ("openvino nncf int8", "int8", lambda *a: self._openvino(self._ir_int8(), None, *a)),
        ):
            if name in self.skipped:
                continue
            try:
                yield name, precision, build(batch, threads, x)
            except Exception as error:  # a peer that fails is a row less, and said so
                self.skipped[name] = f"{type(error).__name__}: {str(error)[:200]}"

    def _torch_fp32(self, batch: int, threads: int, x: Tensor) -> Call:
        model = float_model(self.name)
        return lambda: model(x)

    def _torch_bf16(self, batch: int, threads: int, x: Tensor) -> Call:
        model, narrow = copy.deepcopy(float_model(self.name)).bfloat16(), x.bfloat16()
        return lambda: model(narrow)

    def torchvision_int8(self, engine: str, x: Tensor) -> Call:
        """Returns the call of torchvision's eager int8 model on one of PyTorch's engines.

        oneDNN prepares a layer for the threads and pictures of its first call, and anew in each
        call with others, so that every configuration gets a model that never ran.
        """
        with quantized_engine(engine):  # which weights are packed for, those of copies too
            if engine not in self._torchvision:
                self._torchvision[engine] = self._quantize_eagerly(engine)
            model = copy.deepcopy(self._torchvision[engine])
        return lambda: model(x)

    def _quantize_eagerly(self, engine: str) -> nn.Module:
        from torch.ao.quantization import convert, get_default_qconfig, prepare

        if self.name == efficientnet.NAME:
            raise LookupError("torchvision has no quantizable model of this name")
        model = copy.deepcopy(float_model(self.name))
        model.fuse_model(is_qat=False)  # type: ignore[operator]
        model.qconfig = get_default_qconfig(engine)
        prepare(model, inplace=True)
        for sample in self.samples:
            model(sample)
        return convert(model, inplace=True)

    def _onnxruntime(self, path: Path, batch: int, threads: int, x: Tensor) -> Call:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        feed = {session.get_inputs()[0].name: x.numpy()}
        return lambda: session.run(None, feed)

    def _openvino(
        self, path: Path, precision: str | None, batch: int, threads: int, x: Tensor
    ) -> Call:
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        model.reshape([batch, 3, self.side, self.side])
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        if precision is not None:
            config["INFERENCE_PRECISION_HINT"] = precision
        request = core.compile_model(model, "CPU", config).create_infer_request()
        feed = [x.numpy()]
        return lambda: request.infer(feed, share_inputs=True, share_outputs=True)

    def _onnx(self) -> Path:
        path = self.folder / f"{self.name}.onnx"
        if not path.exists():
            torch.onnx.export(
                float_model(self.name),
                (torch.cat(self.samples),),
                str(path),
                input_names=["input"],
                dynamo=True,
                external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
                verbose=False,
            )
        return path

    def _onnx_int8(self) -> Path:
        path = self.folder / f"{self.name}_int8.onnx"
        if not path.exists():
            from onnxruntime import quantization
            from onnxruntime.quantization.shape_inference import quant_pre_process

            class Reader(quantization.CalibrationDataReader):
                def __init__(self, samples: list[Tensor]) -> None:
                    self.feeds = iter([{"input": s.numpy()} for s in samples])

                def get_next(self) -> dict[str, np.ndarray] | None:
                    return next(self.feeds, None)

            prepared = self.folder / f"{self.name}_prepared.onnx"
            quant_pre_process(str(self._onnx()), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(path),
                Reader(self.samples),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
            )
        return path

    def _ir(self) -> Path:
        path = self.folder / f"{self.name}.xml"
        if not path.exists():
            import openvino

            model = openvino.convert_model(float_model(self.name), example_input=self.samples[0])
            openvino.save_model(model, path, compress_to_fp16=False)
        return path

    def _ir_int8(self) -> Path:
        path = self.folder / f"{self.name}_int8.xml"
        if not path.exists():
            import nncf
            import openvino

            model = openvino.Core().read_model(self._ir())
            data = nncf.Dataset([s.numpy() for s in self.samples])
            openvino.save_model(nncf.quantize(model, data), path, compress_to_fp16=False)
        return path
