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
    fairness: tuple[Rate, ...] = Field(
        ("true_positive_rate", "false_positive_rate"),
        description="rates (Fairlearn's; also selection_rate, error) that are compared between the groups of each "
        "sensitive feature; more than two classes, and quantities, have `error` only",
    )
    max_group_difference: float = Field(
        0.1,
        ge=0,
        description="of a rate; groups may differ by so much; above it a candidate is refused that surely differs more "
        "than the champion (error of a quantity: in standard deviations of the label)",
    )
    max_calibration_error: float = Field(
        0.2,
        ge=0,
        description="mean distance of what is said from what is so (a quantity: in standard deviations of the label); "
        "above it, beyond chance, a candidate is refused that is probably worse calibrated than the champion; high, as "
        "the loss sees it too and adaptations mend it",
    )
    min_quality: float | None = Field(
        None,
        description="AUC, accuracy or R² (as gates.metric); a candidate below it is refused, however bad the champion "
        "is (none: no floor)",
    )
    max_artefact_mb: float = Field(
        512.0, gt=0, description="MB; pipeline and ONNX twin together: each worker holds them in memory"
    )
    twin_must_agree: Literal["never", "trained", "always"] = Field(
        "trained",
        description="whose ONNX twin may not disagree with its pipeline where the champion has a twin: of candidates "
        "trained here, or of pushed ones too; else scikit-learn serves it, exactly and more slowly",
    )
    infra: bool = Field(
        True,
        description="switch; before it replaces a champion, a candidate answers recorded rows over HTTP in a fresh "
        "server: some seconds of one core at low priority, and the memory of two small processes meanwhile",
    )
    infra_timeout_s: float = Field(
        300.0, gt=0, description="seconds; a busy machine takes long to start a server of low priority"
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
