"""Spans: the event log in pieces by date or by number, found through `{date}` or `{span}` in data.events."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone

from contracts import artifact
from contracts.config import Config
from contracts.patterns import Identity, identities
from contracts.storage import as_path, is_remote

log = logging.getLogger(__name__)

DATE, NUMBER = "{date}", "{span}"
_FORMS = {DATE: r"\d{4}-\d{2}-\d{2}|\d{8}", NUMBER: r"\d+"}
_MEANINGS = {DATE: "a date, 2024-05-31 or 20240531", NUMBER: "a number"}


@dataclass(frozen=True)
class Span:
    """One piece of the log.

    Attributes:
        order: what spans are sorted by: days since 0001-01-01, or the number.
        key: `2024-05-31`, or the number as text; names the span's directory.
        files: its files by name, sorted, with their identities when they were found: rewriting one during a run changes
            the next run's spans, not what this run says it has read.
    """

    order: int
    key: str
    files: dict[str, Identity]

    @property
    def day(self) -> date | None:
        """The date of a dated span."""
        return date.fromisoformat(self.key) if "-" in self.key else None

    def identity(self) -> list[object]:
        """What changes when a file of the span is added or written anew, e.g. by late data."""
        return [self.key, *self.files_json()]

    @property
    def digest(self) -> str:
        """Digest of the identity, by which a record names the span's files."""
        return artifact.fingerprint(self.identity())

    def files_json(self) -> list[list[object]]:
        """The identities of its files, as the store keeps them."""
        return [list(identity) for identity in self.files.values()]


def find_spans(config: Config, until: str | None = None, now: datetime | None = None) -> list[Span]:
    """The complete spans of the log, oldest first.

    Args:
        config: `data.events` with one of `{date}` (2024-05-31 or 20240531) and `{span}` (a number).
        until: key of the newest span to consider, for a backfill; default: the newest.
        now: for tests; decides whether a date is over.

    Raises:
        ValueError: a pattern holds no placeholder, or they hold different ones; or `until` is not of their kind.
    """
    placeholder = _placeholder(config)
    # Before the files: if a span is completed in between, those that were listed may not be all.
    complete = _marked(config, placeholder)
    today = (now or datetime.now(timezone.utc)).date()
    files: dict[int, dict[str, Identity]] = defaultdict(dict)
    of_feed: dict[str, set[int]] = {}
    for pattern in config.data.events:
        matches = _matches(pattern, placeholder)
        of_feed[pattern] = {order for _, _, order in matches}
        for path, identity, order in matches:
            files[order][path] = identity
    spans = [Span(order, _key(order, placeholder), dict(sorted(files[order].items()))) for order in sorted(files)]
    last = _order(until, placeholder) if until is not None else None
    found = [
        span
        for span in spans
        if (last is None or span.order <= last)
        and (span.order in complete if complete is not None else span.day is None or span.day < today)
    ]
    if complete is None:
        _warn_of_late_feeds(of_feed, found)
    return found


def _warn_of_late_feeds(of_feed: Mapping[str, set[int]], spans: Sequence[Span]) -> None:
    """Warns if the newest span has no files of one of several patterns, but the span before it does.

    `of_feed`: pattern -> orders of the spans that have files of it.
    """
    if len(spans) < 2:
        return
    before, newest = spans[-2:]
    late = [feed for feed, orders in of_feed.items() if before.order in orders and newest.order not in orders]
    if late:
        log.warning(
            "span %s has no file for data.events=%s, but span %s does: the first is used without it, and read again "
            "once it arrives. To wait for all feeds, set retrain.complete_marker to a file that exists once all have "
            "arrived",
            newest.key, ", ".join(late), before.key,
        )  # fmt: skip


def date_form(config: Config) -> str:
    """The dates that `{date}` finds, for messages; "" if spans have numbers."""
    if _placeholder(config) == NUMBER:
        return ""
    return f"; {DATE} stands for {_MEANINGS[DATE]}, not for 2024/05/31 or year=2024/month=05/day=31"


