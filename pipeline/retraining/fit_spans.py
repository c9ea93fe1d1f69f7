"""Which spans of a window a model may be trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from contracts.config import Config
from contracts.errors import Differs
from contracts.log_lines import sign_of_life
from contracts.store_layout import SpanParts, Store
from pipeline.retraining.records import all_records, digest_of
from pipeline.retraining.span_profile import (
    LEAST_EARLIER,
    EarlierSpans,
    SpanProfile,
    forget_damaged,
    profile_span,
    refusals,
    require_tables_like_the_last,
    unchecked,
)
from pipeline.retraining.spans import Span, unusual_gap

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitSpans:
    """The spans of a window, sorted into usable and unusable ones.

    Attributes:
        profiles: of the spans that can be used, oldest first.
        left_out: key -> why that span cannot be used, in words.
        refused: key -> digest of the files, for spans left out that were read. As long as their files stay the same, so
            does the judgement.
        notes: what was not checked about new spans, and whether some seem to be missing, in words.
    """

    profiles: list[SpanProfile]
    left_out: dict[str, str]
    refused: dict[str, str]
    notes: list[str] = field(default_factory=list)


def fit_spans(config: Config, store: Store, window: Sequence[Span]) -> FitSpans:
    """Ingests and measures what is new in the window, and judges each span by those before it.

    A span that was rewritten since the last run used it is also judged by those after it if few come before it: it may
    be the window's first.

    Raises:
        ValueError: the newest span cannot be used, or it is the only one that can.
    """
    profiles: list[SpanProfile] = []
    earlier, notes = EarlierSpans(), unusual_gap(window)
    used, rewritten, held = _last_judgement(config, store, window)
    left_out: dict[str, str] = {}
    refused: dict[str, str] = {}
    doubtful: list[SpanProfile] = []
    digests = {span.key: span.digest for span in window}
    for span in window:
        forget_damaged(store.span(span.key))
    if config.retrain.span.schema_of_last:
        require_tables_like_the_last(config, window, store)
    for span in window:
        before = store.span(profiles[-1].key) if profiles and config.retrain.span.schema_of_last else None
        reasons, is_read = [held[span.key]] if span.key in held else [], True
        try:
            if not reasons:
                with sign_of_life(f"span {span.key}"):
                    profile = _profile_of(config, store, span, before, is_used=span.key in used)
                others = EarlierSpans() if span.key in used else earlier
                reasons = refusals(profile, others, config.retrain.span)
        except ValueError as error:
            reasons, is_read = [str(error)], isinstance(error, Differs)
        if not reasons:
            if span.key in rewritten and len(profiles) < LEAST_EARLIER:
                doubtful.append(profile)
            profiles.append(profile)
            earlier.add(profile)
        elif span is window[-1]:
            raise ValueError(f"span {span.key} is not fit to train on: {'; '.join(reasons)}")
        else:
            left_out[span.key] = "; ".join(reasons)
            refused |= {span.key: digests[span.key]} if is_read else {}
            log.warning("span %s is left out: %s", span.key, left_out[span.key])
    for profile in doubtful:
        others = EarlierSpans(one for one in profiles[:-1] if one is not profile)
        notes += unchecked(profile.key, len(others.events), config.retrain.window_spans)
        if reasons := refusals(profile, others, config.retrain.span):
            profiles.remove(profile)
            left_out[profile.key] = "; ".join(reasons)
            refused |= {profile.key: digests[profile.key]}
            log.warning("span %s is left out: %s", profile.key, left_out[profile.key])
    if len(profiles) < 2:
        listing = "".join(f"\n  {key}: {reason}" for key, reason in left_out.items())
        raise ValueError(
            f"only span {profiles[-1].key} of the window can be used, and training needs an earlier one, too. If the "
            "log has changed, rewrite the earlier files like the newest; or wait for the next span: the model is then "
            f"trained only on the spans that can be read. Left out:{listing}"
        )
    notes += unchecked(profiles[-1].key, len(profiles) - 1, config.retrain.window_spans)
    return FitSpans(profiles, left_out, refused, notes)


def _profile_of(config: Config, store: Store, span: Span, before: SpanParts | None, *, is_used: bool) -> SpanProfile:
    try:
        return profile_span(config, span, store.span(span.key), before)
    except Differs:
        if not is_used:
            raise
        return profile_span(config, span, store.span(span.key))  # accepted before, ingested anew by other code


def _last_judgement(config: Config, store: Store, window: Sequence[Span]) -> tuple[set[str], set[str], dict[str, str]]:
    """The last run's judgement of older spans: keys it used, keys whose files differ now, and key -> why it refused.

    That judgement stands. Spans are compared with earlier ones, which are the first to leave the window: judged anew, a
    refused span would pass once nothing is left before it, and one that passed might be refused. Spans that could not
    be read are not included: they may be readable by now.
    """
    last = next(reversed(all_records(store)), None)
    if last is None:
        return set(), set(), {}
    digests = {span["key"]: digest_of(span) for span in last.spans}
    used = {span.key for span in window[:-1] if digests.get(span.key) == span.digest}
    rewritten = {span.key for span in window[:-1] if span.key in digests} - used
    # Under other limits, or if the log is read differently, refused spans may be fit.
    if (last.config["data"], last.config["retrain"]["span"]) != (
        config.data.model_dump(mode="json"),
        config.retrain.span.model_dump(mode="json"),
    ):
        return used, rewritten, {}
    same = {span.key for span in window[:-1] if last.refused.get(span.key) == span.digest}
    return used, rewritten, {key: reason for key, reason in last.left_out.items() if key in same}
