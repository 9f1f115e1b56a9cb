"""Computes figures from times and outputs, without jax or any peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# All float32 implementations so far, also of Large, are within 3e-4 standard deviations of each other.
FLOAT32_BOUND = 1e-3


def quartiles(times_s: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, median, high = np.quantile(times_s, (0.25, 0.5, 0.75))
    return float(low), float(median), float(high)


def paired_ratio(times_s: Sequence[float], others_s: Sequence[float]) -> float:
    """Return the median of the ratios of each round. Whatever slows down a whole round does not change it."""
    return float(np.median(np.divide(times_s, others_s)))


def compare(depth: np.ndarray, reference: np.ndarray, dtype: str) -> dict[str, float]:
    """Return the largest and the mean distance between two depth maps, in standard deviations of the reference.

    Raises:
        ValueError: the two cannot come from the same network: their shapes differ, values are not finite, or, in
            float32, their distance is over `FLOAT32_BOUND`.
    """
    if depth.shape != reference.shape:
        raise ValueError(f"its depth map is {depth.shape}, dajax's {reference.shape}")
    if not np.isfinite(depth).all():
        raise ValueError("its depth map has values that are not finite")
    distance = np.abs(depth.astype(np.float64) - reference) / reference.std()
    error = {"max": float(distance.max()), "mean": float(distance.mean())}
    if dtype == "float32" and error["max"] > FLOAT32_BOUND:
        raise ValueError(
            f"its depth map is up to {error['max']:.1e} deviations from dajax's; {FLOAT32_BOUND:.0e} is allowed"
        )
    return error


def merge(results: dict[str, Any] | None, machine: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """Return the results with a case added, which replaces an earlier measurement of the same case.

    Raises:
        ValueError: the results come from another machine.
    """
    results = results or {"machine": machine, "cases": []}
    if results["machine"] != machine:
        raise ValueError(f"the results are of another machine, {results['machine']}; this is {machine}: give --out")

    def key(other: dict[str, Any]) -> tuple[Any, ...]:
        height, width = (int(side) for side in other["image"].split("x"))
        return (other["kind"] != "model", height * width, other["batch"], "sbl".index(other["size"][0]))

    kept = [other for other in results["cases"] if key(other) != key(case)]
    return {"machine": machine, "cases": sorted([*kept, case], key=key)}
