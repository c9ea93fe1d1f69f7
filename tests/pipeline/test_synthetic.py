"""The synthetic log has the structure that it promises."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pytest

from contracts import artifact
from pipeline.datasets.synthetic import SyntheticLog, generate

LOG = SyntheticLog(num_events=20_000, num_users=500, num_items=300, num_topics=5, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "log"
    generate(LOG, out)
    return out


def events(folder: Path) -> dict[str, np.ndarray]:
    parts = [pa_csv.read_csv(path) for path in sorted(folder.glob("events-*.csv"))]
    return {
        name: np.concatenate([part[name].to_numpy(zero_copy_only=False) for part in parts])
        for name in ("user_id", "item_id", "timestamp", "event")
    }


def test_counts_and_shares(folder: Path) -> None:
    log = events(folder)
    assert len(log["user_id"]) == LOG.num_events
    assert len(np.unique(log["user_id"])) == LOG.num_users
    # Levels are independent draws: three standard errors of a share of 0.1 in 20,000 are 0.0064.
    assert np.mean(log["event"] == "purchase") == pytest.approx(LOG.purchase_share, abs=0.0064)
    assert np.mean(log["event"] == "exposure") == pytest.approx(1 - LOG.click_share, abs=0.01)


def test_users_stay_in_their_topics_and_follow_successors(folder: Path) -> None:
    log = events(folder)
    items = pa_csv.read_csv(folder / "items.csv")
    topic_of = dict(zip(items["item_id"].to_pylist(), items["category"].to_pylist(), strict=True))
    order = np.lexsort((log["timestamp"], log["user_id"]))
    user = log["user_id"][order]
    item = log["item_id"][order]
    topic = np.array([topic_of[name] for name in item])
    same_user = user[1:] == user[:-1]
    stays = np.mean((topic[1:] == topic[:-1])[same_user])
    # stay + (1 - stay) / topics_per_user = 0.8 + 0.2 / 3
    assert stays == pytest.approx(0.867, abs=0.02)
    number = np.array([int(name[1:]) for name in item])
    follows = np.mean((number[1:] == number[:-1] + 1)[same_user & (topic[1:] == topic[:-1])])
    assert follows > 0.5
    topics_per_user = [len(np.unique(topic[user == name])) for name in np.unique(user)[:50]]
    assert max(topics_per_user) <= LOG.topics_per_user


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(folder: Path, tmp_path: Path) -> None:
    generate(LOG, tmp_path / "again")
    generate(SyntheticLog(**{**vars(LOG), "seed": 4}), tmp_path / "other")
    name = "events-00000.csv"
    assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (folder / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_items": 3}, "3 items, 6 topics"),
        ({"num_events": 1_000}, "one event per user.*1000 events, 1500 users"),
        ({"num_users": 3, "num_files": 4}, "one user per file.*3 users, 4 files"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        generate(SyntheticLog(**sizes), tmp_path / "log")


def test_two_processes_that_write_the_same_log_leave_it_whole(folder: Path, tmp_path: Path) -> None:
    """The second one took what the first had staged for what a kill had left, and removed it."""
    out = tmp_path / "log"
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(generate, [LOG] * 4, [out] * 4))
    assert {one.fingerprint for one in made} == {artifact.read_manifest(folder).fingerprint}
    for name in made[0].files:
        assert (out / name).read_bytes() == (folder / name).read_bytes()


def test_a_log_of_as_few_events_as_users(tmp_path: Path) -> None:
    generate(SyntheticLog(num_events=9, num_users=9, num_files=9), tmp_path / "log")
    assert sorted(events(tmp_path / "log")["user_id"]) == [f"u{number}" for number in range(9)]
