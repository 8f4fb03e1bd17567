"""Which columns does the model take, in which order, and what does it answer? What is kept of it as schema.json.

A feature has three forms, and they meet here: what a training frame holds (any pandas dtype), what a client sends
(JSON), and the canonical form both become (float32 or str, missing = NaN), which drift, quality and training read.
API workers import this module: pandas is imported only inside the functions that take frames.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitoring import fits
from monitoring.canonical import canonical_frame, canonical_labels, frame_of_records
from monitoring.feature import Feature, SchemaError, Task, first_repeated, shown, some
from monitoring.fits import CATEGORY_CHARS
from monitoring.infer import infer

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

FORMAT: Final = 1
"""Format of schema.json. Bump it when an older Evergreen would misread a new file; keep reading the old ones."""


class FeatureSchema(msgspec.Struct, frozen=True):
    """The features of a model in order, and its target. Two schemas with one `digest` take the same requests."""

    features: tuple[Feature, ...]
    target: str
    task: Task
    classes: tuple[str | int | bool, ...] = ()  # of classifiers, as JSON values in the order of scikit-learn's classes_
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise SchemaError(
                f"the schema has format {self.format}, this Evergreen reads {FORMAT}: use the release that wrote it"
            )
        if not self.features:
            raise SchemaError("there is no feature: a model needs at least one column besides the target")
        repeated = first_repeated(self.names)
        if repeated is not None:
            raise SchemaError(f"column {shown(repeated)} appears twice: rename or drop one of them")
        if self.target in self.names:
            raise SchemaError(f"column {shown(self.target)} is the target and cannot be a feature too")
        if self.task == "regression":
            if self.classes:
                raise SchemaError("a regression has no classes: leave `classes` empty")
        elif len({type(value) for value in self.classes}) != 1:
            raise SchemaError(f"classes must be all strings, all integers or all booleans, got {self.classes!r}")
        elif len(self.classes) < 2 or (self.task == "binary" and len(self.classes) != 2):
            needs = "exactly 2" if self.task == "binary" else "at least 2"
            raise SchemaError(
                f"target {shown(self.target)} has {len(self.classes)} distinct value(s), {some(self.classes)}; "
                f"a {self.task} task needs {needs}"
            )

    # -- birth and storage ---------------------------------------------------------------------------------------------

    @classmethod
    def infer(
        cls, frame: pd.DataFrame, target: str, *, ignore: Iterable[str] = (), task: Task | None = None
    ) -> FeatureSchema:
        """The schema of a training frame: every column but `target` and those in `ignore` (ids, the time column).

        Kinds: numbers -> numeric; bool, nullable boolean and objects of only True/False -> boolean; datetime64,
        objects of date or datetime and text of ISO 8601 dates only -> datetime; everything else that is scalar ->
        categorical, also any `category` dtype and object columns without one value. Objects of only numbers are
        numeric.
        Task, when not given: bool, text or exactly 2 distinct whole values -> binary (text with more: multiclass);
        at most 20 distinct whole numbers -> multiclass; else regression.

        >>> import pandas as pd
        >>> frame = pd.DataFrame({"age": [31, 52], "city": ["Bonn", None], "paid": [True, False]})
        >>> [feature.kind for feature in FeatureSchema.infer(frame, "paid").features]
        ['numeric', 'categorical']

        Raises SchemaError for an empty frame, repeated or unusable column names, unknown `target` or `ignore` names,
        rows without a label (drop them first), a classifier's target with one class, infinite numbers, and values that
        are no scalars.
        """
        features, found, classes = infer(frame, target, ignore=ignore, task=task)
        return cls(features, target, found, classes)

    @classmethod
    def from_json(cls, data: bytes | str) -> FeatureSchema:
        """The schema in a schema.json; raises SchemaError when it is not one."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"this is not a feature schema: {error}") from None

    def to_json(self) -> bytes:
        """The schema as stored in schema.json: the same bytes for the same schema."""
        return msgspec.json.encode(self)

    @property
    def digest(self) -> str:
        """SHA-256 hex of what requests and answers depend on: names, kinds, target, task, classes; not the ranges."""
        identity = [[[f.name, f.kind] for f in self.features], self.target, self.task, list(self.classes)]
        return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()

    # -- names ---------------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """All features, in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """Features that are float32 in canonical form (numeric, boolean, datetime), in order."""
        return tuple(feature.name for feature in self.features if feature.kind != "categorical")

    @property
    def categorical_names(self) -> tuple[str, ...]:
        """Features that are text in canonical form, in order."""
        return tuple(feature.name for feature in self.features if feature.kind == "categorical")

    # -- data ----------------------------------------------------------------------------------------------------------

    def canonical(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The features of a frame in schema order and canonical form; a canonical frame comes back as it is.

        float32 for numeric, boolean (0/1) and datetime (days since 1970-01-01 UTC), missing = NaN; object of str for
        categorical, missing = np.nan (None, NaN and pd.NA are missing, "" is a value; numbers become their text,
        whole ones without ".0", as pandas turns integers with gaps into floats). The index is kept.
        Raises SchemaError naming the column and its first bad value.
        """
        return canonical_frame(self.features, frame)

    def frame(self, records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """The canonical frame of decoded JSON records, as clients send them; n rows numbered from 0.

        A feature that a record lacks is missing and other keys are passed over, so that rows recorded under an earlier
        schema can still be read. Raises SchemaError naming the column and its first bad value.
        """
        return frame_of_records(self.features, records)

    def labels(self, series: pd.Series[Any] | Sequence[Any]) -> npt.NDArray[Any]:
        """Labels in canonical form: float64 for a regression; int64, bool or object of str as the classes are.

        Classes not in the schema are kept. Raises SchemaError for missing labels (drop those rows) and for values that
        are not of the target's type.
        """
        return canonical_labels(self.target, self.task, self.classes, series)

    def takes_label(self, value: Any) -> bool:
        """Whether a JSON value has the type of the target and can be read, also when it is no class of the model.

        What rooms ask of labels and answers: another version may have had the class.
        """
        if self.task == "regression":
            return fits.target_number(value)
        if isinstance(self.classes[0], str):
            return isinstance(value, str) and (len(value) <= fits.LABEL_CHARS or value in self.classes)
        if isinstance(self.classes[0], bool):
            return isinstance(value, bool)
        return fits.whole_number(value)

    def check_label(self, value: Any) -> str | None:
        """None when a JSON value is a label that this model can learn from, else why not: what the door asks."""
        if value is None:
            return fits.label_problem(value)
        if not self.takes_label(value):
            if self.task == "regression":
                far = fits.is_number(value)
                expected = f"a finite number within ±{fits.TARGET_LIMIT:g}" if far else "a number"
                return f"expected {expected}, got {shown(value)}"
            if isinstance(value, str) and isinstance(self.classes[0], str):
                return fits.label_problem(value)
            kinds = {str: "a string", bool: "true or false", int: "an integer"}
            return f"expected {kinds[type(self.classes[0])]} such as {json.dumps(self.classes[0])}, got {shown(value)}"
        if self.task == "regression" or value in self.classes:
            return None
        return f"{shown(value)} is no class of the model; its classes are {some(self.classes, 10)}"

    def example(self, max_chars: int = CATEGORY_CHARS) -> dict[str, Any]:
        """One record that the decoder accepts, with values typical of the training data."""
        return {feature.name: (feature.examples(max_chars) or [None])[0] for feature in self.features}
