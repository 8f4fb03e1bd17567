"""Files scored row by row, whatever their size: what `predict_file` of the clients and `evergreen predict` do.

pyarrow is needed here, and fsspec; both are imported when a file is opened.
"""

from evergreen_client.files.answering import Answer, Answerer, RowRefused, Service
from evergreen_client.files.errors import BadRow, CannotResume, FileError, Unreadable
from evergreen_client.files.reading import Dialect, Table, open_table
from evergreen_client.files.scoring import Asked, Progress, Scored, score

__all__ = [
    "Answer",
    "Answerer",
    "Asked",
    "BadRow",
    "CannotResume",
    "Dialect",
    "FileError",
    "Progress",
    "RowRefused",
    "Scored",
    "Service",
    "Table",
    "Unreadable",
    "open_table",
    "score",
]
