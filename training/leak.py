"""How much does one feature alone tell of the target? One that tells all is rarely known when predicting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MEASURE: Final = {True: "R²", False: "accuracy above guessing"}
"""Whether the target is a quantity -> what `tells` measures."""


def tells(values: npt.NDArray[np.float64], aim: npt.NDArray[Any], regression: bool) -> float:
    """How well a small tree on this one column predicts rows it was not fitted to; 0 is guessing, 1 perfect.

    Every second row is fitted, the others are predicted, so a column of mere noise scores about 0.
    """
    import numpy as np
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    values = np.nan_to_num(values, nan=-1e30, posinf=1e30, neginf=-1e30)[:, None]
    fitted, asked = slice(0, None, 2), slice(1, None, 2)
    if len(np.unique(aim[fitted])) < 2:
        return 0.0
    tree = (DecisionTreeRegressor if regression else DecisionTreeClassifier)(max_leaf_nodes=256, min_samples_leaf=3)
    tree.fit(values[fitted], aim[fitted])
    score = float(tree.score(values[asked], aim[asked]))
    if regression:
        return score
    guess = float(np.bincount(aim[asked]).max()) / len(aim[asked])
    return (score - guess) / (1 - guess) if guess < 1 else 0.0
