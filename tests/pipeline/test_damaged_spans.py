"""What is kept of a span and is damaged is made again from the log."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from contracts import artifact
from contracts.config_io import load_config
from contracts.store_layout import SpanParts, Store
from pipeline.retraining.fit_spans import fit_spans
from pipeline.retraining.spans import find_spans
from tests.pipeline.test_spans import write_day


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bucket(parts: SpanParts) -> Path:
    return parts.events.bucket(1, 2)


def items(parts: SpanParts) -> Path:
    return parts.items


def of_cooccurrences(parts: SpanParts) -> Path:
    return parts.cooccurrences / "pairs.parquet"


@pytest.mark.parametrize("damage", [cut, Path.unlink])
@pytest.mark.parametrize("file_of", [bucket, items, of_cooccurrences])
def test_a_file_that_is_gone_or_cut_off_is_made_again(
    file_of: Callable[[SpanParts], Path],
    damage: Callable[[Path], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else every call fails until that span has left the window."""
    for day in range(2):
        write_day(tmp_path / "log", day)
    settings = [f"data.events='{tmp_path}/log/{{date}}/*.csv'", "data.num_buckets=2", "retrain.span.max_user_share=1"]
    config = load_config(None, settings)
    store, window = Store(tmp_path / "store"), find_spans(config)
    before = fit_spans(config, store, window)
    parts = store.span(window[0].key)
    with artifact.writing(parts.cooccurrences, SpanParts.COOCCURRENCES_KIND, "f") as writer:
        shutil.copyfile(parts.items, writer.path / "pairs.parquet")
        writer.files.append("pairs.parquet")
    path = file_of(parts)
    held = pq.read_table(path)
    assert fit_spans(config, store, window) == before
    assert "is rebuilt from the log" not in caplog.text
    damage(path)
    assert fit_spans(config, store, window) == before
    assert [message for message in caplog.messages if str(path) in message and "is rebuilt from the log" in message]
    if file_of is of_cooccurrences:  # the merge counts them, once the holdout is known
        assert artifact.find_manifest(parts.cooccurrences) is None
    else:
        assert pq.read_table(path).equals(held)
