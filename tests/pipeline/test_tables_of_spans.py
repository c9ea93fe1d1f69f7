"""Feature tables on the day that all spans are ingested anew: each is read with today's."""

from pathlib import Path

import pytest

from contracts import artifact
from contracts.store_layout import Store
from pipeline.retraining.span_profile import profile_span, require_tables_like_the_last
from pipeline.retraining.spans import find_spans
from tests.pipeline.test_spans import NOON, config_of, write_day

ITEMS = "{path: %s, id: item_id, features: [{name: topic, kind: categorical}]}"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (30, None),
        (20, r"item_features\.topic: the share of 't0' went from 66\.7% to 100\.0%"),
        (5, "item_features: 5, after 30"),
    ],
)
def test_new_code_does_not_let_a_broken_table_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, problem: str | None
) -> None:
    """The span before was compared with had been read with the same table a moment ago."""
    for day in range(3):
        write_day(tmp_path / "log", day)
    table, store = tmp_path / "items.csv", Store(tmp_path / "store")
    lines = [f"i{item},t{item // 20}" for item in range(30)]
    table.write_text("\n".join(["item_id,topic", *lines]))
    config = config_of(tmp_path / "log", f"data.item_features={ITEMS % table}")
    window = find_spans(config, now=NOON)
    require_tables_like_the_last(config, window, store)  # of a store that has ingested nothing
    for span in window[:2]:
        profile_span(config, span, store.span(span.key))
    table.write_text("\n".join(["item_id,topic", *lines[:rows]]))
    require_tables_like_the_last(config, window, store)  # the newest span is compared when it is ingested
    monkeypatch.setattr(artifact, "code_of", lambda *rooms: "another")
    if problem is None:
        require_tables_like_the_last(config, window, store)
    else:
        with pytest.raises(ValueError, match=rf"differ from data\.previous=\S*/2024-01-02/events: .*{problem}"):
            require_tables_like_the_last(config, window, store)
