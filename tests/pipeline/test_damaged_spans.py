"""What is kept of a span and is damaged is made again from the log."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from beam_jobs.grouping.merge_cooccurrences import SPANS
from beam_jobs.grouping.span_cooccurrences import identity_of
from contracts import artifact
from contracts.config_io import load_config
from contracts.layout import Events, Workdir
from contracts.store_layout import RetrainRun, SpanParts, Store
from pipeline.retraining.fit_spans import fit_spans
from pipeline.retraining.retrain_stages import forget_outdated_merges
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


def test_an_unfinished_run_merges_again_what_counts_that_are_gone_went_into(tmp_path: Path) -> None:
    """Only the merge counts them, so without it every call would fail."""
    run = RetrainRun(Workdir(tmp_path / "run"))
    parts = [SpanParts(tmp_path / "spans" / str(day)) for day in range(3)]
    for part in parts:
        with artifact.writing(part.cooccurrences, SpanParts.COOCCURRENCES_KIND, "f"):
            pass
    merges = {run.workdir.events.path: parts[:2], run.caught_up.events.path: parts}
    for path, of_merge in merges.items():
        with artifact.writing(path, Events.KIND, "f") as writer:
            folders = [part.cooccurrences for part in of_merge]
            writer.details[SPANS] = [
                {"cooccurrences": str(folder), "start": 0, "identity": identity_of(folder)} for folder in folders
            ]
    forget_outdated_merges(run.workdir)
    assert all(artifact.find_manifest(path) for path in merges)
    artifact.forget(parts[2].cooccurrences)
    forget_outdated_merges(run.workdir)
    assert [artifact.find_manifest(path) is None for path in merges] == [False, True]
    with artifact.writing(parts[0].cooccurrences, SpanParts.COOCCURRENCES_KIND, "counted anew"):
        pass
    forget_outdated_merges(run.workdir)
    assert [artifact.find_manifest(path) is None for path in merges] == [True, True]
