"""Post-training static quantization to 8 bits, by onnxruntime."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

CALIBRATION_IMAGES, CALIBRATION_BATCH = 512, 32


def quantize(file: Path, images: Iterator[Tensor]) -> None:
    """Replace an ONNX file by its quantized form, calibrated on batches of images as it takes them.

    Weights are int8 per channel, activations int8 per tensor with the range that the images reach; convolutions and
    matrix products have quantize and dequantize nodes around them (QDQ), which a runtime merges where it can.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(images, None)
            return None if batch is None else {name: batch.numpy()}

    import onnx

    name = onnx.load(file, load_external_data=False).graph.input[0].name
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends what has been done
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(file),
                Reader(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
    finally:
        root.setLevel(level)
