"""Requests made from real users: for warm-up, validation, evaluation and the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from contracts.artifact import read_manifest
from contracts.layout import Workdir
from contracts.names import Request, Signature, UserColumn
from serving.request_values import given_inputs, request_arrays
from serving.servable_session import Recommendations, Servable
from serving.signature_spec import Arrays, SignatureSpec
from trainer.catalogue import Catalogue
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.ragged import Ragged

_USERS_AT_ONCE = 64


@dataclass(frozen=True)
class UserRequests:
    """Real users' requests.

    Attributes:
        user_ids: one per user.
        histories: item ids of each user, oldest first; those that the tower reads come last.
        is_context: whether each event of `histories` is below the target level.
        told: request feature -> its value in each user's request, "" = none.
    """

    user_ids: list[str]
    histories: list[list[str]]
    is_context: list[list[bool]]
    told: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.user_ids)

    def given(self, spec: SignatureSpec, rows: slice) -> tuple[list[list[str]], dict[str, Any]]:
        """The arguments of `Servable.recommend` and `query_embedding` that describe the users."""
        inputs = {
            Request.HISTORY_IS_CONTEXT: self.is_context[rows],
            Request.USER_ID: self.user_ids[rows],
            **{name: values[rows] for name, values in self.told.items() if name in spec.inputs},
        }
        return self.histories[rows], inputs

    def arrays(self, spec: SignatureSpec, rows: slice) -> Arrays:
        """The inputs that describe the users."""
        histories, inputs = self.given(spec, rows)
        return request_arrays(spec, given_inputs(histories, inputs), len(histories))

    def ask(self, servable: Servable, rows: slice, **controls: Any) -> Recommendations:
        """What `servable` recommends; `controls` are those of `Servable.recommend`."""
        histories, inputs = self.given(servable.specs[Signature.SERVING_DEFAULT], rows)
        return servable.recommend(histories, **inputs, **controls)

    def batches(self) -> list[slice]:
        """The rows of users in each request that evaluation, validation and the gate make."""
        return [slice(start, start + _USERS_AT_ONCE) for start in range(0, len(self), _USERS_AT_ONCE)]


def user_requests(workdir: Workdir, catalogue: Catalogue, users: EvaluationUsers) -> UserRequests:
    """The requests that users of an evaluation split would make.

    A history holds every item that the user had, in order of time: the older ones, without the context between them,
    then the recent events. A model that reads more than `windows.length`, as the one being served may, reads further
    back.
    """
    item_ids = np.concatenate([[""], catalogue.item_ids]).astype(object)
    user_table = pq.read_table(workdir.item_statistics.users, columns=[UserColumn.USER_ID])
    user_ids = np.concatenate([[""], user_table[UserColumn.USER_ID].to_numpy(zero_copy_only=False)])
    histories, is_context = [], []
    for recent_row, seen_row in zip(_rows(users.history), _rows(users.seen), strict=True):
        events = np.concatenate([seen_row[~np.isin(seen_row, recent_row)], recent_row])
        histories.append(item_ids[np.abs(events)].tolist())
        is_context.append((events < 0).tolist())
    return UserRequests(user_ids[users.user_index].tolist(), histories, is_context, _told(workdir, users.request))


def _told(workdir: Workdir, codes: np.ndarray) -> dict[str, list[str]]:
    """Decodes `EventColumn.REQUEST` into `UserRequests.told`."""
    listed: dict[str, list[str]] = read_manifest(workdir.windows.path).details.get("request_features", {})
    places = np.unravel_index(codes, [len(values) + 1 for values in listed.values()]) if listed else ()
    return {
        name: np.array(["", *values], object)[place].tolist()
        for (name, values), place in zip(listed.items(), places, strict=True)
    }


def _rows(ragged: Ragged) -> list[np.ndarray]:
    return np.split(ragged.values, ragged.splits[1:-1])
