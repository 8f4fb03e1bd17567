"""How much does a model lean on each feature? Shares by which drift is weighed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from monitoring.schema import FeatureSchema


def importance(
    answer: Callable[[pd.DataFrame], npt.NDArray[Any]],
    features: pd.DataFrame,
    schema: FeatureSchema,
    *,
    rows: int = 1_000,
    seed: int = 0,
) -> dict[str, float]:
    """Share of each feature, 0 to 1, adding up to 1 (all 0 when the answer does not change at all).

    The mean absolute change of the answer when the feature's values are dealt out anew among the rows: permutation
    importance (Breiman 2001; as "model reliance" in Fisher, Rudin and Dominici 2019), of the output rather than of the
    loss. It needs no labels, is never negative, and says what moves when the feature moves.

    `answer` gives probabilities (rows by classes) or numbers of a canonical frame, as `training.pipeline.predict`.
    `features` are canonical rows, best those of the holdout; at most `rows` of them are drawn with the seed.
    """
    random = np.random.default_rng(seed)
    if len(features) > rows:
        features = features.iloc[np.sort(random.choice(len(features), rows, replace=False))]
    features = features[list(schema.names)].reset_index(drop=True)
    before = np.asarray(answer(features), dtype=np.float64)
    changes = {}
    for name in schema.names:
        dealt = features[name].to_numpy()[random.permutation(len(features))]
        changes[name] = (
            float(np.abs(answer(features.assign(**{name: dealt})) - before).mean()) if len(features) else 0.0
        )
    whole = sum(changes.values())
    return {name: change / whole if whole else 0.0 for name, change in changes.items()}
