"""One safetensors file that is the truth: written by one rename, refused if a byte of it is not as written.

Masks and statistics are saved the same way. The file is an ordinary safetensors file, so other programs can
read it. In its metadata stand a kind, a format number, a JSON text with all else, and two SHA-256 sums: one
of the tensors' bytes and one of the header itself (with that sum's own 64 digits as zeros), which together
cover every byte. The header is written here and not by the safetensors library because that library puts
metadata in random order: here equal contents give equal files.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from nspec_hf.core.errors import ArtefactError

FORMAT = 1
"""The newest format number that this version writes and reads."""

_UNSIGNED = "0" * 64
_DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_artefact(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], kind: str
) -> None:
    """Write the file in one step: whoever reads `path` sees the old file or the whole new one.

    Args:
        path: The file; its folder is made where it does not exist.
        tensors: What to store; float64, int64, float32, uint8 or bool, on any device.
        metadata: Anything that JSON can hold.
        kind: What the file is, such as `nspec_masks`.

    Raises:
        OSError: If the file cannot be written; a file that was there before is then still whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = _serialise(tensors, metadata, kind)
    # Opened with plain permissions (a mkstemp file would be unreadable for colleagues), in the same folder
    # (only a rename within one file system is atomic).
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read_artefact(path: str | os.PathLike, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that `write_artefact` wrote, and check every byte of it.

    Returns:
        The tensors on the CPU, and the metadata.

    Raises:
        ArtefactError: If the file is cut off, altered, of another kind, or of a newer format.
        FileNotFoundError: If there is no such file.
    """
    content = Path(path).read_bytes()
    end, header = _read_header(content, path)
    stated = header.get("__metadata__")
    if not isinstance(stated, dict) or not str(stated.get("kind", "")).startswith("nspec_"):
        raise ArtefactError(f"{path} was not written by nspec_hf; a file of kind {kind} is needed")
    _check_format(stated.get("format", ""), path)
    _check_sums(content, end, stated, path)
    if stated["kind"] != kind:
        raise ArtefactError(f"{path} holds {stated['kind']}, but {kind} is needed; give the right file")
    try:
        return safetensors.torch.load(content), json.loads(stated["content"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ArtefactError(
            f"{path} has right checksums but cannot be read ({error}); save it again"
        ) from error


def _serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], kind: str) -> bytes:
    # Wide types first, as safetensors does, so that every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    table, parts, start = {}, [], 0
    for name in order:
        tensor = tensors[name].detach().cpu().contiguous()
        part = tensor.numpy().tobytes()
        span = [start, start + len(part)]
        table[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        parts.append(part)
        start += len(part)
    payload = b"".join(parts)
    stated = {
        "content": json.dumps(metadata, sort_keys=True, ensure_ascii=False, allow_nan=False),
        "format": str(FORMAT),
        "kind": kind,
        "metadata_sha256": _UNSIGNED,
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
    }
    text = json.dumps({"__metadata__": stated, **table}, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    unsigned = _sum_field(_UNSIGNED)
    return head.replace(unsigned, _sum_field(hashlib.sha256(head).hexdigest()), 1) + payload


def _sum_field(digest: str) -> bytes:
    return f'"metadata_sha256": "{digest}"'.encode()


def _read_header(content: bytes, path: str | os.PathLike) -> tuple[int, dict[str, Any]]:
    end = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or end > len(content):
        raise ArtefactError(
            f"{path} is cut off or is no safetensors file ({len(content)} bytes); copy or download it again"
        )
    try:
        header = json.loads(content[8:end])
    except ValueError as error:
        raise ArtefactError(
            f"the header of {path} is damaged or it is no safetensors file; get it again"
        ) from error
    if not isinstance(header, dict):
        raise ArtefactError(f"{path} is no safetensors file; get it again")
    return end, header


def _check_format(number: str, path: str | os.PathLike) -> None:
    if not (number.isascii() and number.isdigit()):
        raise ArtefactError(f"{path} states the format {number!r}, which is no number; get the file again")
    if int(number) > FORMAT:
        raise ArtefactError(
            f"{path} has format {number}, this version reads up to {FORMAT}; install a newer nspec_hf"
        )


def _check_sums(content: bytes, end: int, stated: dict[str, str], path: str | os.PathLike) -> None:
    digest = stated.get("metadata_sha256", "")
    unsigned = content[:end].replace(_sum_field(digest), _sum_field(_UNSIGNED), 1)
    if hashlib.sha256(unsigned).hexdigest() != digest:
        raise ArtefactError(f"the metadata of {path} was altered (its SHA-256 differs); get the file again")
    if hashlib.sha256(content[end:]).hexdigest() != stated.get("payload_sha256"):
        raise ArtefactError(
            f"the tensors of {path} were altered or cut off (their SHA-256 differs); get the file again"
        )


def _sync_folder(folder: Path) -> None:
    # Without this a power cut could forget the rename. Windows cannot open a folder.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
