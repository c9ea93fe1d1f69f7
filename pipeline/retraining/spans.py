"""Spans: the event log in pieces by date or by number, found through placeholders in data.events.

`{date}` is a whole date and `{span}` a number; `{YYYY}`, `{MM}` and `{DD}` are a date in several places, as in
year=2024/month=05/day=31.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone

from contracts import artifact
from contracts.config import Config
from contracts.patterns import DATE, DATE_PARTS, NUMBER, PLACEHOLDERS, Identity, identities
from contracts.storage import as_path, is_remote

log = logging.getLogger(__name__)

_FORMS = {
    DATE: r"\d{4}-\d{2}-\d{2}|\d{8}",
    NUMBER: r"\d+",
    **dict(zip(DATE_PARTS, (r"\d{4}", r"\d{1,2}", r"\d{1,2}"), strict=True)),
}
_WAYS = {
    DATE: f"{DATE} (2024-05-31 or 20240531) or {', '.join(DATE_PARTS)} (2024/05/31, month=5/day=31)",
    NUMBER: f"{NUMBER} (a number)",
}


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
        config: `data.events` with dates or numbers, see the module.
        until: key of the newest span to consider, for a backfill; default: the newest.
        now: for tests; decides whether a date is over.

    Raises:
        ValueError: a pattern holds no placeholder, or they hold different ones; or `until` is not of their kind.
    """
    kind = _kind(config)
    # Before the files: if a span is completed in between, those that were listed may not be all.
    complete = _marked(config, kind)
    today = (now or datetime.now(timezone.utc)).date()
    files: dict[int, dict[str, Identity]] = defaultdict(dict)
    of_feed: dict[str, set[int]] = {}
    for pattern in config.data.events:
        matches = _matches(pattern, kind)
        of_feed[pattern] = {order for _, _, order in matches}
        for path, identity, order in matches:
            files[order][path] = identity
    spans = [Span(order, _key(order, kind), dict(sorted(files[order].items()))) for order in sorted(files)]
    last = _order(until, kind) if until is not None else None
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


def unusual_gap(window: Sequence[Span]) -> list[str]:
    """A note if the newest span lies further behind the one before it than any other two spans of the window."""
    steps = [after.order - before.order for before, after in itertools.pairwise(window)]
    if len(steps) < 2 or steps[-1] <= max(steps[:-1]):
        return []
    return [f"the log has no span between {window[-2].key} and {window[-1].key}: are its files lost, or late?"]


def date_form(config: Config) -> str:
    """How dates are written, for messages; "" if spans have numbers."""
    return "" if _kind(config) == NUMBER else f"; dates are found by {_WAYS[DATE]}"


def require_spans(config: Config, until: str | None) -> None:
    """Checks the arguments of `find_spans` without looking at the files.

    Raises:
        ValueError: as `find_spans`.
    """
    kind = _kind(config)
    _require_marker(config, kind)
    if until is not None:
        _order(until, kind)


def _kind(config: Config) -> str:
    """`DATE` or `NUMBER`: what the spans of the log are named by."""
    kinds = {_kind_of(pattern) for pattern in config.data.events}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise ValueError(
            f"data.events={list(config.data.events)} must name spans: put {_WAYS[DATE]}, or {_WAYS[NUMBER]}, into "
            "every pattern, dates or numbers in all, e.g. data.events=log/{date}/*.parquet"
        )
    return kind


def _kind_of(pattern: str) -> str | None:
    """What the placeholders of a pattern stand for together; None if that is no date and no number.

    Raises:
        ValueError: it holds something like a placeholder that is none.
    """
    if unknown := [word for word in re.findall(r"\{\w+\}", pattern) if word not in _FORMS]:
        raise ValueError(
            f"data.events or retrain.complete_marker: {unknown[0]} in {pattern} stands for no part of a span's name: "
            "write * instead, as all files of a day are one span"
        )
    found = set(PLACEHOLDERS.findall(pattern))
    if found in ({DATE}, set(DATE_PARTS)):
        return DATE
    return NUMBER if found == {NUMBER} else None


