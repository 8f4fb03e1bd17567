"""What a challenger must show before it may replace the champion: the settings of the gates."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Rate = Literal["selection_rate", "true_positive_rate", "false_positive_rate", "error"]


class GatePolicy(BaseModel):
    """What a challenger must show before it may replace the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Literal["auto", "auc", "accuracy", "r2"] = Field(
        "auto",
        description="what decides between two models; auto: the loss (log loss, squared error), which sees every row. "
        "Told besides: AUC for two classes, accuracy for more, R² for regression",
    )
    min_gain: float = Field(
        0.0, ge=0, description="of what decides; a candidate that was only hoped for must be better by more than this"
    )
    confidence: float = Field(
        0.9, ge=0.5, lt=1, description="probability that a candidate which was only hoped for is better"
    )
    worse_confidence: float = Field(
        0.84,
        ge=0.5,
        lt=1,
        description="probability of being worse from which a candidate that was due is refused; 0.84 is one standard "
        "error. More data is a reason by itself, so small steady gains need not be proven one by one",
    )
    min_holdout_rows: int = Field(200, ge=20, description="rows; fewer say nothing about a difference of a few percent")
    max_segment_loss: float = Field(
        0.05, ge=0, description="of the metric; what a segment may lose against the champion before the gate fails"
    )
    min_segment_rows: int = Field(100, ge=20, description="rows; smaller segments differ by chance and are not judged")
    max_segment_categories: int = Field(20, ge=2, description="number; features with more categories form no segments")
    sensitive: tuple[str, ...] = Field(
        (), description="features; always form segments, numeric ones by their quartiles"
    )
    label_sources: tuple[str, ...] = Field(
        (),
        description="token names; whose labels may judge and train (empty: everyone's, also of an open `/feedback`)",
    )
    max_latency_ratio: float = Field(
        3.0, gt=0, description="times; the challenger may take this much longer than the champion to answer"
    )
    one_row_budget_ms: float = Field(20.0, gt=0, description="ms; one row answered within this is always fast enough")
    batch_budget_ms: float = Field(
        500.0, gt=0, description="ms; 1,000 rows answered within this are always fast enough"
    )
