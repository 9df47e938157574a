"""Classifiers on embeddings as ONNX: one graph from embeddings to calibrated probabilities, checked by running it.

Input ``embeddings`` ``(N, D) float32`` as they come from the model, not standardised; output ``probabilities``
``(N, K)`` in the order of the property ``classes``, or ``values`` ``(N, 1)`` in units of the labels. Compressed int8
weights stay int8 in the file (DequantizeLinear, one scale a row).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm import __version__
from plm.data.task import threshold_fields
from plm.errors import UserError
from plm.model.bundles.classifier import ClassifierBundle

OPSET, IR_VERSION = 17, 8
"""Old enough for every runtime of the last years."""
TOLERANCE = 1e-5
"""How far an answer of the exported graph may be from the bundle's (probability, or standardised number)."""


def write_onnx(bundle: ClassifierBundle, path: str | Path) -> None:
    """Writes a bundle's head, scaling and calibration as ONNX, without sequence members; equal bundles, equal bytes.

    Raises:
        UserError: Nearest neighbours: a search among proteins is no such graph.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    if bundle.head.kind == "neighbours":
        raise UserError(
            "A head of nearest neighbours cannot be written as ONNX", where=bundle.name,
            fix="Train a logistic, ridge or feed-forward head",
        )
    arrays = bundle.head.arrays
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def step(kind: str, inputs: list[str], output: str, **settings: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **settings))
        return output

    def weight(name: str) -> str:
        scale = bundle.stored.arrays.get(f"{name}.scale")
        if scale is None:
            return constant(name, arrays[name])
        # The very numbers that the bundle multiplies out; a division undoes it exactly, for they were whole numbers.
        scale = np.broadcast_to(np.asarray(scale, np.float32), len(arrays[name]))
        whole = np.rint(arrays[name] / scale[:, None]).astype(np.int8)
        parts = [constant(f"{name}.int8", whole), constant(f"{name}.scale", scale)]
        parts.append(constant(f"{name}.zero", np.zeros(len(scale), np.int8)))
        return step("DequantizeLinear", parts, name, axis=0)

    values = "embeddings"
    if bundle.head.standardise:
        values = step("Sub", [values, constant("mean", arrays["mean"])], "centred")
        values = step("Div", [values, constant("scale", arrays["scale"])], "standardised")
    layers = [""]
    if bundle.head.kind == "feedforward":
        layers = [str(layer) for layer in range(sum(name.startswith("weight") for name in arrays))]
    for number, layer in enumerate(layers):
        parts = [values, weight(f"weight{layer}"), constant(f"bias{layer}", arrays[f"bias{layer}"])]
        values = step("Gemm", parts, f"linear{layer}", transB=1)
        if number < len(layers) - 1:
            values = step("Relu", [values], f"hidden{layer}")
    task = bundle.task
    if task.target == "class":
        output = "probabilities"
        values = step("Div", [values, constant("temperature", np.float32(bundle.temperature))], "calibrated")
        step("Softmax", [values], output, axis=1)
    else:
        output = "values"
        values = step("Mul", [values, constant("deviation", np.float32(task.sd))], "scaled")
        step("Add", [values, constant("average", np.float32(task.mean))], output)
    graph = helper.make_graph(
        nodes, "classifier",
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", bundle.embedding.dimension])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", task.outputs])], constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="plm-suite", producer_version=__version__
    )
    model.ir_version = IR_VERSION
    about = bundle.embedding
    facts = {
        "name": bundle.name, "classes": list(task.classes), "positive": task.positive,
        **threshold_fields(bundle.model_threshold),
        "model": about.model, "model_sha256": about.model_sha256, "layers": list(about.layers),
        "pooling": about.pooling, "licence": str(bundle.manifest.get("licence", "")),
    }
    helper.set_model_props(
        model, {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    )
    checker.check_model(model, full_check=True)
    Path(path).write_bytes(model.SerializeToString(deterministic=True))


class OnnxClassifier:
    """An exported classifier, run by ONNX Runtime on the processor.

    Args:
        path: ONNX file to read.
        threads: Number of processor threads that it may use.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        # Threads that spin after an answer take the processor from whatever comes next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def predict(self, matrix: NDArray[Any]) -> NDArray[np.float32]:
        """``(N, D)`` embeddings to ``(N, K)`` probabilities or ``(N, 1)`` numbers."""
        outputs: NDArray[np.float32] = self._session.run(None, {"embeddings": np.asarray(matrix, np.float32)})[0]
        return outputs


def difference(bundle: ClassifierBundle, exported: OnnxClassifier, matrix: NDArray[Any]) -> float:
    """The largest difference between the answers of a bundle and of its export, as ``TOLERANCE`` means it."""
    scale = bundle.task.sd if bundle.task.target == "number" else 1.0
    return float(np.abs(bundle.predict_model(matrix) - exported.predict(matrix)).max() / scale)