def _marked(config: Config, kind: str) -> set[int] | None:
    marker = config.retrain.complete_marker
    if marker is None:
        return None
    _require_marker(config, kind)
    return {order for _, _, order in _matches(marker, kind)}


def _require_marker(config: Config, kind: str) -> None:
    marker = config.retrain.complete_marker
    if marker is not None and _kind_of(marker) != kind:
        raise ValueError(
            f"retrain.complete_marker={marker!r} must name spans, as data.events does: put {_WAYS[kind]} into it"
        )


def _matches(pattern: str, kind: str) -> list[tuple[str, Identity, int]]:
    """(path, identity, order) of each file that matches a pattern and names a span."""
    if not is_remote(as_path(pattern)):
        pattern = re.sub("//+", "/", pattern)  # as a glob names what it finds
    order_of = _order_finder(pattern, kind)
    found, nameless = [], []
    for path, identity in identities(PLACEHOLDERS.sub("[0-9]*", pattern)).items():
        order = order_of(path)
        if order is None:
            nameless.append(path)
        else:
            found.append((path, identity, order))
    if nameless:
        log.warning(
            "ignored files that match %s but name no span: %s, e.g. %s. Rename them, so that spans are found by %s, or "
            "choose a pattern that does not match them",
            pattern, f"{len(nameless):,}", nameless[0], _WAYS[kind],
        )  # fmt: skip
    return found


def _order_finder(pattern: str, kind: str) -> Callable[[str], int | None]:
    """Returns path -> order of its span: the first date or number, if several places fit the pattern."""
    pieces = PLACEHOLDERS.split(pattern)
    before, behind = re.compile(_regex(pieces[0])), re.compile(_regex_from_placeholder(pieces))

    def order_of(path: str) -> int | None:
        for start in (place.start() for place in re.finditer(f"(?={_FORMS[pieces[1]]})", path)):
            match = behind.fullmatch(path, start)
            if match and before.fullmatch(path, 0, start):
                found = match.groupdict()
                parts = [found[name] for name in map(_name, _FORMS) if name in found]
                order = _order_of_text("".join(part.zfill(2) for part in parts), kind)
                if order is not None:
                    return order
        return None

    return order_of


def _regex_from_placeholder(pieces: Sequence[str]) -> str:
    """A regular expression for a path from its first placeholder on: `pieces` are texts and placeholders in turns.

    A group per placeholder holds its first occurrence; further ones must repeat it.
    """
    regex, seen = "", set()
    for before, placeholder, after in zip(pieces[::2], pieces[1::2], pieces[2::2], strict=False):
        name = _name(placeholder)
        # A wildcard would take the first digits of 100 and leave 0.
        whole = r"(?<!\d)" if before.endswith("*") else ""
        regex += f"(?P={name})" if name in seen else f"{whole}(?P<{name}>{_FORMS[placeholder]})"
        regex += _regex(after)
        seen.add(name)
    return regex


def _name(placeholder: str) -> str:
    return placeholder.strip("{}")


def _regex(text: str) -> str:
    """A regular expression that locates the parts of a path that a glob has matched; it does not check the match."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", text)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return "".join(special.get(piece, "[^/]") if place % 2 else re.escape(piece) for place, piece in enumerate(pieces))


def _order(key: str, kind: str) -> int:
    order = _order_of_text(key, kind)
    if order is None:
        form = "a date, e.g. 2024-05-31" if kind == DATE else "a number"
        raise ValueError(f"span {key!r} is not {form}, by which data.events names spans")
    return order


def _order_of_text(text: str, kind: str) -> int | None:
    if not re.fullmatch(_FORMS[kind], text):
        return None
    try:
        if kind == NUMBER:
            return int(text)
        compact = text.replace("-", "")
        return date(int(compact[:4]), int(compact[4:6]), int(compact[6:8])).toordinal()
    except ValueError:
        return None


def _key(order: int, kind: str) -> str:
    return date.fromordinal(order).isoformat() if kind == DATE else str(order)
