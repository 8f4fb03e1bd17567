"""How metrics and shares are written where people read them; in data, settings and labels they keep their own names."""

from __future__ import annotations

from typing import Final

METRICS: Final = {
    "auc": "AUC",
    "f1": "F1",
    "f1_macro": "macro F1",
    "brier": "Brier score",
    "r2": "R²",
    "mae": "MAE",
    "rmse": "RMSE",
    "mse": "MSE",
}
"""`service/web/static/format.js` has the same."""


def metric_name(metric: str) -> str:
    """`AUC` of `auc`, `log loss` of `log_loss`.

    >>> metric_name("f1_macro"), metric_name("accuracy")
    ('macro F1', 'accuracy')
    """
    return METRICS.get(metric, metric.replace("_", " "))


def percent(share: float) -> str:
    """A share as percent, with one decimal at most; `0%` and `100%` only where nothing and all is meant.

    >>> [percent(share) for share in (0.0, 0.0002, 0.07, 0.8349, 0.9997, 1.0, 20.0)]
    ['0%', '<0.1%', '7%', '83.5%', '>99.9%', '100%', '2,000%']
    """
    text = f"{share:,.1%}"
    if text == "0.0%" and share > 0:
        return "<0.1%"
    if text == "100.0%" and share < 1 - 1e-9:  # what rounding left of a sum of shares
        return ">99.9%"
    return text.replace(".0%", "%")
