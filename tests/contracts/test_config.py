"""The config tree: what it refuses, and what it says then."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

from contracts import storage
from contracts.config import Config, DataConfig, Section
from contracts.config_io import (
    ConfigError,
    dump_changes,
    dump_config,
    load_config,
    parse_assignments,
    read_stored_config,
)
from contracts.patterns import matching

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def sections(kind: type[Section]) -> Iterator[type[Section]]:
    yield kind
    for field in kind.model_fields.values():
        for inner in named_in(field.annotation):
            yield from sections(inner)


def named_in(annotation: object) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from named_in(part)


def test_every_setting_says_what_it_is() -> None:
    """A section says it in its docstring."""
    kinds = set(sections(Config))
    fields = {f"{kind.__name__}.{name}": field for kind in kinds for name, field in kind.model_fields.items()}
    assert "GateConfig.min_recall" in fields
    assert [name for name, field in fields.items() if not (field.description or field.annotation in kinds)] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_survive_a_round_trip(path: Path) -> None:
    config = load_config(path)
    for dump in (dump_config, dump_changes):
        assert Config.model_validate(yaml.safe_load(dump(config))) == config
    assert "bootstrap_samples: 1000" not in dump_changes(config)  # a default


def test_keys_to_object_stores_are_not_shown() -> None:
    options = ["--s3_endpoint_url=http://minio:9000", "--s3_secret_access_key=hidden=", "--s3_session_token", "hidden"]
    config = load_config(None, [f"beam.options={options}"])
    shown = ["--s3_endpoint_url=http://minio:9000", "--s3_secret_access_key=...", "--s3_session_token", "..."]
    assert yaml.safe_load(dump_changes(config)) == {"beam": {"options": shown}}
    assert load_config(None, [f"beam={{options: {options}}}"]).beam.options == tuple(options)


@pytest.mark.parametrize(
    "given",
    [
        "beam.options={--s3_secret_access_key: hidden}",
        "beam.options=[[--s3_session_token, hidden]]",
        "beam=[--s3_session_token, hidden]",
    ],
)
def test_keys_to_object_stores_are_not_shown_where_they_are_refused_either(given: str) -> None:
    with pytest.raises(ConfigError, match=r"  beam") as error:
        load_config(None, [given])
    assert "hidden" not in str(error.value)


def test_object_stores_are_reached_as_the_config_that_was_read_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...] | None] = []

    class Empty:
        def __init__(self, options: tuple[str, ...] | None) -> None:
            asked.append(options)

        def exists(self, url: str) -> bool:
            return False

        def match(self, pattern: str) -> list[storage.StoredObject]:
            return []

    monkeypatch.setattr(storage, "_factory", Empty)
    monkeypatch.setattr(storage, "_options", None)
    load_config(None, ["beam.options=[--s3_endpoint_url=http://minio:9000]"])
    assert matching("s3://bucket/*.csv") == []
    assert set(asked) == {("--s3_endpoint_url=http://minio:9000",)}


def test_a_section_whose_keys_are_all_commented_out_has_its_defaults(tmp_path: Path) -> None:
    """YAML reads its key with no value."""
    path = tmp_path / "config.yaml"
    path.write_text("training:\n  # epochs: 3\nmodel:\ndata:\n  feedback:\n  user_features:\nseed: 5\n")
    assert load_config(path) == Config(seed=5)
    changed = load_config(path, ["training.epochs=3", "training.loss.z_weight=0"])
    assert (changed.training.epochs, changed.training.loss.z_weight, changed.seed) == (3, 0, 5)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.num_heads=3", "  model: model.embedding_dim=64 must be a multiple of model.num_heads=3"),
        (
            "serving.indexes=[exact, exact]",
            "  serving.indexes: serving.indexes must be distinct; got ['exact', 'exact']",
        ),
        (
            "groups.method=category",
            "  groups.category=None is not a categorical, tokens or text feature of data.item_features; those are []: "
            "name one of them, list it there, or set groups.method=kmeans",
        ),
        ("training=3", "  training: it must be a section with keys of its own; see `dnc settings`; got 3"),
        ("data.item_features={id: i, features: []}", "  data.item_features.path: it must be given; see `dnc settings`"),
    ],
)
def test_a_value_is_told_once(override: str, said: str) -> None:
    """Not again as what Python holds of the section around it."""
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    assert str(error.value).splitlines()[1] == said


_ITEMS = "data.item_features={path: i.csv, id: i, features: "
_USERS = "data.user_features={path: u.csv, id: u, features: "


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.epoch=3"], ["training.epoch", "unknown key"]),
        (["groups.num_groups=0"], ["groups.num_groups", "greater than or equal to 1", "0"]),
        (["data.header=[user, 2]"], ["data.header.1", "put it in quotes", "got 2"]),
        (["data.feedback.levels=[no, 'yes']"], ["data.feedback.levels.0", "put it in quotes", "got False"]),
        (["data.columns.user_id=null"], ["data.columns.user_id: it is empty"]),
        (["data.events="], ["data.events: it is empty, as if from an unset shell variable", "give a value"]),
        (["training.epochs="], ["training.epochs: it is empty"]),
        (["groups.num_groups=ten"], ["groups.num_groups", "integer", "ten"]),
        (
            ["evaluation.ks=[10, 20000]"],
            ["less than the largest of evaluation.ks (20000):", "serving.max_candidates=10000"],
        ),
        (
            ["serving.num_candidates=500", "serving.max_candidates=200"],
            ["serving.max_candidates=200", "serving.num_candidates (500), the largest of evaluation.ks (1000): raise"],
        ),
        (
            ["serving.num_candidates=50", "serving.max_candidates=50", "evaluation.ks=[10]", "retrain.gate.k=50"],
            ["the lists that coverage is measured on (100)", "serving.max_candidates=50"],
        ),
        ([f"data.feedback.levels={[f'l{n}' for n in range(200)]}"], ["data.feedback.levels", "200", "127"]),
        (["training.loss.z_weight=.inf"], ["training.loss.z_weight", "finite number", "got inf"]),
        (["training.loss.seen_weight=1.0e-8"], ["training.loss.seen_weight", "greater than or equal to 0.0001"]),
        (["serving.alpha=.inf"], ["serving.alpha", "finite number", "got inf"]),
        (
            ["data={columns: {rating: r}, feedback: {levels: [a, b], rating_thresholds: {b: .nan}}}"],
            ["data.feedback.rating_thresholds.b", "finite number", "got nan"],
        ),
        (["evaluation.ks=[10, 0]"], ["evaluation.ks.1", "greater than or equal to 1", "0"]),
        (["model.num_heads=3"], ["embedding_dim=64", "num_heads=3"]),
        (["groups.method=category"], ["groups.category"]),
        (
            ["groups.method=hybrid", "groups.category=topic"],
            ["groups.category='topic'", "item_features", "[]", "list it"],
        ),
        (
            [
                _ITEMS + "[{name: a, kind: text}, {name: b, kind: numeric}]}",
                "groups.method=category",
                "groups.category=b",
            ],
            ["groups.category='b'", "['a']"],
        ),
        (["data.feedback.target_level=buy"], ["'buy'", "interaction"]),
        (
            ["data.feedback.levels=[seen, liked]", "data.feedback.history_level=liked"],
            ["history_level='liked' is above target_level='seen'", "or a lower one"],
        ),
        (["data.feedback.history_level=show"], ["'show'", "interaction"]),
        (["data.feedback.levels=[exposure, click]"], ["['exposure', 'click']", "data.columns.event"]),
        (["data.columns={[a]: b}"], ["'data.columns={[a]: b}'", "not YAML", "unhashable key"]),
        (["data={num_buckets: 2, num_buckets: 3}"], ["'num_buckets' appears twice", "line 1"]),
        (["split.test_start=2024-02-30"], ["'split.test_start=2024-02-30'", "'2024-02-30': day is out of range"]),
        (["data.events={{date}}"], ["data.events={{date}}", "unhashable key", "quote it twice"]),
        (["seed=!!int ''"], ["seed=!!int ''", "'' is not of type int: leave the tag !!int out"]),
        (["seed=!!bool maybe"], ["'maybe' is not of type bool: leave the tag !!bool out"]),
        (["seed=!!timestamp now"], ["'now' is not of type timestamp: leave the tag !!timestamp out"]),
        (["data=!!map [a]"], ["'data=!!map [a]'", "expected a mapping node, but found sequence"]),
        ([_USERS + "[{name: alpha, kind: numeric}]}"], ["'alpha'", "rename"]),
        ([_ITEMS + "[{name: item_index, kind: categorical}]}"], ["'item_index'", "rename"]),
        ([_ITEMS + "[{name: größe, kind: numeric}]}"], ["'größe'", "rename", "ASCII"]),
        ([_ITEMS + "[{name: a, kind: numeric}, {name: a, kind: categorical}]}"], ["i.csv", "twice: a"]),
        (
            [_USERS + "[{name: my col, kind: numeric}]}"],
            ["'my col'", "rename"],
        ),
        ([_USERS + "[{name: self, kind: numeric}]}"], ["'self'", "rename"]),
        ([_USERS + "[{name: Age, kind: numeric}, {name: age, kind: numeric}]}"], ["'age'", "input 'Age'", "rename"]),
        ([_USERS + "[{name: Groups, kind: tokens}]}"], ["'Groups'", "only in case", "input 'groups'", "rename"]),
        (
            [_USERS + "[{name: PAGE, kind: tokens}]}", "data.request_features=[{name: page, values: [a]}]"],
            ["'PAGE'", "input 'page'", "rename"],
        ),
        ([_USERS + "[{name: _age, kind: numeric}]}"], ["'_age'", "begins with a letter", "rename"]),
        (["data.request_features=[{name: _page, values: [a]}]"], ["'_page'", "begins with a letter"]),
        (['data.request_features=[{name: page, values: ["", home]}]'], ["distinct and not empty"]),
        (["retrain.gate.k=20000"], ["retrain.gate.k (20000)"]),
        (["data.timestamp_format='%H:%M:%S.%f %d.%m.%Y'"], ["data.timestamp_format=", "%f", "at its end", "ISO 8601"]),
        (["data.timestamp_format='%d %b %Y %H:%M:%S %Z'"], ["data.timestamp_format=", "%Z", "as UTC", "for %z"]),
        (
            ["data.timestamp_format='%Y-W%V-%u'"],
            ["data.timestamp_format='%Y-W%V-%u' has %V, a week", "months and days"],
        ),
        (["data.timestamp_format='%m%d'"], ["data.timestamp_format='%m%d' has no year", "1900", "to the column"]),
        (["data.timestamp_format='%H:%M:%S,%f'"], ["data.timestamp_format=", "has no year"]),
        (["data.timestamp_format='%m%d %%Y'"], ["data.timestamp_format=", "has no year"]),
        (["split.test_start=2024-01-01"], ["split.test_start", "leave_one_out", "split.protocol=time"]),
        (["epochs"], ["--set", "section.key=value"]),
        (["seed=1", "seed.deeper=1"], ["'seed'", "not a section"]),
        (["serving.model_name=.."], ["serving.model_name", "'..'"]),
        (["serving.model_name=dnc.staging-0a1b2c3d"], ["serving.model_name=dnc.staging-0a1b2c3d", "another name"]),
        (["seed=20261127040000"], ["seed", "less than 4294967296", "20261127040000"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_wrong_override_is_named(overrides: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, overrides)
    for words in said:
        assert words in str(error.value)


def test_what_no_part_of_the_model_reads_refuses_nothing() -> None:
    """A GRU has no heads, and of one group the shared vector is that of the group."""
    load_config(None, ["model.user_tower=gru", "model.embedding_dim=33"])
    load_config(None, ["groups.num_groups=1", "training.loss.in_group_weight=0"])
    with pytest.raises(ConfigError, match="trains no group vectors"):
        load_config(None, ["groups.num_groups=2", "training.loss.in_group_weight=0"])


def test_the_intent_is_in_the_score_where_no_term_compares_items_of_all_groups() -> None:
    no_global = "training.loss.global_weight=0"
    assert load_config(None, [no_global]).intent_in_score
    assert not load_config(None, [no_global, "training.loss.hierarchy_weight=1"]).intent_in_score
    load_config(None, ["training.loss.in_group_weight=0", "training.loss.hierarchy_weight=1"])  # trains group vectors


@pytest.mark.parametrize("text", ["%m/%d/%Y", "@home", "it's: a: 'test'", '%"$HOME`\\'])
def test_text_that_is_not_yaml_is_shown_quoted_for_the_shell_and_for_yaml(text: str) -> None:
    with pytest.raises(ConfigError, match="is not YAML") as error:
        load_config(None, [f"serving.model_name={text}"])
    _, suggested = str(error.value).split("for YAML: --set ")
    override = subprocess.run(["sh", "-c", f"printf %s {suggested}"], capture_output=True, text=True, check=True).stdout
    assert parse_assignments([override]) == {"serving.model_name": text}


def test_the_webhook_is_read_and_never_shown() -> None:
    """Reading a dump again, as a fresh process does that checks a servable, works without it."""
    config = load_config(None, ["retrain.webhook=https://example.com/secret"])
    assert config.retrain.webhook == "https://example.com/secret"
    assert config.model_copy(update={"seed": 1}).retrain.webhook == config.retrain.webhook
    for shown in (dump_config(config), repr(config), config.model_dump_json(), str(config.model_dump())):
        assert "secret" not in shown
    assert Config.model_validate(yaml.safe_load(dump_config(config))).retrain.webhook is None


@pytest.mark.parametrize("key", ["webhook", "retrain.web_hook"])
def test_the_value_of_a_mistyped_secret_is_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: unknown key") as error:
        load_config(None, [f"{key}=https://example.com/secret"])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["htps://example.com/secret", "https:///secret", "https://[secret", "/secret", "3"])
def test_a_webhook_that_is_no_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match=r"retrain\.webhook") as error:
        load_config(None, [f"retrain.webhook={url}"])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1", "not YAML"),
        (b"- 1\n", "mapping"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"seed: 1\nsplit: {test_start: 2024-13-01}", "not YAML: '2024-13-01': month must be"),
        (b"seed: !!float ''", "not YAML: '' is not of type float: leave the tag !!float out"),
        (b"seed: " + b"7" * 5_000, f"not YAML: '{'7' * 40}': Exceeds"),
        (b"seed: " + b"[" * 5_000, "not YAML: it is nested too deeply"),
    ],
    ids=["unclosed list", "a list", "not text", "no such date", "empty float", "long number", "deep"],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.yaml") as error:
        load_config(path)
    assert said in str(error.value)


def test_a_stored_config_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Each model has a whole config: without it, nothing starts from it."""
    config = load_config(None, ["seed=7", "split.protocol=time", "split.test_start=2026-11-01"])
    path = tmp_path / "config.json"

    def stored(**sections: dict[str, object]) -> Config:
        tree = config.model_dump(mode="json")
        for name, values in sections.items():
            tree[name] |= values
        path.write_text(json.dumps(tree))
        return read_stored_config(path)

    assert stored() == load_config(path) == config
    with pytest.raises(ConfigError, match=r"(?s)config.json.*model.of_another_time: unknown key.*again"):
        stored(model={"of_another_time": True})
    gate = config.retrain.gate.model_dump(mode="json")
    assert stored(training={"evaluate_every": 1}, retrain={"gate": gate | {"of_another_time": [2]}}) == config
    with pytest.raises(ConfigError, match=r"(?s)evaluate_every.*of_another_time"):
        load_config(path)  # as if somebody had written it
    assert load_config(path, is_runs=True) == config
    with pytest.raises(ConfigError, match="evaluate_every"):
        load_config(path, ["training.evaluate_every=1"], is_runs=True)
    for damaged in (json.dumps(config.model_dump(mode="json"))[:-9].encode(), b"\xff"):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"(?s)config\.json is not valid.*damaged: train") as found:
            read_stored_config(path)
        assert len(str(found.value)) < 300


