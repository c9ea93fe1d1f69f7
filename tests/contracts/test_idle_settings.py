"""Settings that nothing would read: a warning names them, and no others."""

import json
from pathlib import Path

import pytest

from contracts.config_io import dump_config, load_config

_ITEMS = "data.item_features={path: i.csv, id: i, features: "
_USERS = "data.user_features={path: u.csv, id: u, features: "
_LEVELS = "data={columns: {event: e}, feedback: {levels: [exposure, click], target_level: click}}"
_RATINGS = "data={columns: {rating: r}, feedback: {levels: [a, b, c], rating_thresholds: {b: 4, c: 4}}}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.user_features={path: u.csv, id: u, title: t}"], "data.user_features.title='t'"),
        (
            [_ITEMS + "[{name: a, kind: categorical, separator: ','}]}"],
            "'a' has separator=',', which applies to kind tokens",
        ),
        ([_ITEMS + "[{name: a, kind: numeric, max_vocabulary: 9}]}"], "'a' has max_vocabulary=9"),
        (
            [_USERS + "[{name: a, kind: categorical, max_tokens: 9}]}"],
            "data.user_features.features: 'a' has max_tokens=9",
        ),
        (
            ["groups.category=topic"],
            "groups.category=topic is read only with groups.method=category or hybrid",
        ),
        (
            [_ITEMS + "[{name: a, kind: categorical}]}", "groups={method: hybrid, category: a, fit: distributed}"],
            "groups.fit=distributed is read only with groups.method=kmeans",
        ),
        (["windows.mined_from=e.npz"], "windows.mined_from=e.npz is read only with windows.mined_negatives above 0"),
        (["windows.mined_from=e.npz", "windows.mined_negatives=4"], "not use them with training.loss.choice_weight=0"),
        ([_LEVELS, "windows.exposed_negatives=4"], "them with training.loss.choice_weight=0 and hierarchy_weight=0"),
        (["data.timestamp_unit=ms", "data.timestamp_format='%Y'"], "data.timestamp_unit=ms"),
        (
            ["split.protocol=time", "split.min_user_events=5"],
            "min_user_events=5 is read only with split.protocol=leave_one_out",
        ),
        ([_RATINGS], "every rating that reaches b=4 also reaches the higher level c=4"),
    ],
)
def test_a_setting_without_effect_is_named(
    overrides: list[str], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(load_config(None, overrides)), encoding="utf-8")
    caplog.clear()
    load_config(path)
    [record] = caplog.records
    assert record.getMessage().startswith(f"{path}: ")
    assert said in record.getMessage()


@pytest.mark.parametrize(
    ("unread", "reader"),
    [
        ("groups.iterations=9", "groups.fit=distributed"),
        ("windows.mined_neighbors=9", "windows={mined_negatives: 1, mined_from: e.npz}"),
        ("model.num_interests=9", "evaluation.baselines=[mind]"),
        ("model.oov_rate=0.1", "model.oov_buckets=9"),
        ("training.loss.binary_negatives=9", "training.loss.binary_weight=1"),
        ("training.loss.binary_calibration=0.5", "training.loss.binary_weight=1"),
        ("training.loss.hierarchy=pairwise", "training.loss.hierarchy_weight=1"),
        ("training.loss.hierarchy_random=9", "training.loss.hierarchy_weight=1"),
    ],
)
def test_a_setting_that_waits_for_another_is_named_until_that_is_set(
    unread: str, reader: str, caplog: pytest.LogCaptureFixture
) -> None:
    others = [_LEVELS, "windows.exposed_negatives=1", "training.loss.choice_weight=1"]  # mined negatives need a reader
    load_config(None, [*others, unread])
    assert [record.getMessage().split(": ", 1)[1].split(" is read only with ")[0] for record in caplog.records] == [
        unread
    ]
    caplog.clear()
    load_config(None, [*others, unread, reader])
    assert not caplog.records


@pytest.mark.parametrize(
    ("unread", "chosen"),
    [
        ("groups.restarts=9", "groups={method: category, category: a}"),
        ("model.num_heads=4", "model.user_tower=gru"),
        ("model.feed_forward_multiple=4", "model.user_tower=gru"),
        ("model.conditioning_dropout=0.1", "model.conditioning=none"),
        ("model.num_experts=9", "model.conditioning=multiply"),
        ("model.expert_hidden_dim=9", "model.conditioning=concat_tokens"),
        ("training.learning_rate_drop=0.5", "training.learning_rate_drops=0"),
        ("training.loss.global_by=group", "training.loss={global_weight: 0, z_weight: 0}"),
    ],
)
def test_a_setting_that_a_choice_leaves_unread_is_named(
    unread: str, chosen: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = _ITEMS + "[{name: a, kind: categorical}]}"
    load_config(None, [table, unread])
    assert not caplog.records
    load_config(None, [table, chosen, unread])
    [record] = caplog.records
    assert f"{unread} is read only with " in record.getMessage()


@pytest.mark.parametrize("read", ["choice_weight", "hierarchy_weight"])
def test_negatives_of_a_positives_own_have_an_effect_where_a_term_reads_them(
    read: str, caplog: pytest.LogCaptureFixture
) -> None:
    load_config(None, [_LEVELS, "windows.exposed_negatives=4", f"training.loss.{read}=0.1"])
    assert not caplog.records


def test_a_default_that_is_written_out_is_no_setting_without_effect(caplog: pytest.LogCaptureFixture) -> None:
    """As where a config was printed whole: a category has a separator there, too."""
    config = load_config(None, [_ITEMS + "[{name: a, kind: categorical}, {name: b, kind: vector, dim: 2}]}"])
    assert load_config(None, [f"data={json.dumps(config.data.model_dump(mode='json'))}"]) == config
    assert not caplog.records
