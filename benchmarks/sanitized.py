"""C parts of ours under AddressSanitizer and UBSan: compiled anew, attacked in a process with nothing else in it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

TIMEOUT_S: Final = 3600
FLAGS: Final = "-std=c11 -O1 -g -shared -fPIC -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all"


def why_not() -> str:
    """Why nothing can be compiled with the sanitizers here, "" when it can."""
    compiler = shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return "there is no gcc here"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "the headers of this Python are not here"
    return "" if _library(compiler, "libasan.so") else "gcc has no AddressSanitizer here"


def run(source: Path, script: Path, count: int, seed: int, say: Callable[[str], None]) -> str:
    """Have `script` attack the extension in `source` so many times, and say what it prints.

    It is started with the compiled library, `count` and `seed`. What is wrong, "" when nothing is.
    """
    reason = why_not()
    if reason:
        say(f"nothing was tried: {reason}")
        return ""
    with tempfile.TemporaryDirectory(prefix="evergreen-fuzz-") as there:
        library = Path(there) / f"_{source.stem}.abi3.so"
        headers = sysconfig.get_path("include")
        subprocess.run(["gcc", *FLAGS.split(), f"-I{headers}", str(source), "-lm", "-o", str(library)], check=True)
        env = os.environ | {
            "LD_PRELOAD": _library("gcc", "libasan.so"),
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "PYTHONMALLOC": "malloc",  # so that a byte behind a bytes object is seen
        }
        done = subprocess.run(
            [sys.executable, "-S", str(script), str(library), str(count), str(seed)],
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    say(done.stdout.strip() or f"the process ended with {done.returncode}")
    return "" if done.returncode == 0 else f"an attack ended the process: {done.stderr[-3000:]}"


def loaded(library: str) -> Any:
    """The extension in a library of any place."""
    spec = importlib.util.spec_from_file_location(Path(library).name.partition(".")[0], library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _library(compiler: str, name: str) -> str:
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    path = found.stdout.strip()
    return path if os.path.isabs(path) else ""
