"""The TPUs that can be compiled for: what they can do at most, and where that is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Chip:
    """One chip, which is one device of jax.

    Attributes:
        topology: libtpu's name of a small slice of such chips; the first one is compiled for.
        options: further arguments of the topology.
        peak_flops: bfloat16 operations a second.
        bandwidth: bytes a second between the chip and its device memory.
        memory: bytes of device memory.
        matrix_unit: how many rows and columns the matrix unit has. Smaller operands leave a part of it empty.
        clock_hz: what one of the compiler's estimated cycles is.
        vector_rate: how many numbers the vector unit takes in a cycle: 8x128 for each core.
        source: where peak, bandwidth, memory and units are written.
    """

    topology: str
    peak_flops: float
    bandwidth: float
    memory: float
    matrix_unit: int
    clock_hz: float
    vector_rate: int
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def seconds(self, cycles: float) -> float:
        """Return the seconds of cycles."""
        return cycles / self.clock_hz

    def cycles_of_bytes(self, count: float) -> float:
        """Return how many cycles it takes to move bytes between device memory and chip."""
        return count / self.bandwidth * self.clock_hz

    def cycles_of_flop(self, flop: float) -> float:
        """Return how many cycles operations take at the peak."""
        return flop / self.peak_flops * self.clock_hz


# Peak, bandwidth, memory and the number of cores and units: the pages that `source` names. The vector unit has 128
# lanes and 8 sublanes (the page of v6e), which is also what the compiler charges: 1,024 exponentials a cycle and core.
#
# Clocks: 1,050 MHz of v4 in Jouppi et al. 2023 (arXiv:2304.01433, table 4); 1.5 GHz of v5e and 1.75 GHz of v5p in
# https://jax-ml.github.io/scaling-book/tpus. With four units of 128x128 a core they give the peaks: 2 * 4 * 128 * 128
# * 1.5e9 = 197e12. Google publishes no clock of v6e. libtpu 0.0.50 estimates 2.98 million cycles for a bfloat16 product
# of two 8192x8192 matrices; two units of 256x256 that multiply once a cycle would need 4.19 million. Four would need
# 2.10, and reach the peak at 1.75 GHz, so that is what a cycle of this compiler is taken for.
CHIPS = {
    "v4": Chip(
        "v4:2x2x1", 275e12, 1.2288e12, 32e9, 128, 1.05e9, 2048, "https://cloud.google.com/tpu/docs/v4",
        {"chip_config_name": "megacore"},
    ),
    "v5e": Chip("v5e:2x2", 197e12, 0.819e12, 16e9, 128, 1.5e9, 1024, "https://cloud.google.com/tpu/docs/v5e"),
    "v5p": Chip("v5p:2x2x1", 459e12, 2.765e12, 95e9, 128, 1.75e9, 2048, "https://cloud.google.com/tpu/docs/v5p"),
    "v6e": Chip("v6e:2x2", 918e12, 1.638e12, 32e9, 256, 1.75e9, 1024, "https://cloud.google.com/tpu/docs/v6e"),
}  # fmt: skip
