"""The layout of a workdir. Rooms exchange these paths, never strings of their own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from contracts.names import Split


@dataclass(frozen=True)
class Events:
    """Validated events: one Parquet file per bucket of users (`EventColumn`), sorted by user and time."""

    path: Path
    KIND = "events"

    def bucket(self, index: int, num_buckets: int) -> Path:
        return self.path / f"events-{index:05d}-of-{num_buckets:05d}.parquet"

    def dead_letters(self, source: int) -> Path:
        """JSON lines {"source", "row", "reason", "value"} of one of the manifest's `sources`; none if all are sound."""
        return self.path / f"dead_letters-{source:05d}.jsonl"

    @property
    def schema(self) -> Path:
        """Text form of TFX's Schema: inferred, or that of `data.previous`."""
        return self.path / "schema.pbtxt"

    @property
    def statistics(self) -> Path:
        """Text form of TFX's DatasetFeatureStatisticsList."""
        return self.path / "statistics.pbtxt"


@dataclass(frozen=True)
class ItemStatistics:
    """The catalogue and its counts. The order of the rows defines `item_index` and `user_index`."""

    path: Path
    KIND = "item_statistics"

    @property
    def items(self) -> Path:
        """Parquet, `ItemColumn` without group_id; row r is item_index r + 1."""
        return self.path / "items.parquet"

    @property
    def users(self) -> Path:
        """Parquet, `UserColumn`; row r is user_index r + 1."""
        return self.path / "users.parquet"

    @property
    def item_vocabulary(self) -> Path:
        """Text, one item id per line, in the order of `item_index`."""
        return self.path / "item_vocabulary.txt"

    @property
    def user_vocabulary(self) -> Path:
        return self.path / "user_vocabulary.txt"


@dataclass(frozen=True)
class ItemGroups:
    """item -> group."""

    path: Path
    KIND = "item_groups"

    @property
    def groups(self) -> Path:
        """Parquet: item_id, group_id, settled and, for groups by category, category; row r is item_index r + 1."""
        return self.path / "groups.parquet"

    @property
    def embeddings(self) -> Path:
        """npy, float32 [num_items, embedding_dim], row r is item_index r + 1."""
        return self.path / "embeddings.npy"

    @property
    def centroids(self) -> Path:
        """npy, float32 [num_groups, embedding_dim]."""
        return self.path / "centroids.npy"

    @property
    def report(self) -> Path:
        """JSON list, one object per group: group_id, size, label, top_items and, with `groups.previous`, kept."""
        return self.path / "report.json"


SAVED_MODEL = "saved_model.pb"
"""The file by which TensorFlow and its servers know a saved model."""
ASSETS_EXTRA = Path("assets.extra")  # below a saved model: files that TensorFlow leaves alone, for servers and for us
TRANSFORM_FN = "transform_fn"
"""The saved model in a TFTransformOutput directory."""


def vocabulary_file(feature: str) -> str:
    """Name of a feature's vocabulary, one value per line. Characters that TFT would change or confuse are escaped."""
    return re.sub(r"[^\w-]|-(?=-)", lambda other: f"_x{ord(other[0]):x}_", feature) + "_vocabulary"


@dataclass(frozen=True)
class Transform:
    """TFT transform graphs of the user and the item table, and both tables transformed."""

    path: Path
    KIND = "transform"

    @property
    def item_graph(self) -> Path:
        """TFTransformOutput directory; maps item_id and item features."""
        return self.path / "items"

    @property
    def user_graph(self) -> Path:
        """TFTransformOutput directory; maps user_id and user features."""
        return self.path / "users"

    @property
    def item_vocabularies(self) -> Path:
        """Directory of the item features' vocabularies, see `vocabulary_file`; row r is index r + 1."""
        return self.item_graph / TRANSFORM_FN / "assets"

    @property
    def user_vocabularies(self) -> Path:
        return self.user_graph / TRANSFORM_FN / "assets"

    @property
    def items(self) -> Path:
        """Parquet: item_index and the transformed features; row r is item_index r + 1."""
        return self.path / "items.parquet"

    @property
    def users(self) -> Path:
        return self.path / "users.parquet"

    @property
    def feature_spec(self) -> Path:
        """JSON: {"user": [...], "item": [...]}, each {"name", "kind", "vocabulary_size", "width"}.

        Kinds are categorical, tokens, numeric and vector. Indices run from 0 (missing or unknown) to
        vocabulary_size, which is 0 for numbers. A row holds `width` values.
        """
        return self.path / "feature_spec.json"


