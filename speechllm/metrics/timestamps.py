"""Errors of word boundaries, in milliseconds."""

from __future__ import annotations

import numpy as np


def score_rows(references: dict, rows: list[dict]) -> dict:
    errors = (
        np.concatenate(
            [np.abs(np.array(row["timestamps"]) - np.array(references[row["key"]].spans)).ravel() for row in rows]
        )
        * 1000
    )
    value = float(errors.mean())
    return {"metric": "aas", "value": value, "unit": "ms", "ci95": [value, value], "counts": {"utterances": len(rows)}}
