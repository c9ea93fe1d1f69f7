"""Asks candidate and reference the same questions: the newest span's test users, through the servables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contracts.artifact import read_manifest
from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import Split
from pipeline.retraining.evidence import Answers, Holdout

if TYPE_CHECKING:
    from serving.servable_session import ServableSession

_TIMED_REQUESTS = 60


class HoldoutUsers:
    """The test users of a run, with the requests that each of them would send."""

    def __init__(self, workdir: Workdir, max_users: int | None = None):
        """Reads the run's catalogue and test users, evenly spaced ones if there are more than `max_users`.

        Raises:
            ArtifactError: an artifact is missing, or there is no test user.
        """
        from serving.user_requests import user_requests
        from trainer.catalogue import Catalogue
        from trainer.input.evaluation_users import EvaluationUsers

        self._workdir, self._catalogue = workdir, Catalogue.load(workdir)
        self._users = EvaluationUsers.load(workdir, Split.TEST, max_users)
        self._requests = user_requests(workdir, self._catalogue, self._users)
        self._index_of = {item: index for index, item in enumerate(self._catalogue.item_ids, start=1)}

    def holdout(self) -> Holdout:
        users, catalogue = self._users, self._catalogue
        return Holdout(
            target_users=users.targets.row_ids(),
            targets=users.targets.values,
            num_seen=users.seen.lengths,
            group_id=catalogue.group_id,
            train_count=catalogue.train_count,
        )

    def popularity(self, k: int) -> Answers:
        """The unseen items that the largest number of users took: the reference before anything is served."""
        from trainer.evaluation.popularity import popularity_lists

        return Answers(popularity_lists(self._workdir, self._catalogue.num_items, self._users, k), np.empty(0))

    def ask(self, servables: Sequence[Path], k: int) -> list[Answers]:
        """Each servable's answers to all users; single requests are timed in turn, so that load affects all alike.

        Raises:
            ValueError: there is no servable at a path.
        """
        from serving.servable_session import ServableSession

        with ExitStack() as stack:
            sessions, lists = [], []
            for path in servables:
                sessions.append(stack.enter_context(ServableSession(path)))
                lists.append(self._lists(sessions[-1], k))
            return [Answers(*pair) for pair in zip(lists, self._time(sessions, k), strict=True)]

    def _lists(self, session: ServableSession, k: int) -> np.ndarray:
        lists = np.zeros([len(self._requests), k], np.int64)
        for rows in self._requests.batches():
            found = self._requests.ask(session, rows, num_candidates=k)
            # A place whose score is not a number holds nothing that can be ranked.
            items = np.where(np.isfinite(found.scores), found.item_ids, "")
            lists[rows, : items.shape[1]] = self._numbers(items)
        return lists

    def _numbers(self, item_ids: np.ndarray) -> np.ndarray:
        """Items that the candidate's catalogue lacks get numbers above it, the same for both models."""
        known = self._index_of
        flat = [known.setdefault(item, len(known) + 1) if item else 0 for item in item_ids.ravel().tolist()]
        return np.array(flat, np.int64).reshape(item_ids.shape)

    def _time(self, sessions: Sequence[ServableSession], k: int) -> list[np.ndarray]:
        spent: list[list[float]] = [[] for _ in sessions]
        for row in range(min(_TIMED_REQUESTS, len(self._requests))):
            for session, times in zip(sessions, spent, strict=True):
                started = time.perf_counter()
                self._requests.ask(session, slice(row, row + 1), num_candidates=k)
                times.append((time.perf_counter() - started) * 1000)
        return [np.array(times[len(times) // 4 :]) for times in spent]  # the first ones warm up


def holdout_events_in_training(workdir: Workdir, start: int, *, others_learn: bool = False) -> int:
    """How many events of the training windows belong to the holdout.

    These are the events from `start` (microseconds) on and, at any time, the test users' targets. A target is an item
    that its user has not met in training, so the number is 0 for an honest run, whatever the data.

    Args:
        others_learn: whether only the users that the model is measured on are held out, so that other users' events,
            at any time, do not count as the holdout's.

    Raises:
        ArtifactError: there is no test user.
    """
    from trainer.input.evaluation_users import EvaluationUsers
    from trainer.input.training_windows import training_events

    users = EvaluationUsers.load(workdir, Split.TEST)
    targets = np.stack([users.user_index[users.targets.row_ids()], users.targets.values], axis=1)
    width = int(targets[:, 1].max(initial=0)) + 1
    keys, count = np.unique(targets @ [width, 1]), 0
    held_out = np.concatenate([users.user_index, EvaluationUsers.load(workdir, Split.VALIDATION).user_index])
    for events in training_events(workdir):
        key = events.user_index * width + events.item_index
        is_target = (events.item_index < width) & np.isin(key, keys)
        # Times are cut off to seconds, so the second that contains `start` may begin before it.
        is_late = events.second > start // 1_000_000
        if others_learn:
            is_late &= np.isin(events.user_index, held_out)
        count += int(np.sum(is_target | is_late))
    return count


def index_recall(config: Config, workdir: Workdir) -> float:
    """The lowest recall of the run's indexes against exact search, over all ways of asking, from its validation.

    For each index this is the high end, which validation compares with the target: in a few hundred requests, a sound
    index may miss the target by chance.
    """
    servables = read_manifest(workdir.validation).details["servables"]
    found = [servables[index] for index in config.serving.indexes]
    return min(float(each["recall_high"]) for each in found)
