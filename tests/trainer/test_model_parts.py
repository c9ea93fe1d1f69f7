"""The parts that a config names: each choice its own, and none that nobody has written."""

from __future__ import annotations

import pytest
import tensorflow as tf

from contracts.config import Config
from contracts.layout import Workdir
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.losses.negative_samplers import negative_sampler
from trainer.models.model_parts import conditioning, query_tower, random_generator


def parts_of(config: Config, catalogue: Catalogue) -> list[str]:
    """The classes of encoder, token conditioning, conditioning and sampler."""
    generator = tf.random.Generator.from_seed(0)
    tower = query_tower(config, catalogue, generator)
    parts = [getattr(tower, "encoder", tower), getattr(tower, "_condition", None)]
    parts += [conditioning(config, 4, generator), negative_sampler(catalogue, config.training.loss)]
    return [type(part).__name__ for part in parts]


@pytest.mark.parametrize(
    ("settings", "place", "part"),
    [
        ({"user_tower": "transformer"}, 0, "TransformerEncoder"),
        ({"user_tower": "gru"}, 0, "GRUEncoder"),
        ({"user_tower": "mean"}, 0, "MeanEncoder"),
        ({"user_tower": "mind"}, 0, "MINDEncoder"),
        ({"user_tower": "comirec"}, 0, "ComiRecEncoder"),
        ({"user_tower": "user_id"}, 0, "UserIdTower"),
        ({"conditioning": "concat_tokens"}, 1, "ConcatTokens"),
        ({"conditioning": "multiply_tokens"}, 1, "MultiplyTokens"),
        ({"conditioning": "mmoe"}, 1, "NoneType"),
        ({"conditioning": "mmoe"}, 2, "MMoEConditioning"),
        ({"conditioning": "concat"}, 2, "ConcatConditioning"),
        ({"conditioning": "multiply"}, 2, "MultiplyConditioning"),
        ({"conditioning": "none"}, 2, "SharedConditioning"),
        ({"conditioning": "concat_tokens"}, 2, "SharedConditioning"),
        ({"negatives": "windows"}, 3, "WindowSampler"),
        ({"negatives": "uniform"}, 3, "CatalogueSampler"),
        ({"negatives": "popularity"}, 3, "CatalogueSampler"),
        ({"negatives": "in_batch"}, 3, "InBatchSampler"),
    ],
)
def test_each_choice_has_its_part(workdir: Workdir, settings: dict[str, str], place: int, part: str) -> None:
    is_loss = "negatives" in settings
    config = small_config(**({"training": {"loss": settings}} if is_loss else {"model": settings}))
    assert parts_of(config, Catalogue.load(workdir))[place] == part


@pytest.mark.parametrize("key", ["user_tower", "conditioning", "negatives"])
def test_a_choice_that_nobody_has_written_takes_no_other_ones_place(workdir: Workdir, key: str) -> None:
    """As one that is new in the config, and forgotten where its part is built."""
    config = small_config()
    loss, model = config.training.loss, config.model
    unknown = {key: "forgotten"}  # copies are not validated
    training = config.training.model_copy(update={"loss": loss.model_copy(update=unknown)})
    config = config.model_copy(update={"model": model.model_copy(update=unknown), "training": training})
    with pytest.raises(AssertionError, match="unreachable"):
        parts_of(config, Catalogue.load(workdir))


def test_seeds_share_no_draws() -> None:
    """Of 2^31 numbers, two sets of a thousand have one in common once in 2,000 times."""
    first, again, second = (
        set(random_generator(seed).uniform([1000], maxval=2**31 - 1, dtype=tf.int32).numpy().tolist())
        for seed in (0, 0, 1)
    )
    assert first == again
    assert not first & second
