"""Push and rollback on a store of small files: what a polling server may see at any moment."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from contracts.serving_labels import LABELS_FILE, ServingLabels, versions_on_disk, write_labels
from contracts.store_layout import RetrainRun, Store
from pipeline.cli import main
from pipeline.retraining import publish as publishing
from pipeline.retraining.base_paths import no_longer_exported
from pipeline.retraining.housekeeping import retain
from pipeline.retraining.plan import SpanStart, make_plan
from pipeline.retraining.publish import publish, set_stable, version_before
from pipeline.retraining.records import Record, all_records
from pipeline.retraining.views import versions_json
from tests.pipeline.small_store import CONFIG, NAMES, WITHOUT_EXACT, push, stable

SPANS = [SpanStart("1", 1, "a"), SpanStart("2", 5, "b")]
NO_SPANS = json.dumps(asdict(Record("run-1", "pushed", 1, "stable", "", 1.0, [], {}, {}, {}, {}, {}, {})))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_pushed_version_is_whole_and_stable_in_every_servable(store: Store) -> None:
    assert push(store, 1, None) == "stable"
    assert push(store, 2, 1) == "stable"
    assert stable(store) == [ServingLabels(stable=2)] * 2
    for name in NAMES:
        assert versions_on_disk(store.servable(name)) == [1, 2]
        data = store.servable(name) / "2" / "variables" / "data"
        assert data.read_text() == "weights 2" and not data.is_symlink()  # the run may be deleted
    assert sorted(path.name for path in (store.path / "servable").iterdir()) == NAMES


def test_a_link_that_leads_nowhere_takes_a_number(store: Store) -> None:
    push(store, 1, None)
    (store.servable("dnc") / "2").symlink_to("gone")
    assert push(store, 2, 1) == "stable"
    assert stable(store) == [ServingLabels(stable=3)] * 2
    assert versions_on_disk(store.servable("dnc_exact")) == [1, 3]


def test_a_base_path_that_is_a_link_to_another_disk_stays_there(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an artifact does. Nothing can be renamed from one disk to another, and the first push is after training."""
    disk = tmp_path / "disk"
    disk.mkdir()
    store.servables.mkdir(parents=True)
    store.servable("dnc").symlink_to(disk / "versions")  # which the first push makes

    def on_one_disk(rename: Callable[..., None]) -> Callable[..., None]:
        def renamed(source: Path, target: Path) -> None:
            if len({disk in Path(os.path.realpath(path)).parents for path in (source, target)}) == 2:
                raise OSError(errno.EXDEV, "Invalid cross-device link", str(source), None, str(target))
            rename(source, target)

        return renamed

    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, on_one_disk(getattr(os, name)))
    for number in range(1, 5):
        assert push(store, number, number - 1 or None) == "stable"
        retain(CONFIG, store)
    assert versions_on_disk(disk / "versions") == versions_on_disk(store.servable("dnc_exact")) == [3, 4]
    assert store.servable("dnc").is_symlink() and [path.name for path in disk.iterdir()] == ["versions"]


