"""What `dnc settings` shows: every leaf of the config tree."""

from pathlib import Path

from click.testing import CliRunner, Result

from contracts.config import Config
from contracts.config_io import load_config
from contracts.settings import Setting, all_settings
from pipeline.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
SETTINGS = {setting.key: setting for setting in all_settings()}


def shown(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["settings", *arguments])


def test_each_is_a_key_that_the_tree_dumps_with_that_default() -> None:
    def leaves(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
        found = {}
        for name, value in tree.items():
            key = f"{prefix}{name}"
            is_section = isinstance(value, dict) and key not in SETTINGS
            found |= leaves(value, f"{key}.") if is_section else {key: value}
        return found

    dumped = leaves(Config().model_dump(mode="json"))
    # A section that is left out by default has settings all the same; a secret is never dumped.
    left_out = {"data.user_features", "data.item_features", "data.request_features"}
    assert {key: SETTINGS[key].default for key in dumped.keys() - left_out} == {
        key: value for key, value in dumped.items() if key not in left_out
    }
    rest = SETTINGS.keys() - dumped.keys()
    assert {key for key in rest if not key.startswith(tuple(left_out))} == {"retrain.webhook"}


def test_what_may_be_said_of_one() -> None:
    kind = SETTINGS["data.item_features.features[].kind"]
    assert (kind.is_required, kind.choices[:2]) == (True, ("categorical", "tokens"))
    assert SETTINGS["evaluation.baselines"].choices[0] == "popularity"
    assert SETTINGS["groups.num_groups"] == Setting(
        "groups.num_groups", 10, False, (), Config().groups.model_fields["num_groups"].description
    )


def test_a_config_shows_what_it_makes_of_them() -> None:
    config = load_config(CONFIGS / "smoke.yaml")
    assert SETTINGS["data.item_features.id"].value_in(config) == "item_id"
    assert SETTINGS["data.item_features.id"].value_in(Config()) is None
    lines = shown("groups", "-c", str(CONFIGS / "smoke.yaml")).output.splitlines()
    assert "groups.num_groups: 6 (by default 10)" in lines
    assert "groups.fit: sample" in lines
    paths = shown("item_features.path").output, shown("item_features.path", "-c", str(CONFIGS / "smoke.yaml")).output
    assert [path.splitlines()[0] for path in paths] == [
        "data.item_features.path: required",
        "data.item_features.path: data/synthetic/items.csv (required)",
    ]
    assert all(line.startswith(("groups.", "    ")) for line in lines)


def test_a_part_of_their_keys_finds_them_where_no_key_begins_with_it() -> None:
    keys = [line.split(":")[0] for line in shown("rating").output.splitlines() if not line.startswith(" ")]
    assert keys == ["data.columns.rating", "data.feedback.rating_thresholds"]
    assert all(line.startswith(("groups.", "    ")) for line in shown("groups").output.splitlines())


def test_no_secret_is_shown_and_no_prefix_passes_unknown() -> None:
    assert "retrain.webhook: null" in shown("retrain.webhook", "--set", "retrain.webhook=http://host/x").output
    key = shown("beam", "--set", "beam.options=[--s3_session_token=hidden]").output
    assert "beam.options: [--s3_session_token=...] " in key
    unknown = shown("group.num")
    assert (unknown.exit_code, "the sections are seed, data" in unknown.output) == (2, True)
