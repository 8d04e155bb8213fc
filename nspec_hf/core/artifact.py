"""One safetensors file that is the truth: written by one rename, refused if a byte of it is not as written.

Masks and statistics are saved the same way. The file is an ordinary safetensors file, so other programs can
read it. Its metadata is one JSON text, `content` (one, since the library puts several in random order and
equal contents shall give equal files), which also holds the kind and a format number. The tensor `sha256`
[32] is the SHA-256 over that text and over names, types, shapes and bytes of all other tensors.

Booleans are stored as bits, eight neurons a byte. Shape letters: F = neurons of a site. Neuron i is bit
`i % 8` of byte `i // 8`, the lowest bit first. The bits behind the last neuron are zero, and reading checks
it, so that equal masks are equal bytes and no bit of a file is without meaning.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nspec_hf.core.errors import ArtifactError
from nspec_hf.core.files import atomic_write

FORMAT = 2
"""The newest format number that this version writes and reads."""

_SUM = "sha256"


def write_artifact(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], kind: str
) -> None:
    """Write the file in one step: a reader of `path` sees the old file or the whole new one.

    Its folder is made where it does not exist. Tensors may lie on any device; `metadata` are anything that
    JSON can hold, under other names than `kind` (what the file is, such as `nspec_masks`) and `format`.

    Raises:
        OSError: If the file cannot be written; a file that was there before is then still whole.
    """
    stated = {**metadata, "kind": kind, "format": FORMAT}
    content = json.dumps(stated, sort_keys=True, ensure_ascii=False, allow_nan=False)
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    stored[_SUM] = _checksum(content, stored)
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(stored, {"content": content}))


def read_artifact(
    path: str | os.PathLike, kind: str, mapped: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that `write_artifact` wrote, and check every byte of it.

    Args:
        path: The file.
        kind: What it must be.
        mapped: Leave the tensors in the file, which the system reads when they are used, once for all
            processes, and may drop when memory is short. `write_artifact` may replace the file meanwhile;
            other programs must not write into it.

    Returns:
        The tensors on the CPU, and the metadata.

    Raises:
        ArtifactError: If the file is cut off, altered, of another kind, or of another format.
        FileNotFoundError: If there is no such file.
    """
    if os.path.isdir(path):
        raise ArtifactError(f"{path} is a folder; give the file in it")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            if not (mapped and os.name == "posix"):  # Windows would not let it be replaced
                tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ArtifactError(
            f"{path} is cut off, altered or no safetensors file, so its SHA-256 is not right ({error}); get "
            "it again"
        ) from None
    stated = _stated(header, path, kind)
    given = tensors.pop(_SUM, None)
    if given is None or not torch.equal(given, _checksum(header["content"], tensors)):
        raise ArtifactError(f"{path} was altered (its SHA-256 differs); get the file again")
    if stated["kind"] != kind:
        raise ArtifactError(f"{path} holds {stated['kind']}, but {kind} is needed; give the right file")
    return tensors, {name: value for name, value in stated.items() if name not in ("kind", "format")}


def _stated(header: Mapping[str, str], path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """Return what the metadata say, which no checksum has confirmed yet."""
    try:
        stated = json.loads(header.get("content", "null"))
    except (ValueError, RecursionError):
        raise ArtifactError(f"the metadata of {path} were altered; get the file again") from None
    if not isinstance(stated, dict) or not str(header.get("kind", stated.get("kind"))).startswith("nspec_"):
        raise ArtifactError(f"{path} was not written by nspec_hf; a file of kind {kind} is needed")
    number = header.get("format", stated.get("format"))
    if number == "1":
        raise ArtifactError(f"{path} has format 1, which this version no longer reads; make it again")
    if not isinstance(number, int) or number < FORMAT:
        raise ArtifactError(f"{path} states the format {number!r}, which does not exist; get the file again")
    if number > FORMAT:
        raise ArtifactError(
            f"{path} has format {number}, this version reads up to {FORMAT}; install a newer nspec_hf"
        )
    return stated


def _checksum(content: str, tensors: Mapping[str, Tensor]) -> Tensor:
    names = sorted(tensors)
    table = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    digest = hashlib.sha256(json.dumps([content, table]).encode())
    for name in names:
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def packed_width(width: int) -> int:
    """Return how many bytes a row of `width` booleans takes."""
    return (width + 7) // 8


def pack(keep_F: Tensor) -> Tensor:
    """Pack booleans [..., F], on any device, into bytes: uint8 [..., ceil(F / 8)] on the CPU.

    Raises:
        TypeError: If the tensor is not boolean.
    """
    if keep_F.dtype != torch.bool:
        raise TypeError(f"only booleans can be packed into bits, got {keep_F.dtype}")
    return torch.from_numpy(np.packbits(keep_F.cpu().numpy(), axis=-1, bitorder="little"))


def unpack(bytes_B: Tensor, width: int) -> Tensor:
    """Return the booleans that `pack` packed: of uint8 [..., ceil(width / 8)], bool [..., width].

    Raises:
        ArtifactError: What `check_packed` raises.
    """
    check_packed(bytes_B, width)
    bits = np.unpackbits(bytes_B.cpu().numpy(), axis=-1, count=width, bitorder="little")
    return torch.from_numpy(bits.view(bool))


def check_packed(bytes_B: Tensor, width: int) -> None:
    """Check that a tensor is what `pack` makes of so many booleans, without unpacking it.

    Raises:
        ArtifactError: If it has another type or shape, or a bit behind the last boolean is set.
    """
    if bytes_B.dtype != torch.uint8 or bytes_B.dim() == 0 or bytes_B.shape[-1] != packed_width(width):
        raise ArtifactError(
            f"packed bits of {width} neurons are uint8 of shape [..., {packed_width(width)}], "
            f"found {bytes_B.dtype} of shape {list(bytes_B.shape)}; make the file again"
        )
    if width % 8 and (bytes_B[..., -1] >> width % 8).any():
        raise ArtifactError(f"bits are set behind the last of {width} neurons; the file was altered")
