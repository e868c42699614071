"""Tensors of a PyTorch file (.pth, .pt, .bin, .ckpt), without running anything that the file asks for.

Two checks come before ``torch.load(weights_only=True)``: the archive has no more bytes than the file, and its pickle
names nothing but tensors.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from stvae.checkpoints.files import WeightsError, describe, open_file, read_bytes, size_bytes
from stvae.checkpoints.tensor_header import MAX_FILE_BYTES

if TYPE_CHECKING:
    from torch import Tensor

ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
MAX_PICKLE_BYTES = 8 << 20
"""Largest pickle that describes the tensors. A thousand tensors take 0.1 MB."""
MAX_ZIP_DIRECTORY_BYTES = 16 << 20
"""Largest directory of an archive. A thousand tensors take 0.1 MB."""
MAX_ENTRIES = 1 << 16
ALLOWED_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch\.nn\.parameter Parameter"
    r"|torch Size|torch \w+Storage|torch\.storage (Typed|Untyped)Storage|torch b?float\d+|torch u?int\d+|torch bool"
)
"""Pattern of the modules and names in the pickle of a plain dictionary of tensors."""
LEGACY_PICKLES = 5
"""Number of pickles in front of the tensors in files from before PyTorch 1.6."""
WRAPPERS = ("state_dict", "model", "module")
"""Names under which training programs keep the weights."""
MAX_WRAPPERS = 4


class UnsafePickle(WeightsError):
    """A pickle needs more than tensors and plain values, and could run code."""


def is_pickled(first_bytes: bytes) -> bool:
    """Return True if a file with these first bytes is a zip archive or a pickle."""
    return first_bytes.startswith((ZIP_START, PICKLE_START))


def load_pickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch file by name. Those of an archive are read from disk when they are used.

    WeightsError if the file is damaged, or needs more than tensors.
    """
    import torch

    with open_file(path) as file:
        if size_bytes(file) > MAX_FILE_BYTES:
            raise WeightsError(
                f"'{path}' has {size_bytes(file)} bytes; files of at most {MAX_FILE_BYTES} bytes are read"
            )
        is_archive = file.peek(4)[:4] == ZIP_START
        if is_archive:
            _check_pickle(_pickle_of_archive(file, path), path)
        else:
            _check_pickle(file.read(MAX_PICKLE_BYTES), path, LEGACY_PICKLES)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # torch raises anything for a damaged file
        raise WeightsError(f"'{path}' cannot be read as a PyTorch file: {describe(error)}; download it again") from None
    return _tensors_of(loaded, path)


def load_values(content: bytes, name: str) -> Any:
    """Return the tensors and plain values that ``torch.save`` wrote. Nothing that the content asks for is run.

    ``name``: the file's, for messages. UnsafePickle if it needs more than that, WeightsError if it is damaged or a tensor
    claims more values than there are.
    """
    import torch

    path, is_archive = Path(name), content.startswith(ZIP_START)
    if is_archive:
        _check_pickle(_pickle_of_archive(io.BytesIO(content), path), path)
    else:
        _check_pickle(content[:MAX_PICKLE_BYTES], path, LEGACY_PICKLES)
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything for a damaged file
        raise WeightsError(f"'{path}' cannot be read as a PyTorch file: {describe(error)}") from None
    for key, value in loaded.items() if isinstance(loaded, dict) else ():
        if isinstance(value, torch.Tensor):
            _check_storage(str(key), value, path)
    return loaded


