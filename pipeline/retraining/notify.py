"""Tells a webhook what came of a retrain."""

from __future__ import annotations

import logging

import requests
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential
from urllib3.exceptions import HTTPError

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 10
_SERVER_ERROR = 500


def notify(url: str | None, outcome: str) -> None:
    """Posts the outcome, a JSON text, where there is a webhook; tries three times where that may help.

    A webhook that fails is logged, without its URL, and changes no outcome.
    """
    if url is None:
        return
    try:
        _post(url, outcome)
    except (requests.RequestException, HTTPError) as error:  # the latter of a host such as `a..b`
        # The error's own text holds the URL, which may be all that it takes to post.
        response = getattr(error, "response", None)
        answer = "no answer" if response is None else f"HTTP status {response.status_code}"
        log.warning("the outcome could not be posted to retrain.webhook: %s (%s)", answer, type(error).__name__)


def _may_pass(error: BaseException) -> bool:
    """Whether another try may succeed: what a server refuses, and a URL that is none, stay so."""
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code >= _SERVER_ERROR
    return isinstance(error, requests.ConnectionError | requests.Timeout)


@retry(
    retry=retry_if_exception(_may_pass),
    stop=stop_after_attempt(3),
    wait=wait_exponential(multiplier=0.5, max=5),
    reraise=True,
)
def _post(url: str, outcome: str) -> None:
    headers = {"Content-Type": "application/json"}
    # The timeout is of each read, so that an answer which never ends would never time out: nobody reads it.
    with requests.post(url, data=outcome.encode(), headers=headers, timeout=_TIMEOUT_SECONDS, stream=True) as answer:
        answer.raise_for_status()
