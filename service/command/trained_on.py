"""What the first version is trained from, in words; and never from the sample where somebody's own data lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from service.settings import FILE_NAME, SAMPLE, Settings, SettingsError
from training.source import PACKED, shown

DATA_NAMES: Final = ("*.parquet", "*.pq", "*.csv", "*.tsv", *(f"*.csv{end}" for end in PACKED))
SHOWN: Final = 5
"""Files that a message names."""


def trained_on(settings: Settings) -> str:
    """The configured data in one phrase, such as `rows.csv: predicting "y", rows in the order of "at"`."""
    data = settings.data
    if data.source == SAMPLE:
        return "the built-in sample stream of loans; `evergreen init` sets data of your own"
    order = f'rows in the order of "{data.time}"' if data.time else "rows shuffled" if data.shuffle else "rows as filed"
    part = f", the first {data.first}{'' if data.first.endswith('%') else ' rows'} of them" if data.first else ""
    return f'{shown(data.source)}: predicting "{data.target}", {order}{part}'


def refuse_the_sample_beside_data(settings: Settings) -> None:
    """Raise `SettingsError` when nobody asked for the sample, and the folder of the settings holds data files."""
    if settings.config_file is not None or "source" in settings.data.model_fields_set:
        return
    files = sorted(_data_files(settings.home))
    if not files:
        return
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    raise SettingsError(
        f"{settings.home} has no {FILE_NAME}, but data: {', '.join(files[:SHOWN])}{more}. "
        f"`evergreen init --data {files[0]} --target COLUMN` sets what to learn from; "
        f"EVERGREEN_DATA__SOURCE={SAMPLE} learns from the built-in sample of loans"
    )


def _data_files(folder: Path) -> Iterator[str]:
    for place in (folder, folder / "data"):
        for pattern in DATA_NAMES:
            yield from (str(path.relative_to(folder)) for path in place.glob(pattern) if path.is_file())