def _pickle_of_archive(file: BinaryIO, path: Path) -> bytes:
    """Return the pickle inside an archive. WeightsError if the archive is damaged or could grow when it is read."""
    damaged = f"'{path}' is a damaged or incomplete PyTorch archive; download it again"
    file_bytes = file.seek(0, io.SEEK_END)
    _check_directory_size(file, path, damaged)
    try:
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise WeightsError(f"'{path}' has compressed parts, which PyTorch never writes; save it with torch.save")
        if len(entries) > MAX_ENTRIES or sum(entry.file_size for entry in entries) > file_bytes:
            raise WeightsError(f"'{path}' claims to hold more than its own {file_bytes} bytes; download it again")
        names = {entry.filename.partition("/")[2] for entry in entries}
        if "constants.pkl" in names:
            raise WeightsError(f"'{path}' is a TorchScript program; expected a file that torch.save wrote")
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise WeightsError(f"'{path}' is a zip archive without tensors; expected a file that torch.save wrote")
        if pickles[0].file_size > MAX_PICKLE_BYTES:
            raise WeightsError(
                f"'{path}' has a pickle of {pickles[0].file_size} bytes; expected at most {MAX_PICKLE_BYTES} bytes"
            )
        pickles[0].CRC = None  # type: ignore[assignment]  # PyTorch can be told to write none
        return archive.read(pickles[0])
    except WeightsError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error):
        raise WeightsError(damaged) from None


def _check_directory_size(file: BinaryIO, path: Path, damaged: str) -> None:
    """Raise WeightsError if the directory of an archive is missing or too large to be read."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - (1 << 16) - 22, 0))
    end = read_bytes(file, path, size - file.tell())
    at = end.rfind(b"PK\x05\x06")
    if at < 0 or len(end) - at < 22:
        raise WeightsError(damaged)
    entries, directory_bytes = struct.unpack("<HI", end[at + 10 : at + 16])
    at64 = end.rfind(b"PK\x06\x06", 0, at)
    if entries == 0xFFFF or directory_bytes == 0xFFFFFFFF:
        if at64 < 0 or len(end) - at64 < 56:
            raise WeightsError(damaged)
        (directory_bytes,) = struct.unpack("<Q", end[at64 + 40 : at64 + 48])
    if directory_bytes > MAX_ZIP_DIRECTORY_BYTES:
        raise WeightsError(f"'{path}' has a directory of {directory_bytes} bytes; no checkpoint has that many parts")
    file.seek(0)


def _check_pickle(data: bytes, path: Path, count: int = 1) -> None:
    """Raise WeightsError unless ``count`` pickles at the start of ``data`` name tensors only."""
    stream = io.BytesIO(data)
    try:
        for _ in range(count):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STACK_GLOBAL":
                    raise UnsafePickle(
                        f"'{path}' is a pickle of another program; expected a file that torch.save wrote"
                    )
                if opcode.name in ("GLOBAL", "INST") and not ALLOWED_NAMES.fullmatch(str(argument)):
                    raise UnsafePickle(
                        f"'{path}' needs '{str(argument)[:100].replace(' ', '.')}' to be read, but a checkpoint may hold "
                        "tensors only and its code is never run; save its state dict as safetensors"
                    )
    except WeightsError:
        raise
    except (ValueError, EOFError, IndexError, struct.error):
        raise WeightsError(f"'{path}' is not a PyTorch file, or is damaged; download it again") from None


def _tensors_of(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of what a file holds, which may be inside ``state_dict`` or the like."""
    import torch

    for _ in range(MAX_WRAPPERS):
        inner = [name for name in WRAPPERS if isinstance(loaded, dict) and isinstance(loaded.get(name), dict)]
        loaded = loaded[inner[0]] if inner else loaded
    if not isinstance(loaded, dict):
        raise WeightsError(f"'{path}' holds a {type(loaded).__name__}; expected a dictionary of tensors")
    tensors = {str(name): value.detach() for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise WeightsError(f"'{path}' holds no tensors by name; expected the weights of a VAE")
    for name, tensor in tensors.items():
        _check_storage(name, tensor, path)
    return tensors


def _check_storage(name: str, tensor: Tensor, path: Path) -> None:
    """Raise WeightsError for a tensor that has more values than the file: by repeating them, or because it is sparse."""
    import torch

    stored_bytes = tensor.untyped_storage().nbytes() if tensor.layout == torch.strided else -1
    if tensor.numel() * tensor.element_size() > stored_bytes:
        raise WeightsError(f"tensor '{name}' in '{path}' claims more values than the file has; download it again")
