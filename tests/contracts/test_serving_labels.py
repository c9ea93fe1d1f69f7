"""serving.json: which versions take traffic."""

from pathlib import Path

import pytest

from contracts.serving_labels import (
    LABELS_FILE,
    ServingLabels,
    effective_labels,
    numbers_on_disk,
    read_labels,
    versions_on_disk,
    write_labels,
)
from tests.contracts.nobody import as_nobody


def make_versions(base: Path, *names: str) -> None:
    for name in names:
        (base / name).mkdir()
        (base / name / "saved_model.pb").touch()


@pytest.mark.parametrize(
    "labels", [ServingLabels(stable=3), ServingLabels(stable=3, canary=5), ServingLabels(stable=3, canary=3)]
)
def test_what_is_written_is_read(tmp_path, labels):
    assert read_labels(tmp_path) is None
    write_labels(tmp_path, labels)
    assert read_labels(tmp_path) == labels
    assert [path.name for path in tmp_path.iterdir()] == [LABELS_FILE]


def test_without_a_file_the_newest_version_is_stable(tmp_path):
    assert effective_labels(tmp_path) is None
    make_versions(tmp_path, "2", "10", "9", "dnc.staging-1", "tmp")
    (tmp_path / "11").mkdir()  # without saved_model.pb: still being copied
    assert versions_on_disk(tmp_path) == [2, 9, 10]
    assert effective_labels(tmp_path) == ServingLabels(stable=10)
    write_labels(tmp_path, ServingLabels(stable=9, canary=10))
    assert effective_labels(tmp_path).by_label() == {"stable": 9, "canary": 10}
    write_labels(tmp_path, ServingLabels(stable=10, canary=10))
    assert effective_labels(tmp_path).by_label() == {"stable": 10, "canary": 10}


def test_a_name_with_leading_zeros_is_no_version_but_takes_its_number(tmp_path):
    make_versions(tmp_path, "7", "007", "00000123")
    assert versions_on_disk(tmp_path) == [7]
    assert numbers_on_disk(tmp_path) == [7, 123]
    assert effective_labels(tmp_path) == ServingLabels(stable=7)


def test_a_version_that_may_not_be_looked_into_is_one_and_hides_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what lies above may be for its owner alone
    tmp_path.chmod(0o755)
    make_versions(tmp_path, "1", "2", "3")
    (tmp_path / "2").chmod(0o000)
    with as_nobody():
        assert versions_on_disk(Path()) == [1, 2, 3]
        assert effective_labels(Path()) == ServingLabels(stable=3)
    write_labels(tmp_path, ServingLabels(stable=1))
    with as_nobody():
        assert effective_labels(Path()) == ServingLabels(stable=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "EOF while parsing"),
        ("[1]", "should be an object"),
        ('{"canary": 2}', "stable: Field required"),
        ('{"stable": -1}', "stable: .*greater than or equal to 0.*got -1"),
        ('{"stable": "new"}', "stable: .*integer.*got 'new'"),
        ('{"stable": 1, "beta": 2}', "beta: Extra inputs"),
    ],
    ids=["empty", "list", "no stable", "zero", "text", "unknown label"],
)
def test_a_wrong_file_is_explained(tmp_path, text, message):
    (tmp_path / LABELS_FILE).write_text(text)
    with pytest.raises(ValueError, match=f"{LABELS_FILE}: .*{message}"):
        read_labels(tmp_path)
