"""Where the arrays of a training lie: params whole on each device, batches split over all devices of all processes."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dajax.errors import ConfigError
from dajax.training.run_checkpoints import import_orbax

# How long a process waits for the others before their first common step: one may have to compile what another one
# reads from the compilation cache.
_PATIENCE_S = 3600
_meetings = itertools.count()


class Placement:
    """All devices as one mesh with the axis "data".

    Args:
        batch_size: the number of images in a batch, on all devices together.

    Attributes:
        whole: the sharding of an array that is whole on each device.
        rows: the indices of the images of a batch that this process makes, in the order of its devices.

    Raises:
        ConfigError: the batch size is not a multiple of the number of devices.
    """

    def __init__(self, batch_size: int) -> None:
        devices = jax.devices()
        if batch_size % len(devices):
            raise ConfigError(f"data.batch_size must be a multiple of the {len(devices)} devices, got {batch_size}")
        self._batch_size = batch_size
        mesh = Mesh(np.asarray(devices), ("data",))
        self.whole = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        own = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
        own_mesh = Mesh(np.asarray([devices[i] for i in own]), ("data",))
        self._own_split = NamedSharding(own_mesh, PartitionSpec("data"))
        self.rows = np.arange(batch_size).reshape(len(devices), -1)[own].ravel()

    def put_whole(self, tree: Any) -> Any:
        """Return the arrays whole on each device; every process passes the same values."""

        def put(leaf: Any) -> jax.Array:
            if self.whole.is_fully_addressable:
                return jax.device_put(leaf, self.whole)
            # `jax.device_put` would compare the values of all processes, array by array.
            host = np.asarray(leaf)
            return jax.make_array_from_callback(host.shape, self.whole, lambda index: host[index])

        return jax.tree.map(put, tree)

    def put_rows(self, tree: Any) -> Any:
        """Return a batch that is split over all devices; this process passes its `rows` of it."""

        def put(leaf: Any) -> jax.Array:
            own = jax.device_put(leaf, self._own_split)
            shards = [shard.data for shard in own.addressable_shards]
            return jax.make_array_from_single_device_arrays((self._batch_size, *own.shape[1:]), self._split, shards)

        return jax.tree.map(put, tree)


def connect_processes() -> None:
    """Wait until all processes call this, and connect their devices. With one process, return at once.

    On CPUs the devices connect in their first collective operation, and each process then waits 30 seconds for the
    others before it fails. Processes that load and compile can be further apart than that. So they meet first at a
    barrier of the coordinator, which waits for an hour, and connect directly afterwards.

    Raises:
        ConfigError: orbax is not installed.
    """
    count = jax.process_count()
    if count == 1:
        return
    ocp = import_orbax()
    # The coordinator knows a barrier by its name, and each name once.
    name = f"dajax training {next(_meetings)}"
    ocp.multihost.sync_global_processes(name, timeout=_PATIENCE_S, processes=set(range(count)))
    multihost_utils.sync_global_devices(name)
