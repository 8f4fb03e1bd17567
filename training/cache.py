"""What a host keeps of what replicas share, within bounds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from training.registry import Registry
    from training.snapshots import Snapshots


class Evicted(NamedTuple):
    """What is no longer on this host, and how many bytes that were."""

    names: tuple[str, ...]
    freed: int


class _Kept(NamedTuple):
    since: float  # seconds since 1970, when it came to this host
    held: int  # bytes
    name: str
    evict: Callable[[], bool]


def shrink(registry: Registry, snapshots: Snapshots, most_bytes: int, *, at_work: bool) -> Evicted:
    """Delete what has been here longest until the versions and snapshots of this host have at most `most_bytes`.

    A version that an alias names stays, and while `at_work` (a training may read them) every snapshot; so does what
    the storage does not have. There may be more than `most_bytes` then. Raises `StorageError`.
    """
    total, may_go, named = 0, list[_Kept](), registry.named()
    for version, folder in registry.here().items():
        held = sum(path.stat().st_size for path in folder.iterdir())
        total += held
        if version not in named:
            gone = partial(registry.evict, version)
            may_go.append(_Kept(folder.stat().st_ctime, held, f"version {version}", gone))
    for digest, path in snapshots.here().items():
        stat = path.stat()
        total += stat.st_size
        if not at_work:
            gone = partial(snapshots.evict, digest)
            may_go.append(_Kept(stat.st_ctime, stat.st_size, f"snapshot {digest[:12]}", gone))
    names, freed = list[str](), 0
    for kept in sorted(may_go, key=lambda kept: kept.since):
        if total - freed <= most_bytes:
            break
        if kept.evict():
            names.append(kept.name)
            freed += kept.held
    return Evicted(tuple(names), freed)