def require_spans(config: Config, until: str | None) -> None:
    """Checks the arguments of `find_spans` without looking at the files.

    Raises:
        ValueError: as `find_spans`.
    """
    placeholder = _placeholder(config)
    _require_marker(config, placeholder)
    if until is not None:
        _order(until, placeholder)


def _placeholder(config: Config) -> str:
    found = {p for pattern in config.data.events for p in (DATE, NUMBER) if p in pattern}
    bare = [pattern for pattern in config.data.events if not any(p in pattern for p in (DATE, NUMBER))]
    if len(found) != 1 or bare:
        raise ValueError(
            f"data.events={list(config.data.events)} must name spans: put {DATE} (2024-05-31 or 20240531) or {NUMBER} "
            "(a number) into every pattern, the same one in all, e.g. data.events=log/{date}/*.parquet"
        )
    return found.pop()


def _marked(config: Config, placeholder: str) -> set[int] | None:
    marker = config.retrain.complete_marker
    if marker is None:
        return None
    _require_marker(config, placeholder)
    return {order for _, _, order in _matches(marker, placeholder)}


def _require_marker(config: Config, placeholder: str) -> None:
    marker = config.retrain.complete_marker
    if marker is not None and placeholder not in marker:
        raise ValueError(f"retrain.complete_marker={marker!r} must contain {placeholder}, as data.events does")


def _matches(pattern: str, placeholder: str) -> list[tuple[str, Identity, int]]:
    """(path, identity, order) of each file that matches a pattern and names a span."""
    if not is_remote(as_path(pattern)):
        pattern = re.sub("//+", "/", pattern)  # as a glob names what it finds
    order_of = _order_finder(pattern, placeholder)
    found, nameless = [], []
    for path, identity in identities(pattern.replace(placeholder, "[0-9]*")).items():
        order = order_of(path)
        if order is None:
            nameless.append(path)
        else:
            found.append((path, identity, order))
    if nameless:
        log.warning(
            "ignored files that match %s but name no span: %s, e.g. %s. Rename them, so that %s stands for %s, or "
            "choose a pattern that does not match them",
            pattern, f"{len(nameless):,}", nameless[0], placeholder, _MEANINGS[placeholder],
        )  # fmt: skip
    return found


def _order_finder(pattern: str, placeholder: str) -> Callable[[str], int | None]:
    """Returns path -> order of its span: the first date or number, if several places fit the pattern."""
    head, *rest = pattern.split(placeholder)
    # A wildcard would take the first digits of 100 and leave 0.
    before = re.compile(_regex(head) + (r"(?<!\d)" if head.endswith("*") else ""))
    form = f"(?P<span>{_FORMS[placeholder]})"
    # The first occurrence is captured; further ones must repeat it.
    behind = re.compile(form + "(?P=span)".join(_regex(part) for part in rest))

    def order_of(path: str) -> int | None:
        for start in (place.start() for place in re.finditer(f"(?={form})", path)):
            match = behind.fullmatch(path, start)
            if match and before.fullmatch(path, 0, start):
                order = _order_of_text(match["span"], placeholder)
                if order is not None:
                    return order
        return None

    return order_of


def _regex(text: str) -> str:
    """A regular expression that locates the parts of a path that a glob has matched; it does not check the match."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", text)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return "".join(special.get(piece, "[^/]") if place % 2 else re.escape(piece) for place, piece in enumerate(pieces))


def _order(key: str, placeholder: str) -> int:
    order = _order_of_text(key, placeholder)
    if order is None:
        form = "a date, e.g. 2024-05-31" if placeholder == DATE else "a number"
        raise ValueError(f"span {key!r} is not {form}, but data.events names spans by {placeholder}")
    return order


def _order_of_text(text: str, placeholder: str) -> int | None:
    if not re.fullmatch(_FORMS[placeholder], text):
        return None
    try:
        if placeholder == NUMBER:
            return int(text)
        compact = text.replace("-", "")
        return date(int(compact[:4]), int(compact[4:6]), int(compact[6:8])).toordinal()
    except ValueError:
        return None


def _key(order: int, placeholder: str) -> str:
    return date.fromordinal(order).isoformat() if placeholder == DATE else str(order)