def test_a_version_is_never_seen_in_part(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each file that the push touches, a poll finds no version, or a whole one. The main servable's is the last."""
    seen = []

    def poll() -> None:
        main, other = (store.servable(name) for name in NAMES)
        assert len(versions_on_disk(main)) <= len(versions_on_disk(other))
        assert (main / LABELS_FILE).exists() <= (other / LABELS_FILE).exists()
        for name in NAMES:
            for version in versions_on_disk(store.servable(name)):
                files = [path for path in (store.servable(name) / str(version)).rglob("*") if path.is_file()]
                seen.append(len(files))

    link, rename = os.link, os.replace
    monkeypatch.setattr(os, "link", lambda *names: (poll(), link(*names), poll()))
    monkeypatch.setattr(os, "replace", lambda *names: (poll(), rename(*names), poll()))
    push(store, 1, None)
    assert set(seen) == {2}


def test_pushing_again_after_a_death_changes_nothing(store: Store) -> None:
    push(store, 1, None)
    inode = (store.servable("dnc") / "1" / "saved_model.pb").stat().st_ino
    workdir = store.run("run-1")
    assert publish(NAMES, store, workdir, workdir.servable("dnc") / "1", 1, None, held=False) == (1, "stable")
    assert (store.servable("dnc") / "1" / "saved_model.pb").stat().st_ino == inode
    assert stable(store) == [ServingLabels(stable=1)] * 2


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_pushing_again_keeps_a_rollback(store: Store, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retrain dies between its push and its record, or among its labels, and somebody rolls back.

    It is called again then, or just now; and a version that is bad may be deleted.
    """
    push(store, 1, None)
    push(store, 2, 1)
    workdir, copies = store.run("run-2"), [store.servable(name) / "2" for name in NAMES]
    if when == "before":
        RetrainRun(workdir).push.write_text(json.dumps({"version": 2, "label": "stable", "is_done": True}))
        set_stable(store, 1)
        for path in copies:
            shutil.rmtree(path)
    else:
        RetrainRun(workdir).push.write_text(json.dumps({"version": 2, "label": "stable", "is_done": False}))
        monkeypatch.setattr(publishing, "_appear", lambda source, version: set_stable(store, 1))
    pushed = publish(NAMES, store, workdir, workdir.servable("dnc") / "1", 2, 1, held=False)
    assert pushed == (2, "stable")  # what it was then
    assert stable(store) == [ServingLabels(stable=1)] * 2
    assert [path.exists() for path in copies] == [when == "meanwhile"] * 2


def test_a_rollback_goes_one_back_keeps_the_canary_and_ends_at_the_main_servable(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        push(store, number, number - 1 or None)
    push(store, 4, 3, held=False)
    set_stable(store, 3)
    push(store, 5, 3, held=True)
    assert stable(store) == [ServingLabels(stable=3, canary=5)] * 2
    written: list[str] = []
    write = publishing.write_labels
    monkeypatch.setattr(
        publishing, "write_labels", lambda base, labels: [written.append(base.name), write(base, labels)]
    )
    assert version_before(store) == 2
    assert CliRunner().invoke(main, ["rollback", "-s", str(store.path)]).stdout == "version 2 is stable\n"
    assert stable(store) == [ServingLabels(stable=2, canary=5)] * 2
    assert written == ["dnc_exact", "dnc"]


def test_a_rollback_of_a_store_that_code_of_0_1_0_has_pushed_to(store: Store) -> None:
    """As after an upgrade that went wrong. Its pushes are over, and say no more than what they made."""
    for number in (1, 2, 3):
        push(store, number, number - 1 or None)
    for number in (1, 2):
        path = RetrainRun(store.run(f"run-{number}")).push
        path.write_text(json.dumps({"version": number, "label": "stable"}))
    set_stable(store, 1)
    assert stable(store) == [ServingLabels(stable=1)] * 2
    again = store.run("run-2")
    assert publish(NAMES, store, again, again.servable("dnc") / "1", 2, 1, held=False) == (2, "stable")
    assert stable(store) == [ServingLabels(stable=1)] * 2  # called again, it changes nothing


def test_a_number_that_another_servable_took_is_passed_over(store: Store) -> None:
    """Somebody copies a servable to the number that the run has planned; a push that dies is done again."""
    push(store, 1, None)
    foreign = store.servable("dnc") / "2"
    shutil.copytree(store.servable("dnc") / "1", foreign)
    (foreign / "saved_model.pb").write_text("another")
    assert push(store, 2, 1) == "stable"
    assert [record.version for record in all_records(store)] == [1, 3]
    assert stable(store) == [ServingLabels(stable=3)] * 2
    assert versions_on_disk(store.servable("dnc_exact")) == [1, 3]
    assert (foreign / "saved_model.pb").read_text() == "another"
    workdir = store.run("run-2")
    for died_before in ("push.json", None):
        if died_before:
            (workdir.path / died_before).unlink()
        assert publish(NAMES, store, workdir, workdir.servable("dnc") / "1", 2, 1, held=False) == (3, "stable")
    assert versions_on_disk(store.servable("dnc")) == [1, 2, 3]


def test_what_a_dead_push_left_is_removed(store: Store) -> None:
    left = store.path / "servable" / "dnc.staging-01234567"
    left.mkdir(parents=True)
    push(store, 1, None)
    assert not left.exists()


def test_a_rollback_survives_the_next_push(store: Store) -> None:
    push(store, 1, None)
    push(store, 2, 1)
    assert version_before(store) == 1
    set_stable(store, 1)
    assert stable(store) == [ServingLabels(stable=1)] * 2
    assert push(store, 3, 1, held=True) == "canary"
    assert stable(store) == [ServingLabels(stable=1, canary=3)] * 2
    set_stable(store, 3)
    assert stable(store) == [ServingLabels(stable=3, canary=3)] * 2
    assert push(store, 4, 3) == "stable"


def test_whoever_asks_for_the_canary_finds_one_after_every_push_and_rollback(store: Store) -> None:
    """By hand: each step, and stable and canary after it. The label is never taken away, and never names a version
    that was rolled back from."""
    push(store, 1, None)
    push(store, 2, 1)
    set_stable(store, 1)
    assert stable(store) == [ServingLabels(stable=1)] * 2  # nobody asks for a canary yet
    push(store, 3, 1, held=True)
    steps = [
        (lambda: set_stable(store, 3), (3, 3)),  # promoted
        (lambda: push(store, 4, 3), (4, 4)),
        (lambda: set_stable(store, 2), (2, 2)),  # version 4 was bad for all
        (lambda: push(store, 5, 2, held=True), (2, 5)),
        (lambda: set_stable(store, 1), (1, 5)),  # the canary is still tried
        (lambda: push(store, 6, 1, held=True), (1, 6)),
        (lambda: write_labels(store.servable("dnc"), ServingLabels(stable=6, canary=5)), (6, 5)),
        (lambda: push(store, 7, 6), (7, 7)),
    ]
    for step, (serves, tried) in steps:
        step()
        assert stable(store)[0] == ServingLabels(stable=serves, canary=tried)
    retain(CONFIG, store)
    assert versions_on_disk(store.servable("dnc")) == [6, 7]
    assert [(row["version"], row["labels"]) for row in versions_json(store)][-2:] == [
        (6, []),
        (7, ["stable", "canary"]),
    ]


def test_a_rollback_during_a_retrain_is_kept(store: Store) -> None:
    """The run was planned while 2 was stable; meanwhile somebody went back to 1."""
    push(store, 1, None)
    push(store, 2, 1)
    set_stable(store, 1)
    assert push(store, 3, 2) == "canary"
    assert stable(store) == [ServingLabels(stable=1, canary=3)] * 2


def test_a_rollback_at_the_moment_of_a_push_is_not_overwritten(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The push has read the labels, and goes on to write them."""
    push(store, 1, None)
    push(store, 2, 1)
    rollback = Thread(target=set_stable, args=(store, 1))
    write = publishing.write_json

    def meanwhile(*arguments: object) -> None:
        write(*arguments)
        if not rollback.ident:
            rollback.start()
            rollback.join(0.2)

    monkeypatch.setattr(publishing, "write_json", meanwhile)
    push(store, 3, 2)
    rollback.join()
    assert [labels.stable for labels in stable(store)] == [1, 1]


def test_a_rollback_during_retention_finds_its_version_or_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 4):
        push(store, number, number - 1 or None)
    refused: list[ValueError] = []

    def go_back() -> None:
        try:
            set_stable(store, 1)
        except ValueError as error:
            refused.append(error)

    rollback, rename = Thread(target=go_back), os.rename

    def meanwhile(*names: Path) -> None:
        if not rollback.ident:
            rollback.start()
            rollback.join(0.2)
        rename(*names)

    monkeypatch.setattr(os, "rename", meanwhile)
    retain(CONFIG, store)
    rollback.join()
    assert [labels.stable in versions_on_disk(store.servable("dnc")) for labels in stable(store)] == [True, True]
    assert "has no version 1" in str(refused)


@pytest.mark.parametrize("version", [0, 9])
def test_a_version_that_is_not_there_is_refused(store: Store, version: int) -> None:
    push(store, 1, None)
    with pytest.raises(ValueError, match=rf"has no version {version}; it has \[1\]"):
        set_stable(store, version)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x", b'{"stable": -1}'])
def test_a_rollback_to_a_version_writes_broken_labels_anew(store: Store, content: bytes) -> None:
    push(store, 1, None)
    push(store, 2, 1)
    (store.servable("dnc") / LABELS_FILE).write_bytes(content)
    listed = CliRunner().invoke(main, ["versions", "-s", str(store.path), "--json"])
    assert [row["labels"] for row in json.loads(listed.stdout)] == [[], []]
    unnamed = CliRunner().invoke(main, ["rollback", "-s", str(store.path)])
    assert (unnamed.exit_code, "as `dnc rollback -s STORE VERSION` does" in unnamed.stderr) == (2, True)
    assert CliRunner().invoke(main, ["rollback", "-s", str(store.path), "1"]).exit_code == 0
    assert stable(store) == [ServingLabels(stable=1)] * 2


def test_nothing_to_roll_back_to(store: Store) -> None:
    push(store, 1, None)
    with pytest.raises(ValueError, match="no version before the stable one"):
        version_before(store)


@pytest.mark.parametrize("text", ["", "{}", "null", NO_SPANS])
def test_a_record_that_cannot_be_read_is_told_and_passed_over(
    store: Store, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine lost its power; the run's directory stays, since its record may be restored."""
    push(store, 1, None)
    push(store, 2, 1)
    lost = RetrainRun(store.run("run-1")).record
    lost.write_text(text)
    assert [(row["version"], row["outcome"]) for row in versions_json(store)] == [(2, "pushed"), (1, None)]
    [told] = [message for message in caplog.messages if str(lost) in message]
    assert "restore it, or delete the run's directory" in told
    retain(CONFIG, store)
    assert lost.exists()
    assert version_before(store) == 1


def test_a_version_that_no_run_made_is_listed_with_its_label(store: Store) -> None:
    """One that `dnc index` made of today's items serves."""
    push(store, 1, None)
    shutil.copytree(store.servable("dnc") / "1", store.servable("dnc") / "2")
    assert CliRunner().invoke(main, ["rollback", "-s", str(store.path), "2"]).exit_code == 0
    listed = CliRunner().invoke(main, ["versions", "-s", str(store.path), "--json"])
    rows = json.loads(listed.stdout)
    assert [(row["version"], row["labels"], row["on_disk"]) for row in rows] == [(1, [], True), (2, ["stable"], True)]
    shutil.rmtree(store.runs)
    table = CliRunner().invoke(main, ["versions", "-s", str(store.path)]).stdout.split("\n")
    assert [line.split() for line in table[1:3]] == [
        ["1", "yes", "no", "record"],
        ["2", "stable", "yes", "no", "record"],
    ]


def test_a_servable_that_is_exported_no_more_is_told_and_no_candidate(store: Store) -> None:
    push(store, 3, None)
    for number in (7, 8):
        push(store, number, number - 1 if number == 8 else 3, config=WITHOUT_EXACT)
    shutil.rmtree(store.servable("dnc") / "3")
    assert stable(store) == [ServingLabels(stable=8), ServingLabels(stable=3)]
    assert version_before(store) == 7
    with pytest.raises(ValueError, match=r"servable/dnc has no version 3; it has \[7, 8\]"):
        set_stable(store, 3)
    done = CliRunner().invoke(main, ["rollback", "-s", str(store.path)])
    assert (done.exit_code, done.stdout) == (0, "version 7 is stable\n")
    assert "dnc_exact has no version 7" in done.stderr
    assert stable(store) == [ServingLabels(stable=7), ServingLabels(stable=3)]
    [row] = [row for row in versions_json(store) if row["labels"]]
    assert (row["version"], row["labels"]) == (7, ["stable"])
    [note] = no_longer_exported(store)
    assert "dnc_exact is no longer exported, but version 3 is still stable there: export it again" in note
    assert make_plan(WITHOUT_EXACT, store, "new", SPANS, {}).notes[-1:] == [note]
    assert no_longer_exported(store, CONFIG.serving) == []


def test_a_servable_that_is_exported_again_follows_the_main_one(store: Store) -> None:
    push(store, 1, None)
    push(store, 2, 1, config=WITHOUT_EXACT)
    assert push(store, 3, 2) == "stable"
    assert stable(store) == [ServingLabels(stable=3)] * 2


def test_a_servable_that_is_exported_first_while_the_main_one_is_held_has_one_version_to_serve(store: Store) -> None:
    for number in (1, 2):
        push(store, number, number - 1 or None, config=WITHOUT_EXACT)
    set_stable(store, 1)
    assert push(store, 3, 1, held=True) == "canary"
    workdir = store.run("run-3")
    for _ in range(2):  # and once more, as if it had died among its labels
        assert stable(store) == [ServingLabels(stable=1, canary=3), ServingLabels(stable=3)]
        RetrainRun(workdir).push.write_text(json.dumps({"version": 3, "label": "canary", "is_done": False}))
        assert publish(NAMES, store, workdir, workdir.servable("dnc") / "1", 3, 1, held=True) == (3, "canary")
