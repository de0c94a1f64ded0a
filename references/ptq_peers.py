"""Post-training quantization by others: ONNX Runtime's `quantize_static` and NNCF on OpenVINO.

Each gets the same float model, the same calibration images, and its makers' recommended settings.
What it writes to disk is read back and measured.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ptq_case import Call, Case, Quantized, mib, quiet, timed
from torch import Tensor, nn

from qzoo.errors import ArtifactError

#: Largest difference of an exported float model's logits from PyTorch's, as a share of the largest.
EXPORT_TOLERANCE = 1e-3


def onnxruntime(case: Case, calibrate_method: str) -> Quantized:
    """Calls `quantize_static`; see `Peers.onnxruntime`."""
    return Peers(case.model, case.images, case.folder, case.threads).onnxruntime(calibrate_method)


def nncf(case: Case, **settings: Any) -> Quantized:
    """Calls `nncf.quantize`; see `Peers.nncf`."""
    return Peers(case.model, case.images, case.folder, case.threads).nncf(**settings)


class Peers:
    """The peers' forms of one float model.

    Args:
        model: The float model in eval mode; left as it was.
        images: Calibration images, float32 [N, 3, H, W].
        folder: Where files are written.
        threads: CPU threads to measure with; None leaves that to the runtimes.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, folder: Path, threads: int | None = None
    ) -> None:
        self.model, self.images, self.folder, self.threads = model, images, folder, threads

    # ONNX Runtime.

    def onnxruntime(self, calibrate_method: str) -> Quantized:
        """Quantizes by `quantize_static`: QDQ, a weight scale per channel, preprocessed.

        Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.

        Args:
            calibrate_method: "MinMax", "Entropy" or "Percentile".
        """
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        given, output = self._onnx(), self.folder / f"onnxruntime_{calibrate_method}.onnx"
        prepared = self.folder / "prepared.onnx"

        class Reader(quantization.CalibrationDataReader):
            def __init__(self, images: Tensor) -> None:
                self.feeds = iter([{"input": image.numpy()} for image in images.split(1)])

            def get_next(self) -> dict[str, NDArray[np.float32]] | None:
                return next(self.feeds, None)

        def quantize() -> None:
            quant_pre_process(str(given), str(prepared))
            quantization.quantize_static(
                str(prepared),
                str(output),
                Reader(self.images),
                quant_format=quantization.QuantFormat.QDQ,
                calibrate_method=quantization.CalibrationMethod[calibrate_method],
                per_channel=True,
            )

        with quiet():
            _, wall, cpu = timed(quantize)
        settings = f"quant_pre_process, QDQ, per_channel=True, {calibrate_method}"
        model = self._session(output)
        return Quantized(model, mib(output), wall, cpu, "onnxruntime", settings=settings)

    def _onnx(self) -> Path:
        path = self.folder / "float.onnx"
        if not path.exists():
            written = path.with_suffix(".part")
            with quiet():
                torch.onnx.export(
                    copy.deepcopy(self.model),
                    (self.images[:2],),
                    str(written),
                    input_names=["input"],
                    dynamo=True,
                    external_data=False,
                    dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
                    verbose=False,
                )
            self._check("ONNX", self._session(written))
            written.rename(path)
        return path

    def _session(self, path: Path) -> Call:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads or 0
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
        return Call(lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]))

    # NNCF.

    def nncf(
        self,
        preset: str = "PERFORMANCE",
        range_estimator: str | None = None,
        fast_bias_correction: bool = True,
    ) -> Quantized:
        """Quantizes by `nncf.quantize` on the OpenVINO model; the defaults are NNCF's.

        Source: https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/
        quantizing-models-post-training/basic-quantization-flow.html.

        Args:
            preset: "PERFORMANCE" (symmetric activations), or "MIXED" (asymmetric ones), which its
                makers recommend where activations are others than ReLU.
            range_estimator: How it chooses the ranges of activations. None averages the extremes
                of single images, which cuts off what only some images have; "MINMAX" covers all.
            fast_bias_correction: Whether to correct biases the fast or the accurate way.
        """
        import nncf
        import openvino
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        given = openvino.Core().read_model(self._ir())
        # One image at a time, as NNCF recommends: it averages over what it is given.
        data = nncf.Dataset([image.numpy() for image in self.images.split(1)])
        advanced = None
        if range_estimator is not None:
            estimator = getattr(RangeEstimatorParametersSet, range_estimator)
            advanced = AdvancedQuantizationParameters(activations_range_estimator_params=estimator)

        def quantize() -> Any:
            return nncf.quantize(
                given,
                data,
                preset=nncf.QuantizationPreset[preset],
                fast_bias_correction=fast_bias_correction,
                subset_size=len(self.images),
                advanced_parameters=advanced,
            )

        with quiet():
            quantized, wall, cpu = timed(quantize)
        output = self.folder / "nncf.xml"
        openvino.save_model(quantized, output, compress_to_fp16=False)
        settings = (
            f"preset={preset}, range_estimator={range_estimator}, "
            f"fast_bias_correction={fast_bias_correction}"
        )
        size = mib(output, output.with_suffix(".bin"))
        return Quantized(self._compiled(output), size, wall, cpu, "openvino", settings=settings)

    def _ir(self) -> Path:
        path = self.folder / "float.xml"
        if not path.exists():
            import openvino

            sample = self.images[:1]
            with quiet():
                model = openvino.convert_model(
                    copy.deepcopy(self.model), example_input=sample, input=list(sample.shape)
                )
            written = self.folder / "unchecked.xml"
            openvino.save_model(model, written, compress_to_fp16=False)
            self._check("OpenVINO", self._compiled(written))
            written.with_suffix(".bin").rename(path.with_suffix(".bin"))
            written.rename(path)
        return path

    def _compiled(self, path: Path) -> Call:
        import openvino

        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Where the CPU has bf16, OpenVINO would compute everything that is not int8 with it.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if self.threads is not None:
            config["INFERENCE_NUM_THREADS"] = self.threads
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(path), "CPU", config)

        def run(images: Tensor) -> Tensor:
            return torch.cat(
                [torch.from_numpy(compiled(x.numpy())[0].copy()) for x in images.split(1)]
            )

        return Call(run)

    def _check(self, form: str, exported: nn.Module) -> None:
        """Checks that a peer starts from the same float model as everybody else."""
        images = self.images[:16]
        with torch.inference_mode():
            wanted, got = self.model(images), exported(images)
        difference = float((got - wanted).abs().max() / wanted.abs().max())
        if not difference <= EXPORT_TOLERANCE:
            raise ArtifactError(
                f"The float model's {form} export gives other logits than PyTorch (off by "
                f"{difference:.2g} of the largest one), so comparing with it would be unfair."
            )
