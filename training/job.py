"""One training or one judgement, in a process of its own: `python -m training.job SPEC.json`.

The process lowers its priority and bounds its threads and memory before scikit-learn is imported; the parent bounds its
time. Into the output folder go the artefact and `result.json`; an error is a result too (exit code 1), a crash leaves
none. `run` is the same in the caller's process. Heavy libraries are imported inside the functions.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import msgspec
from pydantic import ValidationError

from monitoring.errors import CannotGoOn
from training.adapt_job import make_adaptation
from training.candidate import train
from training.data_checks import DataStopped, notes
from training.drawing import draw
from training.phases import begin_job, passed
from training.priority import THREAD_VARIABLES, bound_memory, end_with_parent, give_way
from training.pushed import judge_pushed
from training.spec import RESULT, JobError, JobResult, JobSpec, write_result


def main(arguments: list[str] | None = None) -> int:
    """Run the job in the file named by the one argument; 0 when it ran to a verdict, 1 when not, 2 for a bad spec."""
    os.umask(0o077)  # what it writes was learnt from the record
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        print("usage: python -m training.job SPEC.json", file=sys.stderr)
        return 2
    try:
        spec = msgspec.json.decode(Path(given[0]).read_bytes(), type=JobSpec)
    except (OSError, msgspec.DecodeError) as error:
        print(f"{given[0]} is no job: {error}", file=sys.stderr)
        return 2
    confine(spec)
    gc.disable()  # importing leaves next to no garbage: looking for it would take a tenth of a short job's time
    import sklearn.ensemble  # noqa: F401

    gc.freeze()
    gc.enable()
    return 0 if run(spec).ok else 1


def confine(spec: JobSpec) -> None:
    """Lower this process's priority and bound its memory and threads, for good. Before scikit-learn is imported."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(spec.threads)
    end_with_parent(signal.SIGKILL)  # a killed controller must not leave its training behind: the next one trains again
    give_way(spec.nice)
    bound_memory(spec.memory_mb)


def run(spec: JobSpec) -> JobResult:
    """Do the job and write `result.json`; whatever fails becomes a result with the reason."""
    begin = time.perf_counter()
    begin_job()
    out = Path(spec.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULT).unlink(missing_ok=True)
    try:
        with _bounded_threads(spec.threads):
            result = {"train": train, "judge": judge_pushed, "adapt": make_adaptation, "report": draw}[spec.kind](
                spec, out
            )
    except DataStopped as stopped:
        result = JobResult(ok=False, error=str(stopped), data_checks=stopped.findings, notes=notes(stopped.findings))
    except (JobError, CannotGoOn, ValidationError) as error:
        result = JobResult(ok=False, error=str(error))
    except MemoryError:
        result = JobResult(
            ok=False, error=f"out of memory at {spec.memory_mb} MB: raise `memory_mb`, or lower `max_rows`"
        )
    except Exception as error:  # of a library, or a fault of ours: the loop needs a result, the log the trace
        traceback.print_exc()
        result = JobResult(ok=False, error=f"{spec.kind} failed with {type(error).__name__}: {error}")
    result = msgspec.structs.replace(result, seconds=time.perf_counter() - begin, phases=passed())
    write_result(out, result)
    return result


@contextlib.contextmanager
def _bounded_threads(threads: int) -> Iterator[None]:
    import sklearn.ensemble  # noqa: F401  (its OpenMP must be loaded to be bounded)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=threads):
        yield


if __name__ == "__main__":
    sys.exit(main())
