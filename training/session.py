"""An ONNX model in memory: the one importer of onnxruntime."""

from __future__ import annotations

from typing import Any

from monitoring.errors import EvergreenError


class UnloadableGraph(EvergreenError, ValueError):
    """Raised when onnxruntime cannot load a model; the message says which and why."""


def open_session(model: bytes, what: str) -> Any:
    """An `onnxruntime.InferenceSession` of this model on one thread; `what` names it in an error.

    Raises `UnloadableGraph`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # several workers share the processors; a pool in each only adds switches
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no class of their own
        raise UnloadableGraph(f"onnxruntime {onnxruntime.__version__} cannot load {what}: {error}") from error
