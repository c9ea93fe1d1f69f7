"""A small drifting log and a config for it: a retrain takes seconds, and a gate that so little data can pass."""

from pathlib import Path

from contracts.config_io import dump_config, load_config
from pipeline.datasets.drifting import DriftingLog, generate

DAYS = [f"2024-01-{day:02d}" for day in range(1, 7)]


def make_log(folder: Path) -> Path:
    """Writes the log below `folder` and returns the config's path."""
    generate(DriftingLog(num_days=len(DAYS), num_users=500, num_items=120, num_topics=4), folder / "log")
    config = load_config(
        Path("configs/retrain.yaml"),
        [
            f"data.events='{folder}/log/{{date}}/events.parquet'",
            f"data.item_features.path={folder}/log/items.csv",
            "data.num_buckets=2",
            "groups.num_groups=4",
            "groups.embedding_dim=16",
            "model.embedding_dim=16",
            "training.epochs=4",
            "training.monitor_k=20",
            "evaluation.ks=[20]",
            "evaluation.bootstrap_samples=0",
            "serving.validation_requests=16",
            "retrain.window_spans=3",
            "retrain.span.max_user_share=0.2",
            "retrain.epochs=2",
            "retrain.gate.k=20",
            "retrain.gate.max_drop=0.5",
            "retrain.gate.max_group_drop=0.9",
            "retrain.gate.max_latency_ratio=50",
            "retrain.gate.max_latency_ms=5000",
            "retrain.gate.min_users=10",
        ],
    )
    path = folder / "retrain.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    return path
