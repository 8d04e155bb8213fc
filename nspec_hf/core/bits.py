"""Booleans to bytes and back: eight neurons a byte, for files and for messages between processes.

Shape letters: F = neurons of a site.

Neuron i is bit `i % 8` of byte `i // 8`, the lowest bit first. The bits behind the last neuron are zero, and
reading checks it, so that equal masks are equal bytes and no bit of a file is without meaning.
"""

import numpy as np
import torch
from torch import Tensor

from nspec_hf.core.errors import ArtefactError


def packed_width(width: int) -> int:
    """Return how many bytes a row of `width` booleans takes."""
    return (width + 7) // 8


def pack(keep_F: Tensor) -> Tensor:
    """Pack booleans into bytes.

    Args:
        keep_F: Boolean tensor of shape [..., F], on any device.

    Returns:
        uint8 tensor of shape [..., ceil(F / 8)] on the CPU.

    Raises:
        TypeError: If the tensor is not boolean.
    """
    if keep_F.dtype != torch.bool:
        raise TypeError(f"only booleans can be packed into bits, got {keep_F.dtype}")
    return torch.from_numpy(np.packbits(keep_F.cpu().numpy(), axis=-1, bitorder="little"))


def unpack(bytes_B: Tensor, width: int) -> Tensor:
    """Return the booleans that `pack` packed.

    Args:
        bytes_B: uint8 tensor of shape [..., ceil(width / 8)].
        width: Number of booleans in a row, F.

    Returns:
        Boolean tensor of shape [..., F].

    Raises:
        ArtefactError: If the tensor is not of that type and shape, or a bit behind the last boolean is set.
    """
    if bytes_B.dtype != torch.uint8 or bytes_B.dim() == 0 or bytes_B.shape[-1] != packed_width(width):
        raise ArtefactError(
            f"packed bits of {width} neurons are uint8 of shape [..., {packed_width(width)}], "
            f"found {bytes_B.dtype} of shape {list(bytes_B.shape)}; make the file again"
        )
    bits = np.unpackbits(bytes_B.cpu().numpy(), axis=-1, bitorder="little")
    if bits[..., width:].any():
        raise ArtefactError(f"bits are set behind the last of {width} neurons; the file was altered")
    return torch.from_numpy(bits[..., :width].astype(bool))
