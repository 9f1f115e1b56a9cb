"""Where the arrays of a training lie: params whole on each device, batches cut over all devices of all processes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dajax.errors import ConfigError


class Placement:
    """All devices there are, as one mesh with the axis "data".

    Args:
        batch_size: images in a batch, on all devices together.

    Attributes:
        whole: the sharding of what is whole on each device.
        rows: which images of a batch this process makes, in the order of its devices.

    Raises:
        ConfigError: the devices cannot share a batch out evenly.
    """

    def __init__(self, batch_size: int) -> None:
        devices = jax.devices()
        if batch_size % len(devices):
            raise ConfigError(f"data.batch_size must be a multiple of the {len(devices)} devices, got {batch_size}")
        self._batch_size = batch_size
        mesh = Mesh(np.asarray(devices), ("data",))
        self.whole = NamedSharding(mesh, PartitionSpec())
        self._cut = NamedSharding(mesh, PartitionSpec("data"))
        own = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
        self._own_cut = NamedSharding(Mesh(np.asarray([devices[i] for i in own]), ("data",)), PartitionSpec("data"))
        self.rows = np.arange(batch_size).reshape(len(devices), -1)[own].ravel()

    def put_whole(self, tree: Any) -> Any:
        """Return arrays that every process has alike, whole on each device."""

        def put(leaf: Any) -> jax.Array:
            if self.whole.is_fully_addressable:
                return jax.device_put(leaf, self.whole)
            # `jax.device_put` would compare all processes' values, array by array.
            host = np.asarray(leaf)
            return jax.make_array_from_callback(host.shape, self.whole, lambda index: host[index])

        return jax.tree.map(put, tree)

    def put_rows(self, tree: Any) -> Any:
        """Return a batch cut over all devices, of which this process has made `rows`."""

        def put(leaf: Any) -> jax.Array:
            own = jax.device_put(leaf, self._own_cut)
            shards = [shard.data for shard in own.addressable_shards]
            return jax.make_array_from_single_device_arrays((self._batch_size, *own.shape[1:]), self._cut, shards)

        return jax.tree.map(put, tree)
