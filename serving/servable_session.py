"""Servables asked in this process, and their loader: a session, as in TF Serving."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import scann  # noqa: F401  (registers the ops that the servable holds)
import tensorflow as tf

from contracts.layout import SAVED_MODEL
from contracts.names import Request, Response, Signature
from serving.request_values import per_user, require_a_list_a_user, require_ids, without_context
from serving.signature_spec import SignatureSpec, require_merges

v1 = tf.compat.v1

Strings = Sequence[str]


@dataclass(frozen=True)
class Recommendations:
    """Lists of candidates, each in the order of its merge.

    Attributes:
        item_ids: object (str) [batch_size, M], "" = absent.
        scores: float32 [batch_size, M], -inf = absent.
        group_ids: int32 [batch_size, M], -1 = absent.
    """

    item_ids: np.ndarray
    scores: np.ndarray
    group_ids: np.ndarray


class Servable(ABC):
    """One version, under any loader."""

    signatures: Mapping[str, Any]

    @abstractmethod
    def predict(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Calls a signature; inputs that are left out take their defaults."""

    def recommend(
        self,
        histories: Sequence[Strings],
        user_ids: Strings | None = None,
        features: Mapping[str, Sequence[Any]] | None = None,
        *,
        is_context: Sequence[Sequence[bool]] | None = None,
        num_candidates: int | Sequence[int] | None = None,
        alpha: float | Sequence[float] | None = None,
        merge: str | Strings | None = None,
        group_boost: Sequence[float] | Sequence[Sequence[float]] | np.ndarray | None = None,
        groups: Sequence[int] | Sequence[Sequence[int]] | None = None,
        max_groups: int | Sequence[int] | None = None,
        exclude_item_ids: Strings | Sequence[Strings] | None = None,
        num_exploration: int | Sequence[int] | None = None,
    ) -> Recommendations:
        """Recommends candidates, given one history (oldest first) per user; None means the servable's default.

        A single value applies to every user, and so does a single list of `group_boost`, `groups` or
        `exclude_item_ids`; `contracts.names.Request` says what each input does. `is_context` marks events of the
        histories; a servable whose model reads no context is asked without them.

        Raises:
            ValueError: an argument does not hold a value per user, or has values of another type, or there is no such
                merge. Values out of range follow the servable's rules, as in any request.
        """
        inputs, rows = self._query_inputs(histories, user_ids, features, is_context), len(histories)
        numbers = {
            Request.NUM_CANDIDATES: num_candidates,
            Request.MAX_GROUPS: max_groups,
            Request.NUM_EXPLORATION: num_exploration,
        }
        for name, value in numbers.items():
            if value is not None:
                inputs[name] = np.broadcast_to(_int32(name, value), [rows])
        if alpha is not None:
            inputs[Request.ALPHA] = np.broadcast_to(_float32(alpha), [rows])
        if merge is not None:
            inputs[Request.MERGE] = np.broadcast_to(np.asarray(merge, object), [rows])
            require_merges(inputs[Request.MERGE].tolist())
        if group_boost is not None:
            boost = _float32(group_boost)
            inputs[Request.GROUP_BOOST] = np.broadcast_to(boost, [rows, *boost.shape[-1:]])
        if groups is not None:
            given = [_int32(Request.GROUPS, one).tolist() for one in per_user(Request.GROUPS, groups, rows)]
            inputs[Request.GROUPS] = _padded(given, -1, np.int32)
        if exclude_item_ids is not None:
            excluded = per_user(Request.EXCLUDE_ITEM_IDS, exclude_item_ids, rows)
            inputs[Request.EXCLUDE_ITEM_IDS] = _padded(excluded, b"", object)
        outputs = self.predict(Signature.SERVING_DEFAULT, inputs)
        return Recommendations(
            decode(outputs[Response.ITEM_IDS]), outputs[Response.SCORES], outputs[Response.GROUP_IDS]
        )

    def query_embedding(
        self,
        histories: Sequence[Strings],
        user_ids: Strings | None = None,
        features: Mapping[str, Sequence[Any]] | None = None,
        is_context: Sequence[Sequence[bool]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings float32 [batch_size, num_groups, dim] and p(group | user) [batch_size, num_groups]."""
        inputs = self._query_inputs(histories, user_ids, features, is_context)
        outputs = self.predict(Signature.QUERY_EMBEDDING, inputs)
        return outputs[Response.EMBEDDINGS], outputs[Response.INTENT]

    def takes(self, name: str) -> bool:
        """Whether a request may have an input of that name."""
        return name in self.signatures[Signature.SERVING_DEFAULT].inputs

    def _query_inputs(
        self,
        histories: Sequence[Strings],
        user_ids: Strings | None,
        features: Mapping[str, Sequence[Any]] | None,
        is_context: Sequence[Sequence[bool]] | None,
    ) -> dict[str, np.ndarray]:
        require_a_list_a_user(histories)
        if is_context is None or self.takes(Request.HISTORY_IS_CONTEXT):
            return request_inputs(histories, user_ids, features, is_context)
        return request_inputs(without_context(histories, is_context), user_ids, features)

    def candidate_embedding(self, item_ids: Strings) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings float32 [num_items, dim] and group_ids int32 [num_items], -1 = unknown.

        Raises:
            ValueError: `item_ids` is no list of strings.
        """
        require_ids(item_ids)
        inputs = {Request.ITEM_IDS: np.array(_encoded(item_ids), object)}
        outputs = self.predict(Signature.CANDIDATE_EMBEDDING, inputs)
        return outputs[Response.EMBEDDINGS], outputs[Response.GROUP_IDS]


class ServableSession(Servable):
    """One version of a servable. Use it as a context manager, or `close` it."""

    def __init__(self, path: Path, num_threads: int = 0):
        """Loads `path`, a version directory; `num_threads` as in `new_session`.

        Raises:
            ValueError: there is no servable at `path`.
        """
        if not (path / SAVED_MODEL).exists():
            raise ValueError(f"no servable at {path}: it must be a version directory that holds {SAVED_MODEL}")
        self._session = new_session(num_threads)
        try:
            self.signatures = load_version(self._session, path)
        except BaseException:
            self._session.close()
            raise

    def __enter__(self) -> ServableSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the servable's memory."""
        self._session.close()

    def predict(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Calls a signature; inputs that are left out take their defaults.

        Raises:
            ValueError: the servable has no such signature or input.
        """
        if signature not in self.signatures:
            raise ValueError(f"the servable has no signature {signature!r}; it has {sorted(self.signatures)}")
        spec = SignatureSpec(signature, self.signatures[signature])
        spec.require_known(inputs)
        return self._session.run(spec.outputs, {spec.inputs[name].tensor: value for name, value in inputs.items()})


def new_session(num_threads: int) -> tf.compat.v1.Session:
    """Opens an empty session; 0 leaves the number of its threads to TensorFlow.

    Threads that run ops belong to the session. Threads within an op belong to the process, and the first op or session
    sets their number.
    """
    options = v1.ConfigProto(
        intra_op_parallelism_threads=num_threads,
        inter_op_parallelism_threads=num_threads,
        use_per_session_threads=num_threads > 0,
    )
    return v1.Session(graph=tf.Graph(), config=options)


def load_version(session: tf.compat.v1.Session, path: Path) -> Mapping[str, Any]:
    """Loads a version directory into an empty session; returns name -> SignatureDef."""
    with session.graph.as_default():
        signatures: Mapping[str, Any] = v1.saved_model.load(session, [tf.saved_model.SERVING], str(path)).signature_def
    return signatures


def request_inputs(
    histories: Sequence[Strings],
    user_ids: Strings | None = None,
    features: Mapping[str, Sequence[Any]] | None = None,
    is_context: Sequence[Sequence[bool]] | None = None,
) -> dict[str, np.ndarray]:
    """Inputs of serving_default and query_embedding: histories padded on the right.

    Raises:
        ValueError: there is not one user id, or one value of a feature, per history.
    """
    for name, of_users in {Request.USER_ID: user_ids, **(features or {})}.items():
        if of_users is not None and len(of_users) != len(histories):
            raise ValueError(f"input {name!r} must have one value per user ({len(histories)}); got {len(of_users)}")
    inputs = {Request.HISTORY: _padded(histories, b"", object)}
    if is_context is not None:
        inputs[Request.HISTORY_IS_CONTEXT] = _padded(is_context, False, bool)
    if user_ids is not None:
        inputs[Request.USER_ID] = np.array(_encoded(user_ids), object)
    for name, values in (features or {}).items():
        # If all values are None, their type is unknown; an input that is left out is missing for all.
        if any(value is not None for value in values):
            inputs[name] = _feature_input(values)
    return inputs


def _padded(rows: Sequence[Sequence[Any]], padding: Any, dtype: type) -> np.ndarray:
    """[number of rows, longest], strings as bytes: an array of text would be as wide as its longest id everywhere."""
    padded: np.ndarray = np.full([len(rows), max(map(len, rows), default=0)], padding, dtype)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = _encoded(row) if dtype is object else row
    return padded


def _encoded(ids: Strings) -> list[bytes]:
    try:
        return [one.encode() for one in ids]
    except AttributeError:
        raise ValueError(f"ids are strings, so write str(...) around each; got {list(ids)[:5]!r}") from None


def _feature_input(values: Sequence[Any]) -> np.ndarray:
    """None is a missing value: "" among strings, NaN among numbers, a vector of NaN among vectors."""
    if any(isinstance(value, str) for value in values):
        return np.array([(value or "").encode() for value in values], object)
    shape = next((np.shape(value) for value in values if value is not None), ())
    return _float32([np.full(shape, math.nan) if value is None else value for value in values])


def _float32(values: Any) -> np.ndarray:
    """Values that float32 cannot hold become infinite, for which the servable has rules."""
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)


def _int32(name: str, values: Any) -> np.ndarray:
    """Refuses fractions and what int32 cannot hold: NumPy would cut off the ones, and wrap or raise for the others."""
    given = np.asarray(values)
    try:
        with np.errstate(invalid="ignore"):
            whole = given.astype(np.int32)
        fits = np.array_equal(whole, given)
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(f"input {name!r} must hold int32, whole numbers below 2^31; got {values!r}")
    return whole


def decode(ids: np.ndarray) -> np.ndarray:
    """Object array of bytes -> object array of str."""
    return np.array([item.decode() for item in ids.ravel()], object).reshape(ids.shape)
