"""The table of options that a checkpoint may have agrees with the networks, without importing them."""

from dataclasses import fields

import pytest

from fadepth_core.models import MODELS, build_model
from fadepth_core.models.layers.backbone import ENCODER_WIDTHS
from fadepth_core.models.layers.etm import ETM_VARIANTS, ETMConfig
from fadepth_core.runtime.model_options import ENCODERS, ETM_FIELDS, ETM_NAMES, MODEL_OPTIONS, check_model_options


def test_the_table_agrees_with_the_networks():
    assert set(MODEL_OPTIONS) == set(MODELS)
    assert set(ENCODERS) == set(ENCODER_WIDTHS)
    assert set(ETM_NAMES) == set(ETM_VARIANTS)
    assert set(ETM_FIELDS) == {field.name for field in fields(ETMConfig)}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("smalldepth", {"etm": {"branch_drop": 0.2, "all_shapes": True}, "residual_drop": 0, "constant_drop": True}),
        ("unet", {"encoder": "resnet18", "etm": "etm*"}),
    ],
)
def test_options_that_are_accepted_build_a_network(model, options):
    check_model_options(model, options)
    build_model(model, **options)
