"""Settings of the servable and of the server."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from contracts.config.section import Section
from contracts.names import ScoredMerge
from contracts.storage import staging_of

NUM_CANDIDATES = 100
"""The default length of a list."""

MAX_BATCH_SIZE = 64
"""Most rows in a batch: the default of `dnc serve`, and that of TF Serving's config, `serving/deploy/batching.config`.
A servable's warm-up requests fit it."""

MOST_OF_GRPC = 2**31 - 1
"""The largest number that gRPC's settings hold."""


class ServingConfig(Section):
    """The servable."""

    model_name: str = Field(
        "dnc",
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$",
        description="name that clients ask for: <model_name> in TF Serving's APIs",
    )
    indexes: tuple[Literal["scann", "exact"], ...] = Field(
        ("scann", "exact"),
        min_length=1,
        description="servables to export: the first as <model_name>, the others as <model_name>_<index>; "
        "scann needs a server with ScaNN's ops, exact runs on any",
    )
    merge: ScoredMerge = Field("score", description="how the groups' results are merged into one list")
    alpha: float = Field(
        1.0,
        ge=0,
        description="default exponent of p(group | user) in the shares of merge quota: 0 gives equal shares, a large "
        "value gives everything to the likeliest group",
    )
    num_candidates: int = Field(
        NUM_CANDIDATES,
        ge=1,
        description="default M, the length of a list; index searches are tuned for lists up to this length",
    )
    max_candidates: int = Field(
        10_000, ge=1, description="largest M; a request for more gets this many, because it would widen its whole batch"
    )
    exploration_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of a list that goes to items without training events; null: their share of the validation "
        "targets if validation users find more with it, and more than by chance; else 0",
    )
    recall_target: float = Field(
        0.95,
        gt=0,
        le=1,
        description="minimum recall of a group's index against exact search; a higher target makes searches slower",
    )
    brute_force_max_items: int = Field(
        1_000, ge=1, description="groups up to this size are searched exactly, larger ones by a tree with hashes"
    )
    int8: bool = Field(
        True,
        description="groups with hashes score results by 8-bit vectors if these reach recall_target: less than "
        "half the memory; scores mostly within .3% of the exact ones, at most some 3% off",
    )
    warmup_requests: int = Field(
        16,
        ge=1,
        le=1000,
        description="number of requests stored with the model; TF Serving answers them before it serves a version",
    )
    validation_requests: int = Field(
        256, ge=1, description="number of test users' requests that `dnc run` replays and compares with brute force"
    )

    def servable_names(self) -> dict[str, str]:
        """Index -> name of its servable, in the order of `indexes`."""
        return {
            index: self.model_name if place == 0 else f"{self.model_name}_{index}"
            for place, index in enumerate(self.indexes)
        }

    @field_validator("model_name")
    @classmethod
    def _is_no_staging_name(cls, model_name: str) -> str:
        if staging_of(model_name) is not None:
            raise ValueError(
                f"serving.model_name={model_name} looks like the name of a half-written version, and those are "
                "deleted: choose another name"
            )
        return model_name

    @field_validator("indexes")
    @classmethod
    def _indexes_differ(cls, indexes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(indexes)) != len(indexes):
            raise ValueError(f"serving.indexes must be distinct; got {list(indexes)}")
        return indexes


class ServerConfig(Section):
    """`dnc serve`, a server with TF Serving's APIs. Batching settings have TF Serving's names."""

    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on; the default admits only this machine, 0.0.0.0 any"
    )
    grpc_port: int = Field(8500, ge=0, le=65_535, description="port of the gRPC API; 0: any free port")
    rest_port: int = Field(8501, ge=0, le=65_535, description="port of the REST API; 0: any free port")
    max_batch_size: int = Field(MAX_BATCH_SIZE, ge=1, description="most rows in a batch or a request")
    max_batch_elements: int = Field(
        2**20, ge=1, description="most values of an input in a batch, padding included, or in a request"
    )
    batch_timeout_micros: int = Field(
        0,
        ge=0,
        description="how long a batch waits for more requests; 0: it takes what queued up during the last batch",
    )
    max_enqueued_batches: int = Field(
        128,
        ge=1,
        description="requests beyond this many full batches are refused as overload; the default leaves room for those "
        "that arrive while a new version loads",
    )
    num_batch_threads: int = Field(1, ge=1, le=1024, description="number of batches that may run at the same time")
    session_threads: int = Field(0, ge=0, le=1024, description="TensorFlow threads per batch; 0: one per core")
    max_request_bytes: int = Field(
        16 * 2**20, ge=1024, le=MOST_OF_GRPC, description="larger requests are refused, over gRPC and REST"
    )
    max_connections: int = Field(
        2000,
        ge=1,
        le=MOST_OF_GRPC,
        description="most open connections to each port; further ones are closed, those to REST with status 503",
    )
    request_timeout_seconds: float = Field(30.0, gt=0, description="deadline for requests that set no earlier one")
    poll_seconds: float = Field(1.0, gt=0, description="pause between checks of the base paths for new versions")
