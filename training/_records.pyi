"""What `training/records.c` offers, where it was compiled."""

from collections.abc import Mapping

class Reader:
    def __new__(
        cls, features: list[tuple[str, int, int, Mapping[str | None, float] | None, float, float]], max_chars: int
    ) -> Reader: ...
    def read(
        self, body: bytes, max_rows: int, piece_bytes: int
    ) -> tuple[bytes, list[tuple[int, int, int]], int] | None: ...

def texts(data: bytes | memoryview, n: int) -> tuple[bytes, bytes] | None: ...
