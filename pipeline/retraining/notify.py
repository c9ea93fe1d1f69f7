"""Posts the outcome of a retrain to a webhook."""

from __future__ import annotations

import logging

import requests
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential
from urllib3.exceptions import HTTPError

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 10
_SERVER_ERROR = 500


def notify(url: str | None, outcome: str) -> None:
    """Posts the outcome, a JSON text, if there is a webhook; tries three times if that may help.

    A failing webhook is logged, without its URL, and does not change the outcome.
    """
    if url is None:
        return
    try:
        _post(url, outcome)
    except (requests.RequestException, HTTPError) as error:  # the latter for a host such as `a..b`
        # The error's text contains the URL, which may be all that is needed to post.
        response = getattr(error, "response", None)
        answer = "no answer" if response is None else f"HTTP status {response.status_code}"
        log.warning("the outcome could not be posted to retrain.webhook: %s (%s)", answer, type(error).__name__)


def _may_pass(error: BaseException) -> bool:
    """Whether another try may succeed; not if the server refuses the request or the URL is invalid."""
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
    # The timeout applies to each read, so an endless answer would never time out: its body is not read.
    with requests.post(url, data=outcome.encode(), headers=headers, timeout=_TIMEOUT_SECONDS, stream=True) as answer:
        answer.raise_for_status()
