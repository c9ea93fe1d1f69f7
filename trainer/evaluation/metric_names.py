"""Names of the metrics, in files and in tables."""

from __future__ import annotations

from collections.abc import Sequence

from contracts.config import COVERAGE_K

NDCG_K = 10

NDCG = f"ndcg_at_{NDCG_K}"
COVERAGE = f"catalog_coverage_at_{COVERAGE_K}"
GINI = f"gini_at_{COVERAGE_K}"
GROUPS_PER_LIST = f"groups_per_list_at_{COVERAGE_K}"

_RECALL = "recall_at_"
_SHORT = {_RECALL: "R@", "ndcg_at_": "N@", "catalog_coverage_at_": "cov@", "gini_at_": "gini@"}


def recall_name(k: int) -> str:
    """The name of recall among the first k."""
    return f"{_RECALL}{k}"


def recall_k(name: str) -> int | None:
    """The k in a recall metric's name; None for another metric."""
    return int(name.removeprefix(_RECALL)) if name.startswith(_RECALL) else None


def metric_names(ks: Sequence[int]) -> list[str]:
    """Names of all metrics, with recall at these k."""
    return [*map(recall_name, ks), NDCG, GROUPS_PER_LIST, COVERAGE, GINI]


def heading(name: str) -> str:
    """The short form of a name: R recall, N NDCG, cov catalogue coverage."""
    for long, short in _SHORT.items():
        name = name.replace(long, short)
    return name
