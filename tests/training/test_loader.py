"""Order of the samples: determined by seed and position, and divided between processes; CutMix in batches."""

from __future__ import annotations

from itertools import islice

from fadepth_core.synthetic.dataset import SyntheticDataset
from fadepth_core.training.config import load_config
from fadepth_core.training.loader import BatchesOfOneKind, EndlessSampler, batches
from short_runs import NO_BASE_LOSS


def take(sampler, count):
    return list(islice(sampler, count))


def test_keys_are_determined_by_seed_and_position():
    whole = take(EndlessSampler(7, seed=3), 40)
    assert take(EndlessSampler(7, seed=3, start=25), 15) == whole[25:]
    for epoch in range(5):
        assert sorted(index for index, _ in whole[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert [index for index, _ in whole[:7]] != [index for index, _ in whole[7:14]]
    assert len({draw for _, draw in whole}) == 40
    assert take(EndlessSampler(7, seed=4), 40) != whole
    parts = [take(EndlessSampler(7, seed=3, offset=rank, stride=2), 20) for rank in (0, 1)]
    assert [key for pair in zip(*parts, strict=True) for key in pair] == whole


def test_batches_are_of_one_kind_and_can_start_at_any_position():
    def chunks(skip, count):
        return take(BatchesOfOneKind(EndlessSampler(20, 3), 4, lambda index: index % 3, skip), count)

    whole = chunks(0, 30)
    assert all(len({index % 3 for index, _ in batch}) == 1 for batch in whole)
    assert {index for batch in whole for index, _ in batch} == set(range(20))
    draws = [draw for batch in whole for _, draw in batch]
    assert len(set(draws)) == len(draws), "each key once"
    assert chunks(11, 19) == whole[11:]


def test_cutmix_gives_every_sample_a_strip_of_another_one():
    alone = [NO_BASE_LOSS, "loss.levels=[cr]", "loss.depth=1"]
    config = load_config(None, [*alone, "data.cutmix=1", "data.size=[32, 64]", "data.workers=0", "data.batch_size=4"])
    scenes = SyntheticDataset("driving", (32, 64), length=6, static=True)
    batch = next(batches(scenes, None, config, 0, 0, 1))
    assert all(" and " in name for name in batch.name)
