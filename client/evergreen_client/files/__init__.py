"""Files scored row by row, whatever their size: what `predict_file` of the clients and `evergreen predict` do.

pyarrow is needed here, and fsspec; both are imported when a file is opened.
"""

from evergreen_client.files.answering import Answer, Answerer, RowRefused, Service
from evergreen_client.files.calling import answered, answered_in_threads
from evergreen_client.files.errors import BadRow, CannotResume, FileError, Unreadable
from evergreen_client.files.reading import Dialect, Table, open_table
from evergreen_client.files.scoring import Asked, BadRows, Progress, Scored, score
from evergreen_client.files.telling import telling

__all__ = [
    "Answer",
    "Answerer",
    "Asked",
    "BadRow",
    "BadRows",
    "CannotResume",
    "Dialect",
    "FileError",
    "Progress",
    "RowRefused",
    "Scored",
    "Service",
    "Table",
    "Unreadable",
    "answered",
    "answered_in_threads",
    "open_table",
    "score",
    "telling",
]
