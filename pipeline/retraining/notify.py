"""Tells a webhook what came of a retrain."""

from __future__ import annotations

import logging
from typing import Any

import requests
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 10


def notify(url: str | None, outcome: dict[str, Any]) -> bool:
    """Posts the outcome as JSON; tries three times. A webhook that fails is logged, and changes no outcome.

    Returns:
        whether it was delivered; True where there is no webhook.
    """
    if url is None:
        return True
    try:
        _post(url, outcome)
    except requests.RequestException as error:
        log.warning("the outcome could not be posted to retrain.webhook: %s", error)
        return False
    return True


@retry(
    retry=retry_if_exception_type(requests.RequestException),
    stop=stop_after_attempt(3),
    wait=wait_exponential(multiplier=0.5, max=5),
    reraise=True,
)
def _post(url: str, outcome: dict[str, Any]) -> None:
    requests.post(url, json=outcome, timeout=_TIMEOUT_SECONDS).raise_for_status()