@dataclass(frozen=True)
class Windows:
    """TFRecords of `WindowField` (train) and `EvaluationField` (validation, test), gzip."""

    path: Path
    KIND = "windows"

    @staticmethod
    def prefix(split: Split, draw: int) -> str:
        """Prefix of the names of a split's shards; for the training split, of those of one draw of negatives."""
        return f"{split.name.lower()}-{draw}-"

    def shard(self, split: Split, index: int, num_shards: int, draw: int = 0) -> Path:
        return self.path / f"{self.prefix(split, draw)}{index:05d}-of-{num_shards:05d}.tfrecord.gz"

    @property
    def draw_shares(self) -> Path:
        """npy, float64 [2, num_items]: an item's expected share of its group's in-group draws, and of the easy ones;
        element r of each is item_index r + 1."""
        return self.path / "draw_shares.npy"


@dataclass(frozen=True)
class Model:
    """A trained model: weights, what is needed to build it again, and its training history."""

    path: Path
    KIND = "model"

    @property
    def weights(self) -> Path:
        return self.path / "model.weights.h5"

    @property
    def history(self) -> Path:
        """JSON list, one object per epoch."""
        return self.path / "history.json"

    @property
    def config(self) -> Path:
        """JSON: the config that the model was trained with, defaults included."""
        return self.path / "config.json"

    @property
    def trained_items(self) -> Path:
        """npy, bool [num_items + 1]: the items that a model carried over by `dnc index` was trained on."""
        return self.path / "trained_items.npy"


MAIN_MODEL = "dnc"
"""Name of the group-conditioned model among a run's models; the others are baselines, each under its own name. The
metrics of its servable are named `SERVED_MODEL`."""
SERVED_MODEL = "dnc_servable"


@dataclass(frozen=True)
class Workdir:
    """One run's directory."""

    path: Path
    EVALUATION_KIND = "evaluation"
    EXPORT_KIND = "export"
    SERVABLE_KIND = "servable"
    VALIDATION_KIND = "validation"

    @property
    def config(self) -> Path:
        return self.path / "run_config.yaml"  # `-w .` may be where somebody's config.yaml is

    @property
    def lock(self) -> Path:
        """Held by the process that writes below the workdir."""
        return self.path / ".lock"

    @property
    def events(self) -> Events:
        return Events(self.path / "events")

    @property
    def item_statistics(self) -> ItemStatistics:
        return ItemStatistics(self.path / "item_statistics")

    @property
    def item_groups(self) -> ItemGroups:
        return ItemGroups(self.path / "item_groups")

    @property
    def transform(self) -> Transform:
        return Transform(self.path / "transform")

    @property
    def windows(self) -> Windows:
        return Windows(self.path / "windows")

    def model(self, name: str) -> Model:
        return Model(self.path / "models" / name)

    def checkpoints(self, name: str) -> Path:
        """Training state of an unfinished model, from which training resumes; removed afterwards."""
        return self.path / "checkpoints" / name

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def metrics(self) -> Path:
        """JSON: {model: {metric: {"value", "low", "high"}}}."""
        return self.evaluation / "metrics.json"

    @property
    def breakdowns(self) -> Path:
        """JSON: {model: {"group" or "user_activity": {label: {"value", "count"}}}}, of recall at 100."""
        return self.evaluation / "breakdowns.json"

    @property
    def plot(self) -> Path:
        """PNG: recall and coverage of every model."""
        return self.path / "metrics.png"

    @property
    def export(self) -> Path:
        """Artifact that names the newest servable: details {"model_name", "version"}."""
        return self.path / "export"

    def servable(self, model_name: str) -> Path:
        """Base path of a TF Serving model: holds one directory per version."""
        return self.path / "servable" / model_name

    @property
    def validation(self) -> Path:
        return self.path / "validation"

    @property
    def validation_report(self) -> Path:
        """JSON: what `serving.validation.validate_process` found."""
        return self.validation / "report.json"

    @property
    def failed_validation(self) -> Path:
        """JSON like `validation_report`, for a servable that is not fit to serve."""
        return self.path / "validation-failed.json"

    @property
    def served_metrics(self) -> Path:
        """JSON like `metrics`, for `SERVED_MODEL`."""
        return self.validation / "metrics.json"
