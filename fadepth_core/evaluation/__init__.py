"""How good a depth network is: the seven metrics, the published protocols by name, and the paper's numbers to compare."""

from fadepth_core.evaluation.metrics import DepthMetrics, depth_metrics, mean_metrics
from fadepth_core.evaluation.predictions import predict, write_predictions
from fadepth_core.evaluation.protocols import (
    PROTOCOLS,
    Comparison,
    EnginePredictor,
    Evaluation,
    ImageResult,
    NetworkPredictor,
    Predictor,
    Protocol,
    compare,
    evaluate,
    garg_crop,
)
from fadepth_core.evaluation.published import PublishedRow, published_rows
from fadepth_core.evaluation.report import compare_evenly, picture_sheet, prediction_sheet, print_table, write_json

__all__ = [
    "PROTOCOLS",
    "Comparison",
    "DepthMetrics",
    "EnginePredictor",
    "Evaluation",
    "ImageResult",
    "NetworkPredictor",
    "Predictor",
    "Protocol",
    "PublishedRow",
    "compare",
    "compare_evenly",
    "depth_metrics",
    "evaluate",
    "garg_crop",
    "mean_metrics",
    "picture_sheet",
    "predict",
    "prediction_sheet",
    "print_table",
    "published_rows",
    "write_json",
    "write_predictions",
]
