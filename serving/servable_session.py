"""Servables asked in this process, and their loader: a session, as in TF Serving."""

from __future__ import annotations

import functools
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
from serving.request_values import given_inputs, request_arrays, require_ids
from serving.signature_spec import SignatureSpec

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

    @functools.cached_property
    def specs(self) -> Mapping[str, SignatureSpec]:
        """The signatures by name."""
        return {name: SignatureSpec(name, definition) for name, definition in self.signatures.items()}

    def recommend(self, histories: Sequence[Strings], **inputs: Any) -> Recommendations:
        """Recommends candidates; arguments and errors are those of `serving.client.RetrievalClient.recommend`.

        Args:
            histories: item ids, oldest first, a list per user.
            inputs: any other input of serving_default by its name.

        Raises:
            ValueError: the servable has no such input, or the value does not fit it. Values out of range follow the
                servable's rules, as in any request.
        """
        outputs = self._query(Signature.SERVING_DEFAULT, histories, inputs)
        return Recommendations(
            decode(outputs[Response.ITEM_IDS]), outputs[Response.SCORES], outputs[Response.GROUP_IDS]
        )

    def query_embedding(self, histories: Sequence[Strings], **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings float32 [batch_size, num_groups, dim] and p(group | user) [batch_size, num_groups].

        Arguments and errors are those of `recommend`.
        """
        outputs = self._query(Signature.QUERY_EMBEDDING, histories, inputs)
        return outputs[Response.EMBEDDINGS], outputs[Response.INTENT]

    def candidate_embedding(self, item_ids: Strings) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings float32 [num_items, dim] and group_ids int32 [num_items], -1 = unknown.

        Raises:
            ValueError: `item_ids` is no list of strings.
        """
        require_ids(item_ids)
        spec = self.specs[Signature.CANDIDATE_EMBEDDING]
        outputs = self.predict(spec.name, request_arrays(spec, {Request.ITEM_IDS: item_ids}, len(item_ids)))
        return outputs[Response.EMBEDDINGS], outputs[Response.GROUP_IDS]

    def _query(self, signature: str, histories: Sequence[Strings], inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        given = given_inputs(histories, inputs)
        return self.predict(signature, request_arrays(self.specs[signature], given, len(given[Request.HISTORY])))


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
        if signature not in self.specs:
            raise ValueError(f"the servable has no signature {signature!r}; it has {sorted(self.specs)}")
        spec = self.specs[signature]
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


def decode(ids: np.ndarray) -> np.ndarray:
    """Object array of bytes -> object array of str."""
    return np.array([item.decode() for item in ids.ravel()], object).reshape(ids.shape)
