"""Chooses the reader for a file of weights by its content."""

from __future__ import annotations

from pathlib import Path

from dajax.errors import WeightsError
from dajax.files import open_regular
from dajax.weights.safetensors_io import SafetensorsFile
from dajax.weights.torch_files.torch_file import TorchFile

# A zip archive, or a pickle of protocol 2 to 5: what torch.save writes now, and what it wrote before 1.6.
_TORCH_STARTS = (b"PK\x03\x04", b"PK\x05\x06", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")


def open_weights(path: Path) -> SafetensorsFile | TorchFile:
    """Open a file of weights. Its content decides the format; its name decides only if the content fits neither format.

    Raises:
        WeightsError: it cannot be read, is damaged, or is something else.
    """
    with open_regular(path, error=WeightsError) as file:
        head = file.read(9)
    # A safetensors file starts with the length of its header, which is JSON.
    if head[8:] != b"{" and (head.startswith(_TORCH_STARTS) or path.suffix.lower() in _TORCH_SUFFIXES):
        return TorchFile(path)
    return SafetensorsFile(path)
