"""The differences between two configs, key by key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key -> "old -> new", as JSON, for each value that differs; "none" stands for a missing key.

    Args:
        before, after: trees of JSON values.
        prefix: prepended to every key, e.g. "data.".
    """
    mine, theirs = _flat(before, prefix), _flat(after, prefix)
    return {
        key: f"{mine.get(key, 'none')} -> {theirs.get(key, 'none')}"
        for key in sorted({*mine, *theirs})
        if mine.get(key) != theirs.get(key)
    }


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, str]:
    result: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = json.dumps(value, ensure_ascii=False)
    return result
