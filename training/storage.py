"""Where replicas on several hosts share what they make: files by name below an fsspec URL, each whole or not at all.

`models/<model>/<version>/<file>`, `snapshots/<digest>.parquet` and, until they are judged, `pushes/<file>`. A file is
written before the row of the store that names it, and read by whoever lacks it: what a host keeps of its own is a
cache. S3 needs the package s3fs (endpoint, region and credentials from its usual variables), a folder that all hosts
mount needs nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from monitoring.errors import CannotGoOn
from monitoring.export import whole_file
from monitoring.files import replacing
from training.artefact import file_digest

CHUNK: Final = 1 << 20
"""Bytes copied at a time."""

_S3_BOUNDS: Final = {"connect_timeout": 3, "read_timeout": 10, "retries": {"max_attempts": 0}}
"""Seconds that botocore waits for a connection and for the next bytes (by default 60 each, five times)."""
_S3_TRIES: Final = 2
"""Of each request, by s3fs."""


PUSHES: Final = "pushes"
"""The folder of pushed files that wait for their runs."""


class StorageError(CannotGoOn, OSError):
    """Raised when the shared storage cannot be reached, or does not have a file, or another one than was named."""


class Storage:
    """Files by name below a URL. Raises `StorageError` when its file system is not installed."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        try:
            self._files, root = fsspec.core.url_to_fs(url, **_bounds(url))
        except (ImportError, ValueError) as error:
            raise StorageError(
                f"store.artefacts = {url!r} cannot be used: {error}; install what it names (S3: the extra `s3`), "
                "or name a folder that every replica mounts"
            ) from error
        self._root = root.rstrip("/")
        if "s3" in self._files.protocol:
            self._files.retries = _S3_TRIES

    def answers(self) -> None:
        """Return when it does. Raises `StorageError`."""
        self.names("models")

    def put(self, file: Path, name: str) -> None:
        """Copy a file to this name, in the place of what is there."""
        path = self._path(name)
        with self._told("written", name):
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            with file.open("rb") as source, whole_file(self._files, path) as target:
                shutil.copyfileobj(source, target, CHUNK)

    def get(self, name: str, to: Path, digest: str | None = None) -> None:
        """Copy the file with this name to `to`, whole; `digest` is the sha256 that it must have."""
        with replacing(to) as beside:
            with (
                self._told("read", name),
                self._files.open(self._path(name), "rb") as source,
                beside.open("wb") as file,
            ):
                shutil.copyfileobj(source, file, CHUNK)
            if digest is not None and (found := file_digest(beside)) != digest:
                raise StorageError(
                    f"{self.url}/{name} is not the file that the store names: its sha256 is {found}, not {digest}; "
                    "put it back from a replica that has it, or retrain"
                )

    def names(self, folder: str) -> tuple[str, ...]:
        """What lies in a folder, itself not in a folder below; none where there is no such folder."""
        with self._told("listed", folder):
            self._files.invalidate_cache()
            try:  # `exists` of fsspec says no to whatever fails, too
                found = self._files.ls(self._path(folder), detail=False)
            except FileNotFoundError:
                return ()
        return tuple(f"{folder}/{path.rpartition('/')[2]}" for path in found)

    def delete(self, name: str) -> None:
        """The file, or folder with all in it, is gone; it need not have been there."""
        with self._told("deleted", name), suppress(FileNotFoundError):
            self._files.invalidate_cache()
            self._files.rm(self._path(name), recursive=True)

    def expire(self, folder: str, before: float, keep: Collection[str]) -> int:
        """Delete what was last written before `before` (seconds since 1970 UTC), but these names; how many."""
        gone = 0
        for name in self.names(folder):
            with self._told("deleted", name):
                if name not in keep and self._files.modified(self._path(name)).timestamp() < before:
                    self._files.rm_file(self._path(name))
                    gone += 1
        return gone

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _told(self, done: str, name: str) -> Iterator[None]:
        """What a file system raises becomes a `StorageError` that says which file."""
        try:
            yield
        except StorageError:
            raise
        except Exception as error:  # each file system has errors of its own: botocore's, aiohttp's
            why = f"{type(error).__name__}: {error}"
            raise StorageError(f"{self.url}/{name} could not be {done}: {why}") from error


def shared_push(path: str) -> str:
    """The name in the storage of a pushed file that lies at `path` on the host that took it in."""
    return f"{PUSHES}/{Path(path).name}"


def _bounds(url: str) -> dict[str, Any]:
    """How long to wait for an S3 that does not answer; what fsspec's own configuration says of it comes first."""
    import fsspec

    kind = url.partition("://")[0]
    known = kind in ("s3", "s3a") and "config_kwargs" not in fsspec.config.conf.get(kind, {})
    return {"config_kwargs": _S3_BOUNDS} if known else {}
