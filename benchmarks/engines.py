"""Other inference engines for `student_speed.py`, as far as they are installed here.

The node runs the student in torch: no engine was at least 1.5 times as fast and within 1 grey level
of float32 on 99.9 % of the pixels. These runners repeat that measurement on another processor:

    pip install openvino nncf          # OpenVINO float32; with nncf also 8 bits
    pip install onnx onnxruntime       # ONNX Runtime float32
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from model.cost import Runner

Make = Callable[[nn.Module, Tensor, int], Runner]
"""(network with a method ``residual``, frame, threads) to a runner for frames of that size."""


class Residual(nn.Module):
    """The part of a network that an engine takes over; the skip stays in float32 outside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, x: Tensor) -> Tensor:
        """What the network would remove."""
        return self.network.residual(x)


def available(calibration: Sequence[Tensor]) -> dict[str, Make]:
    """Engines that can be imported, by the name of their row.

    Parameters
    ----------
    calibration : sequence of Tensor, (1, 1, rows, columns), 0..1
        Frames of the measured size, from which 8-bit ranges are taken.
    """
    makers: dict[str, tuple[Make, Sequence[str]]] = {
        "OpenVINO float32": (openvino, ("openvino",)),
        "OpenVINO int8": (partial(openvino_int8, calibration), ("openvino", "nncf")),
        "OpenVINO int8, fine level float32": (
            partial(openvino_int8, calibration, keep_fine=True),
            ("openvino", "nncf"),
        ),
        "ONNX Runtime float32": (onnx_runtime, ("onnx", "onnxruntime")),
    }
    return {
        name: make
        for name, (make, modules) in makers.items()
        if all(find_spec(module) for module in modules)
    }


def openvino(network: nn.Module, frame: Tensor, threads: int) -> Runner:
    return _compiled(_converted(network, frame), threads)


def openvino_int8(
    calibration: Sequence[Tensor],
    network: nn.Module,
    frame: Tensor,
    threads: int,
    *,
    keep_fine: bool = False,
) -> Runner:
    """Post-training quantisation; `keep_fine` leaves what runs at half resolution in float32.

    Weights have 7 bits, since processors without VNNI overflow with 8.
    """
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    plain = _converted(network, frame)
    quantised = nncf.quantize(
        plain,
        nncf.Dataset(list(calibration), Tensor.numpy),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=_fine_level(plain)) if keep_fine else None,
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        ),
    )
    return _compiled(quantised, threads)


def onnx_runtime(network: nn.Module, frame: Tensor, threads: int) -> Runner:
    import onnxruntime

    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript is announced to go
        torch.onnx.export(Residual(network), (frame,), written, dynamo=False, opset_version=17)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin after a run would take the cores from the next contender.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        written.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda x: x - torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _converted(network: nn.Module, frame: Tensor) -> Any:
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer remarks that the size becomes fixed
        model = openvino.convert_model(Residual(network), example_input=frame)
    model.reshape(list(frame.shape))
    return model


def _compiled(model: Any, threads: int) -> Runner:
    import openvino

    request = (
        openvino.Core()
        .compile_model(
            model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )
        .create_infer_request()
    )

    def run(x: Tensor) -> Tensor:
        request.infer([x.numpy()], share_inputs=True, share_outputs=True)
        return x - torch.from_numpy(request.get_output_tensor(0).data)

    return run


def _fine_level(model: Any) -> list[str]:
    """Convolutions that read or write the finest level, and the additions of skips."""
    nodes = [(node, node.get_type_name()) for node in model.get_ordered_ops()]
    convolutions = [node for node, kind in nodes if kind.startswith("Convolution")]
    finest = max(int(node.get_output_shape(0)[2]) for node in convolutions)
    names = [
        node.get_friendly_name()
        for node in convolutions
        if finest in (int(node.get_output_shape(0)[2]), int(node.get_input_shape(0)[2]))
    ]
    return names + [
        node.get_friendly_name()
        for node, kind in nodes
        if kind == "Add" and min(node.get_input_shape(0)[2], node.get_input_shape(1)[2]) > 1
    ]
