"""Checkpoints as files, made without the code that reads them."""

import json
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from refusal import refused

import dajax
from dajax.errors import WeightsError
from dajax.weights.mapping import sources, torch_shape
from dajax.weights.random import random_params
from dajax.weights.safetensors_io import write_safetensors
from dajax.weights.shapes import parameter_shapes
from dajax.weights.torch_files.torch_write import write_torch


def tensors_of(config, table="huggingface", dtype="float32", seed=0):
    """A checkpoint's tensors, made without the code under test but for its table of names."""
    flat = flatten_dict(random_params(config, seed), sep="/")
    tensors, thirds = {}, {}
    for path, source in sources(table, flat).items():
        joined = source.transform.to_torch(flat[path]).astype(dtype)
        parts = np.split(joined, len(source.names))
        tensors |= dict(zip(source.names, parts, strict=True))
        if source.part.of > 1:
            thirds.setdefault(source.names[0], {})[source.part.number] = joined
    return tensors | {name: np.concatenate([parts[i] for i in sorted(parts)]) for name, parts in thirds.items()}


def write_file(path, tensors, metadata=None):
    tensors = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    infos = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    with Path(path).open("wb") as file:
        write_safetensors(file, infos, tensors.__getitem__, metadata=metadata or {"format": "pt"})


def write_folder(folder, config, tensors=None, shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
    tensors = tensors_of(config) if tensors is None else tensors
    if shards == 1:
        write_file(folder / "model.safetensors", tensors)
        return folder
    weight_map = {}
    names = list(tensors)
    for i in range(shards):
        shard = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        write_file(folder / shard, part)
        weight_map |= dict.fromkeys(part, shard)
    write_index(folder, weight_map)
    return folder


def write_index(folder, weight_map):
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def assert_params(params, expected):
    """The same paths, types and bits."""
    found, expected = flatten_dict(params, sep="/"), flatten_dict(expected, sep="/")
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        assert leaf.dtype == expected[path].dtype, path
        assert np.asarray(leaf).tobytes() == np.asarray(expected[path]).tobytes(), path


def assert_refused(name, match, error=WeightsError, **options):
    """Refused in under a second and without memory for what it describes."""
    return refused(lambda: dajax.load(name, **options), error, match)


def sparse(path, config, table="huggingface"):
    """A checkpoint of a released size whose values are all zero and take no room on the disk."""
    shapes = parameter_shapes(config)
    header, position = {}, 0
    for flax, source in sources(table, shapes).items():
        if source.names[0] in header:  # another part of it
            continue
        shape = torch_shape(source, shapes[flax])
        stop = position + 4 * int(np.prod(shape))
        header[source.names[0]] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)


def write_torch_file(path, tensors):
    infos = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    with Path(path).open("wb") as file:
        write_torch(file, infos, tensors.__getitem__)
