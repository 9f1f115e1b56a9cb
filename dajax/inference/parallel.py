"""One model on several devices: batches are divided over them; params are whole on each device, or sharded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dajax.config import DepthAnythingConfig
from dajax.errors import ConfigError
from dajax.weights.shapes import parameter_shapes

_PARALLEL = ("jit", "pmap")
# The axes over which jax's own examples divide a batch.
_BATCH_AXES = ("data", "batch")
_MAKE_ONE = "jax.sharding.Mesh(jax.local_devices(), ('data',)) makes one"


def param_shardings(config: DepthAnythingConfig, mesh: Mesh, axis: str | None = None) -> dict[str, Any]:
    """Return shardings that divide the params over an axis of a mesh, for `dajax.load(name, sharding=…)`.

    Every kernel and embedding is divided along its inputs or its outputs (its last two axes): along the larger of those
    that the number of devices divides. Other params are whole on each device, and so are vectors (biases, scales of
    norms), because gathering them would cost more than keeping them.

    Args:
        config: the config of the model: `model.config`, or `DepthAnythingConfig.from_pretrained(name)`.
        mesh: the devices.
        axis: the name of the axis to divide over; None is the mesh's last axis.

    Returns:
        A nested dict of `NamedSharding` with the structure of the params.

    Raises:
        ConfigError: `mesh` is not a mesh of this process's devices, or it has no such axis.
    """
    mesh = _checked(mesh)
    axis = mesh.axis_names[-1] if axis is None else axis
    if axis not in mesh.axis_names:
        raise ConfigError(f"axis must be one of the mesh's, {', '.join(map(repr, mesh.axis_names))}, got {axis!r}")
    count = mesh.shape[axis]

    def spec(shape: tuple[int, ...]) -> PartitionSpec:
        rank = len(shape)
        divisible = [i for i in range(rank - 2, rank) if shape[i] % count == 0] if rank > 1 else []
        cut = max(divisible, key=lambda i: (shape[i], i), default=None)
        return PartitionSpec() if cut is None else PartitionSpec(*[axis if i == cut else None for i in range(rank)])

    shapes = unflatten_dict(parameter_shapes(config), sep="/")
    return jax.tree.map(lambda shape: NamedSharding(mesh, spec(shape)), shapes, is_leaf=lambda x: isinstance(x, tuple))


def resolve_mesh(mesh: Mesh | str | None, parallel: str) -> Mesh | None:
    """Return the mesh for an estimator's options; None if jit uses the one device that the params are on.

    Raises:
        ConfigError: `mesh` or `parallel` cannot be used, or they cannot be used together.
    """
    if parallel not in _PARALLEL:
        raise ConfigError(f'parallel must be "jit" or "pmap", got {parallel!r}')
    if mesh is None:
        return None if parallel == "jit" else Mesh(np.array(list(jax.device_put(0).devices())), ("data",))
    is_local = isinstance(mesh, str) and mesh == "local"
    found = _checked(Mesh(np.array(jax.local_devices()), ("data",)) if is_local else mesh)
    if parallel == "pmap" and len(found.axis_names) > 1:
        raise ConfigError(
            f"parallel='pmap' takes a mesh with one axis, got {dict(found.shape)}: give Mesh(mesh.devices.ravel(), "
            "('data',)), or use parallel='jit'"
        )
    return found


def _checked(mesh: Any) -> Mesh:
    if not isinstance(mesh, Mesh):
        found = repr(mesh) if isinstance(mesh, str) else type(mesh).__name__
        raise ConfigError(f'mesh must be None, "local" or a jax.sharding.Mesh ({_MAKE_ONE}), got {found}')
    devices = list(mesh.devices.flat)
    if not devices or not mesh.axis_names:
        raise ConfigError(f"mesh has no devices: {_MAKE_ONE}")
    if len(set(devices)) < len(devices):
        raise ConfigError(f"mesh has a device twice: {_MAKE_ONE}")
    if any(device.process_index != jax.process_index() for device in devices):
        raise ConfigError(
            'mesh has devices of other processes: give each process mesh="local" and its own part of the images, '
            "images[jax.process_index()::jax.process_count()]"
        )
    if len(platforms := sorted({device.platform for device in devices})) > 1:
        raise ConfigError(f"mesh has devices of {' and '.join(platforms)}: use devices of one platform")
    # Newer versions of jax.make_mesh make explicit axes, for which every reshape of the network would have to name its
    # sharding. Mesh makes axes without this.
    return Mesh(mesh.devices, mesh.axis_names)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays that are whole on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """Return the axes that a batch is divided over: those named "data" and "batch", or all if there is none of them."""
    return tuple(name for name in mesh.axis_names if name in _BATCH_AXES) or mesh.axis_names


def data_parallel_size(mesh: Mesh | None) -> int:
    """Return the number of parts that a batch is divided into."""
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in batch_axes(mesh))


def place_params(params: Mapping[str, Any], mesh: Mesh | None, parallel: str) -> Mapping[str, Any]:
    """Return the params on the mesh's devices.

    They keep their sharding if the caller has put them on these devices. Otherwise each device gets all of them.
    Without a mesh they stay on their device, and arrays of numpy go to the default device.

    Raises:
        ConfigError: there are no params, they are on other devices, or they are sharded and `parallel` is "pmap".
    """

    def place(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if mesh is None:
            array = jax.device_put(leaf)
            if len(array.devices()) > 1:
                raise ConfigError(
                    f"the params are on {len(array.devices())} devices ({name}): pass their mesh as mesh=…"
                )
            return array
        array = jax.device_put(leaf, _target(name, leaf, mesh))
        if parallel == "pmap" and not array.is_fully_replicated:
            raise ConfigError(f"parallel='pmap' needs whole params, but {name} is sharded: use parallel='jit'")
        return array

    if not jax.tree.leaves(params):
        raise ConfigError("params has no arrays: pass the nested dict that dajax.load or model.init returns")
    return jax.tree_util.tree_map_with_path(place, params)


def are_whole(params: Mapping[str, Any]) -> bool:
    """Whether each device has all params; else they are sharded."""
    return all(leaf.is_fully_replicated for leaf in jax.tree.leaves(params))


def _target(name: str, leaf: Any, mesh: Mesh) -> NamedSharding:
    # Arrays that jax put on its default device by itself are not committed, so they may be moved.
    if not isinstance(leaf, jax.Array) or not leaf.committed:
        return replicated(mesh)
    devices = list(mesh.devices.flat)
    if leaf.is_fully_replicated and leaf.devices() <= set(devices):
        return replicated(mesh)
    if isinstance(leaf.sharding, NamedSharding) and list(leaf.sharding.mesh.devices.flat) == devices:
        own = leaf.sharding.mesh
        return NamedSharding(Mesh(own.devices, own.axis_names), leaf.sharding.spec)
    raise ConfigError(
        f"the params ({name}: {leaf.sharding}) are not on the devices of the mesh, {_named(devices)}: pass "
        "jax.device_get(params) to have them placed there; to shard them, use NamedShardings on this mesh"
    )


def _named(devices: list[jax.Device]) -> str:
    return str(devices[0]) if len(devices) == 1 else f"{devices[0]} … {devices[-1]}"


Forward = Callable[[Mapping[str, Any], Any], jax.Array]


class Distributed(NamedTuple):
    """A function (params, pixels) -> depth that is compiled for a mesh.

    Attributes:
        run: the function.
        lower: a function (params, pixels) that lowers the program of a batch which the devices divide; pixels may be a
            `jax.ShapeDtypeStruct`. None with "pmap", which does not find what was compiled ahead of it.
    """

    run: Forward
    lower: Callable[[Mapping[str, Any], Any], Any] | None

    def __call__(self, params: Mapping[str, Any], pixels: Any) -> jax.Array:
        """Return the depth."""
        return self.run(params, pixels)


def distribute(forward: Forward, mesh: Mesh | None, parallel: str, params: Mapping[str, Any]) -> Distributed:
    """Return `forward` compiled for the mesh.

    The returned function takes a batch of any size. It pads the batch, divides it over the devices and joins the
    results.

    Args:
        forward: a function (params, pixels [batch, …]) -> depth [batch, height, width].
        mesh: the devices; None is the device that the params are on.
        parallel: "jit" or "pmap".
        params: the params on their devices, as they will be passed later.
    """
    if mesh is None:
        compiled = jax.jit(forward)
        return Distributed(compiled, compiled.lower)
    count = data_parallel_size(mesh)
    whole = Distributed(_pmapped(forward, mesh), None) if parallel == "pmap" else _jitted(forward, mesh, params)

    def run(params: Mapping[str, Any], pixels: Any) -> jax.Array:
        rows = len(pixels)
        # An empty batch is padded as well, because not every version of jax can divide it.
        if missing := max(-(-rows // count), 1) * count - rows:
            pad = jnp.pad if isinstance(pixels, jax.Array) else np.pad
            pixels = pad(pixels, [(0, missing)] + [(0, 0)] * (pixels.ndim - 1))
        depths = whole(params, pixels)
        return depths[:rows] if missing else depths

    return Distributed(run, whole.lower)


def _jitted(forward: Forward, mesh: Mesh, params: Mapping[str, Any]) -> Distributed:
    batch = PartitionSpec(batch_axes(mesh))
    rows = NamedSharding(mesh, batch)
    if are_whole(params):
        # Each device runs the program of one device. XLA's own partitioning would make every device compute the
        # attention of the whole batch on CPUs, where attention is a loop over images and heads.
        forward = jax.shard_map(forward, mesh=mesh, in_specs=(PartitionSpec(), batch), out_specs=batch, check_vma=False)
    compiled = jax.jit(forward, out_shardings=rows)

    def run(params: Mapping[str, Any], pixels: Any) -> jax.Array:
        return compiled(params, jax.device_put(pixels, rows))

    def lower(params: Mapping[str, Any], pixels: Any) -> Any:
        return compiled.lower(params, jax.ShapeDtypeStruct(pixels.shape, pixels.dtype, sharding=rows))

    return Distributed(run, lower)


def _pmapped(forward: Forward, mesh: Mesh) -> Forward:
    devices = list(mesh.devices.flat)
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    mapped = jax.pmap(forward, in_axes=(None, 0), devices=devices)

    def run(params: Mapping[str, Any], pixels: Any) -> jax.Array:
        depths = mapped(params, pixels.reshape(len(devices), len(pixels) // len(devices), *pixels.shape[1:]))
        if isinstance(depths, jax.core.Tracer):
            return depths.reshape(pixels.shape[:-1])
        # The result is joined from its parts. A reshape would wait for it (jax 0.7 to 0.10), so that the host could not
        # prepare the next batch meanwhile.
        parts = [shard.data.reshape(shard.data.shape[1:]) for shard in depths.addressable_shards]
        return jax.make_array_from_single_device_arrays(pixels.shape[:-1], rows, parts)

    return run


@contextmanager
def running_on(device: jax.Device) -> Iterator[None]:
    """Trace for the platform of this device, and for the mesh of the arguments instead of that of `jax.set_mesh`."""
    try:
        without_mesh: AbstractContextManager[Any] = jax.set_mesh(Mesh(np.empty((), object), ()))
    except ValueError:  # within a transformation the caller's mesh stays
        without_mesh = nullcontext()
    # While it is traced, the network asks for the platform; see `dajax.kernels.current_target`.
    with without_mesh, jax.default_device(device):
        yield
