"""Names that cross a room's border: record fields, table columns, signatures. Defined once, here."""

from enum import IntEnum
from typing import Literal, get_args

PADDING_INDEX = 0
"""`item_index` and `user_index` 0: padding, or an id outside the vocabulary. Known ids are 1..N."""


class Split(IntEnum):
    """The part of the log that an event belongs to."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


class EventColumn:
    """Columns of the validated events (Parquet), one row per event."""

    USER_ID = "user_id"
    ITEM_ID = "item_id"
    TIMESTAMP = "timestamp"  # int64, microseconds since 1970-01-01 UTC
    FEEDBACK_LEVEL = "feedback_level"  # int8, index into FeedbackConfig.levels
    REQUEST = "request"  # int32, code of the values of data.request_features, see `code_sizes`; 0 = none
    SPLIT = "split"  # int8, Split


class ItemColumn:
    """Columns of the item tables, row r holding `item_index` r + 1."""

    ITEM_ID = "item_id"
    TRAIN_COUNT = "train_count"  # int64, target-level events of the training split
    TOTAL_COUNT = "total_count"  # int64, all events
    SAMPLING_PROBABILITY = "sampling_probability"  # float64, sums to 1 over the catalogue
    FIRST_SEEN = "first_seen"  # int64, microseconds; null if never seen
    LAST_SEEN = "last_seen"
    GROUP_ID = "group_id"  # int32, 0..K-1
    SETTLED = "settled"  # bool, in groups only: whether co-occurrence, not side features or a hash, placed the item
    CATEGORY = "category"  # string, for groups by category only: the item's category; null without one


class UserColumn:
    """Columns of the user tables, row r holding `user_index` r + 1."""

    USER_ID = "user_id"
    TRAIN_COUNT = "train_count"


class EmbeddingColumn:
    """Columns (Parquet) or arrays (npz) of a file of item embeddings, see `windows.mined_from`."""

    ITEM_ID = "item_id"  # [n] text
    EMBEDDING = "embedding"  # [n, dim] float


class WindowField:
    """Fields of a training record: one window of a user's chronological events.

    A window holds n events; of the last n - num_context, those not in `non_targets` are the T training targets, each
    predicted from the events before it in the window. Negatives are flat, target-major: target t's in-group negatives
    are `in_group_negatives[t * N:(t + 1) * N]`. A negative is never one of the user's training items; if
    nothing else is left, `PADDING_INDEX` takes its place. Kinds of negatives that are not configured have no field.
    """

    USER_INDEX = "user_index"  # int64 [1]
    ITEM_INDEX = "item_index"  # int64 [n]
    EARLIER_ITEMS = "earlier_items"  # int64 [E], the last items that the user took before the window, each once
    GROUP_ID = "group_id"  # int64 [n]
    FEEDBACK_LEVEL = "feedback_level"  # int64 [n]; with windows.repeats=drop, the highest that the user gives the item
    TIMESTAMP = "timestamp"  # int64 [n], seconds since 1970-01-01 UTC
    REQUEST = "request"  # int64 [n], EventColumn.REQUEST; no field without data.request_features
    NUM_CONTEXT = "num_context"  # int64 [1], >= 1
    NON_TARGETS = "non_targets"  # int64 [R], places of events below the target level, and of kept repeats: events of an
    # item that the user already had, at any level
    IN_GROUP_NEGATIVES = "in_group_negatives"  # int64 [T * N]
    EASY_NEGATIVES = "easy_negatives"  # int64 [T * M]
    EXPOSED_NEGATIVES = "exposed_negatives"  # int64 [T * windows.exposed_negatives]
    MINED_NEGATIVES = "mined_negatives"  # int64 [T * windows.mined_negatives]


ITEMS_PER_USER = "items_per_user"
"""Detail of the windows' manifest: the average number of distinct items that a user in training has taken, counting for
each user no more than are trained on."""


class EvaluationField:
    """Fields of a validation or test record: one user."""

    USER_INDEX = "user_index"  # int64 [1]
    HISTORY_ITEM_INDEX = "history_item_index"  # int64 [<= windows.length], oldest first, by windows.repeats
    HISTORY_CONTEXT = "history_context"  # int64 [C], places in the history of events below the target level
    SEEN_ITEM_INDEX = "seen_item_index"  # int64 [S], every target-level item before the targets, once, oldest first
    TARGET_ITEM_INDEX = "target_item_index"  # int64 [T >= 1], none of them in SEEN_ITEM_INDEX
    REQUEST = "request"  # int64 [1], EventColumn.REQUEST of the first target


class Signature:
    """Signatures of the servable."""

    SERVING_DEFAULT = "serving_default"
    QUERY_EMBEDDING = "query_embedding"
    CANDIDATE_EMBEDDING = "candidate_embedding"


SIGNATURE_DEF = "signature_def"
"""The only field of a model's metadata that TF Serving has."""

