"""Small logs and configs for the jobs' tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.config import Config
from contracts.layout import Workdir

HEADER = "user_id,item_id,timestamp"


def write_log(path: Path, lines: list[str] | bytes, header: str = HEADER) -> Path:
    """A CSV file with a header and these lines."""
    body = lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(header.encode() + b"\n" + body)
    return path


def make_config(events: Path | str, **sections: Any) -> Config:
    """A config for `events` with few buckets; `sections` are merged over it."""
    tree: dict[str, Any] = {
        "data": {"events": str(events), "num_buckets": 3},
        "groups": {"num_groups": 2, "embedding_dim": 8},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return Config.model_validate(tree)


def read_events(workdir: Workdir) -> list[dict[str, Any]]:
    """All validated events as dicts, in the buckets' order."""
    rows = []
    for path in sorted(workdir.events.path.glob("*.parquet")):
        rows += pq.read_table(path).to_pylist()
    return rows


def read_groups(workdir: Workdir) -> dict[str, int]:
    """item_id -> group_id, in the catalogue's order."""
    table = pq.read_table(workdir.item_groups.groups)
    return dict(zip(table["item_id"].to_pylist(), table["group_id"].to_pylist(), strict=True))


def dead_letters(workdir: Workdir) -> list[dict[str, Any]]:
    paths = sorted(workdir.events.path.glob("dead_letters-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def community_log(path: Path, num_items: int = 40, seed: int = 0) -> Path:
    """A log in which even users like the first half of the items and odd ones the second."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(120), 15)
    half = num_items // 2
    items = (half * rng.random(len(users)) ** 2).astype(np.int64) + half * (users % 2)
    table = pa.table(
        {
            "user_id": pa.array(users).cast(pa.string()),
            "item_id": pa.array(items).cast(pa.string()),
            "timestamp": pa.array(1_700_000_000 + rng.integers(0, 10**6, len(users))),
        }
    )
    pq.write_table(table, path)
    return path