def test_a_long_value_is_refused_in_few_words(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"groups: {[f'file-{number}' for number in range(9999)]}")
    with pytest.raises(ConfigError, match=r"groups: it must be a section .*; got \['file-0', .*\.\.\.$") as error:
        load_config(path)
    assert len(str(error.value)) < 1000


def test_a_section_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    """YAML's last one would win, and what the first one sets be gone."""
    path = tmp_path / "twice.yaml"
    path.write_text("data: {num_buckets: 4}\ntraining: {epochs: 3}\ndata: {events: log.csv}\n")
    with pytest.raises(ConfigError, match=r"(?s)twice.yaml is not YAML: 'data' appears twice, first in line 1.*line 3"):
        load_config(path)
    path.write_text("a: &base {epochs: 3}\n<<: {seed: 1}\n")
    with pytest.raises(ConfigError, match="a: unknown key"):  # merge keys and anchors are YAML as before
        load_config(path)


def test_a_wrong_override_is_not_blamed_on_the_file_alone() -> None:
    with pytest.raises(ConfigError, match=r"smoke.yaml with --set is not valid:\n  training.epochs"):
        load_config(CONFIGS[-1].with_name("smoke.yaml"), ["training.epochs=0"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file or directory; name a readable YAML file"):
        load_config(tmp_path / "nowhere.yaml")


def test_one_string_stands_for_a_list_and_a_bare_date_for_its_text() -> None:
    config = load_config(None, ["data.events=log.csv", "split.protocol=time", "split.test_start=2026-11-01"])
    assert config.data.events == ("log.csv",)
    assert config.split.test_start == "2026-11-01"


@pytest.mark.parametrize(
    "text_format",
    ["%d.%m.%Y %H:%M:%S.%f", "%D %H:%M:%S,%f", "%d.%m.%Y %%f %%Z GMT", "%Y %z", "%y%m%d", "%s", "%F", "%c", "%EY"],
)
def test_a_format_that_can_be_read_is_taken(text_format: str) -> None:
    assert DataConfig(timestamp_format=text_format).timestamp_format == text_format


def test_target_level_index_counts_from_the_lowest() -> None:
    feedback = ["data.feedback.levels=[exposure, click, buy]", "data.feedback.target_level=click"]
    config = load_config(None, [*feedback, "data.columns.event=event"])
    assert config.data.feedback.target_level_index == 1