MOST_CONTEXT = 2
"""Most events below the target level that a history holds between two positives, and after the last: the latest."""

ScoredMerge = Literal["quota", "score"]
"""Merges whose lists are in order of score: those that a config can name and that evaluation measures."""
Merge = Literal[ScoredMerge, "round_robin"]
MERGES: tuple[Merge, ...] = get_args(Merge)
"""Ways to merge the groups' results into one list, see `serving.merge`; a merge's code in a graph is its index here."""


class Request:
    """Inputs of the servable's signatures (user and request features come under their own names).

    Every input but ITEM_IDS may be left out. Each row means the same whatever else is in the batch. B is the
    batch size, and an input with one row applies to the whole batch.
    """

    HISTORY = "history"  # string [B, L], oldest first, "" = padding
    HISTORY_IS_CONTEXT = "history_is_context"  # bool [B, L], true for events below the target level, whose items may
    # be returned; only for models that read such events (data.feedback.history_level)
    USER_ID = "user_id"  # string [B], "" = unknown
    NUM_CANDIDATES = "num_candidates"  # int32 [B], M; 0 = the config's
    ALPHA = "alpha"  # float32 [B], exponent of p(group | user); NaN = the config's
    MERGE = "merge"  # string [B], one of MERGES; "" = the config's
    GROUP_BOOST = "group_boost"  # float32 [B, K], multiplies a group's share, and its log is added to the scores of the
    # group's items, see `serving.merge`; 0 excludes the group, NaN = 1
    GROUPS = "groups"  # int32 [B, G], the only groups that may answer; -1 = padding, none = all
    MAX_GROUPS = "max_groups"  # int32 [B], number of groups to search, the likeliest ones; 0 = all
    EXCLUDE_ITEM_IDS = "exclude_item_ids"  # string [B, E], not to be returned, besides the history; "" = padding
    NUM_EXPLORATION = "num_exploration"  # int32 [B], places for cold items, the best first; < 0: the model's share
    ITEM_IDS = "item_ids"  # string [N], for candidate_embedding


class Response:
    """Outputs of the servable's signatures.

    M, the width of serving_default's outputs, is the batch's largest `num_candidates`, but at most
    `serving.max_candidates` and the size of the catalogue: a request cannot make the server reserve
    more than it could answer.
    """

    ITEM_IDS = "item_ids"  # string [B, M], "" = absent
    SCORES = "scores"  # float32 [B, M], -inf = absent
    GROUP_IDS = "group_ids"  # int32 [B, M] (or [N]), -1 = absent
    EMBEDDINGS = "embeddings"  # float32 [B, K, D] (or [N, D])
    INTENT = "intent"  # float32 [B, K], p(group | user)


REQUEST_INPUTS = frozenset(value for name, value in vars(Request).items() if not name.startswith("_"))
"""The names in `Request`."""

RESERVED_FEATURE_NAMES = frozenset(
    {
        *REQUEST_INPUTS,
        EventColumn.ITEM_ID,
        EventColumn.REQUEST,
        ItemColumn.GROUP_ID,
        WindowField.USER_INDEX,
        WindowField.ITEM_INDEX,
        "histories",
        "timeout",
    }
)
"""Feature names that would collide with an input of the servable, an argument of its client or a column of a table."""
