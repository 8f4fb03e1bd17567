"""An ONNX model in memory: the one importer of onnxruntime."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from monitoring.errors import EvergreenError

if TYPE_CHECKING:
    import numpy.typing as npt


class UnloadableGraph(EvergreenError, ValueError):
    """Raised when onnxruntime cannot load a model; the message says which and why."""


def prepare() -> None:
    """Import onnxruntime now. Nothing else runs in a process meanwhile: some 30 ms, 190 on a busy machine."""
    import onnxruntime  # noqa: F401


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


class OneRow:
    """A session with one input and one output of float32, one row at a time: in half the time of `session.run`, since
    it reads and writes arrays that are made once. `run` may be called from several threads at once.
    """

    def __init__(self, session: Any, columns: int, outputs: int) -> None:
        from onnxruntime import OrtValue

        self._given, self._found = np.zeros((1, columns), np.float32), np.zeros((1, outputs), np.float32)
        self._session, self._binding, self._lock = session, session.io_binding(), Lock()
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, OrtValue.ortvalue_from_numpy(self._given))
        self._binding.bind_ortvalue_output(session.get_outputs()[0].name, OrtValue.ortvalue_from_numpy(self._found))

    def run(self, first: float, rest: npt.NDArray[Any] | None) -> list[float]:
        """The outputs for the row of `first` and the other columns (None: there are none)."""
        with self._lock:
            self._given[0, 0] = first
            if rest is not None:
                self._given[0, 1:] = rest
            self._session.run_with_iobinding(self._binding)
            found: list[float] = self._found[0].tolist()
        return found
