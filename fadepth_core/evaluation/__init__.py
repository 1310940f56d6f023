"""Evaluation of depth networks: the seven metrics, the published protocols by name, and the paper's figures."""

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
from fadepth_core.evaluation.report import (
    compare_evenly,
    picture_sheet,
    prediction_sheet,
    print_table,
    print_video_table,
    write_json,
    write_sheet,
    write_values,
)
from fadepth_core.evaluation.tiles import map_from_above
from fadepth_core.evaluation.uncertainty import (
    calibration,
    evaluate_uncertainty,
    flip_difference,
    print_uncertainty_table,
    uncertainty_values,
)
from fadepth_core.evaluation.video import (
    FrameResult,
    VideoEvaluation,
    VideoFigures,
    choose_evenly,
    evaluate_steady_video,
    evaluate_video,
)

__all__ = [
    "PROTOCOLS",
    "Comparison",
    "DepthMetrics",
    "EnginePredictor",
    "Evaluation",
    "FrameResult",
    "ImageResult",
    "NetworkPredictor",
    "Predictor",
    "Protocol",
    "PublishedRow",
    "VideoEvaluation",
    "VideoFigures",
    "calibration",
    "choose_evenly",
    "compare",
    "compare_evenly",
    "depth_metrics",
    "evaluate",
    "evaluate_steady_video",
    "evaluate_uncertainty",
    "evaluate_video",
    "flip_difference",
    "garg_crop",
    "map_from_above",
    "mean_metrics",
    "picture_sheet",
    "predict",
    "prediction_sheet",
    "print_table",
    "print_uncertainty_table",
    "print_video_table",
    "published_rows",
    "uncertainty_values",
    "write_json",
    "write_predictions",
    "write_sheet",
    "write_values",
]
