"""Reading and writing images, label maps and float maps that are whole.

Readers accept files that are not: SimpleITK returns zeros, or arbitrary memory, for the rest of a `.nii`, `.nii.gz` or
`.gipl` that was cut short, ignores checksums, replaces NaN by 0 in NIfTI, and follows headers that refer to other
files. Every image, mask and map of the package is therefore read here: by nnU-Net's reader-writer of the dataset, after
:func:`check_file`.
"""

from __future__ import annotations

import gzip
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import nibabel
import numpy as np
import SimpleITK as sitk
from isal import igzip

from nnunetv2_deferral.arrays import chunks_of
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import written_whole
from nnunetv2_deferral.labels import unknown_labels

_CHUNK_BYTES = 2**22
_GZIP_HEADER_BYTES = 2**16  # more than its names and comments take
_MAX_TRAILING_BYTES = 2**20
_MAX_HEADER_BYTES = 2**24  # NIfTI extensions may hold whole DICOM headers
_GIPL_HEADER_BYTES = 256
_MAX_VOXEL_BYTES = 8
_INTEGER_SCALE = {".png": 65535, ".tif": 65535, ".bmp": 255}
_NIFTI_SCALE = 65535
_NIFTI_SLOPE = 112  # the place of scl_slope and scl_inter in the header
_COMPRESSION = 3  # isal's highest level, which takes a fifth of the time of gzip's lowest for nearly the same size
_GIPL_MAGIC = (b"\x2a\xe3\x89\xb8", b"\xef\xff\xe9\xb0")


_Stream: TypeAlias = IO[bytes] | gzip.GzipFile


class MaskReader(Protocol):
    """The part of nnU-Net's reader-writers that reads a label map."""

    def read_seg(self, seg_fname: str) -> tuple[np.ndarray, dict[str, Any]]:
        """The label map (1, *S) and its properties."""


class MaskWriter(Protocol):
    """The part of nnU-Net's reader-writers that writes a label map."""

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict[str, Any]) -> None:
        """Write a label map with the geometry in `properties`."""


class ImageReader(MaskReader, Protocol):
    """The part of nnU-Net's reader-writers that reads."""

    def read_images(self, image_fnames: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """The image (C, *S) and its properties."""


def read_image(files: Sequence[Path], reader: ImageReader) -> np.ndarray:
    """The image, float32 (C, *S), whose channels are in these files.

    Raises:
        InputError: If there is no file, or one is missing, cut short or cannot be read; the message names it.
    """
    if not files:
        raise InputError("an image needs at least one file")
    for file in files:
        check_file(file)
    return _read(files[0], lambda: reader.read_images([str(file) for file in files]))[0]


def read_values(file: Path, reader: MaskReader) -> tuple[np.ndarray, dict[str, Any]]:
    """A map of finite real numbers with one channel, in nnU-Net's dtype (float32), and its properties.

    Raises:
        InputError: If the file is missing, cut short, cannot be read, has several channels, or holds NaN, infinite or
            complex numbers; the message names it.
    """
    check_file(file, finite=True)
    values, properties = _read(file, lambda: reader.read_seg(str(file)))
    if values.ndim != 4 or values.shape[0] != 1:
        raise InputError(f"{file} is not a map with one channel: nnU-Net reads shape {values.shape}")
    if not np.isfinite(values).all():
        raise InputError(f"{file} contains numbers that are not finite")
    return values[0], properties


def read_labels(
    file: Path, reader: MaskReader, known: Iterable[int | None], listed_in: str = "dataset.json"
) -> tuple[np.ndarray, dict[str, Any]]:
    """A label map in the axis order of nnU-Net's readers, int16 or if the labels do not fit int64, and its properties.

    Args:
        file: The file.
        reader: nnU-Net's reader-writer of the dataset.
        known: The labels that may occur; None is ignored.
        listed_in: Where these are listed, for the message.

    Raises:
        InputError: As :func:`read_values`, and naming the values that are not among `known`.
    """
    known = tuple(known)
    values, properties = read_values(file, reader)
    if unknown := unknown_labels(values, known):
        raise InputError(f"{file} contains labels that are not in {listed_in}: {unknown}")
    largest = max((label for label in known if label is not None), default=0)
    return values.astype(np.int16 if largest <= np.iinfo(np.int16).max else np.int64), properties


def write_labels(array: np.ndarray, file: Path, writer: MaskWriter, properties: dict[str, Any]) -> None:
    """Write a label map or map whole or not at all, with nnU-Net's reader-writer; what is there is replaced.

    ITK reports no error if the disk is full, so the file is checked before it gets its name.

    Args:
        array: (Z, Y, X) or (1, Y, X).
        file: The file, in a folder that is created if necessary.
        writer: nnU-Net's reader-writer of the dataset.
        properties: nnU-Net's properties of the image or mask, which contain its geometry.

    Raises:
        InputError: If the file cannot be written, or not completely.
    """
    with written_whole(file.parent) as scratch:
        writer.write_seg(array, str(scratch / file.name), properties)
        check_written(scratch / file.name, file)


def integer_scale(file_ending: str, shape: Sequence[int]) -> int | None:
    """The integer that stands for the highest possible value in a map of this shape, None if files hold the values.

    Formats of nnU-Net's reader for natural images hold integers only, in 2D.
    """
    # nnU-Net looks endings up in lower case too.
    return _INTEGER_SCALE.get(file_ending.lower()) if shape[0] == 1 else None


def write_values(
    values: np.ndarray,
    highest: float,
    file: Path,
    writer: MaskWriter,
    properties: dict[str, Any],
    *,
    keep_positive: bool = False,
) -> None:
    """Write a map of numbers in [0, highest], as :func:`write_labels` writes label maps.

    As integers in formats that hold nothing else (:func:`integer_scale`); in NIfTI as 16-bit integers with the scale in
    the header, which readers and viewers apply, in half the space and time of float32; in other formats as float32.

    Args:
        values: float32 (Z, Y, X) or (1, Y, X).
        highest: The highest possible value.
        file: The file, whose name ends as nnU-Net's.
        writer: nnU-Net's reader-writer of the dataset.
        properties: nnU-Net's properties of the image or mask.
        keep_positive: Whether positive numbers below half a step become one step instead of 0.

    Raises:
        InputError: If the file cannot be written, or not completely.
    """
    compressed, plain = (file.name.lower().endswith(ending) for ending in (".nii.gz", ".nii"))
    scale = _NIFTI_SCALE if compressed or plain else integer_scale(file.suffix, values.shape)
    if scale is None:
        write_labels(values.view(_Typed), file, writer, properties)
        return
    integers = _in_steps(values, scale / (highest or 1), scale, keep_positive=keep_positive)  # zeros have any scale
    if not (compressed or plain):
        write_labels(integers.view(_Typed), file, writer, properties)
        return
    with written_whole(file.parent) as scratch:
        unscaled = scratch / "unscaled.nii"
        writer.write_seg(integers.view(_Typed), str(unscaled), properties)
        check_written(unscaled, file)  # all that follows is written by Python, which reports errors
        with unscaled.open("r+b") as header:
            header.seek(_NIFTI_SLOPE)
            header.write(struct.pack("=ff", (highest or 1) / scale, 0))
        if compressed:
            with (
                unscaled.open("rb") as source,
                (scratch / file.name).open("wb") as target,
                igzip.IGzipFile("", "wb", _COMPRESSION, target, mtime=0) as squeezed,  # type: ignore[no-untyped-call] # the same bytes at any time
            ):
                shutil.copyfileobj(source, squeezed, _CHUNK_BYTES)
            unscaled.unlink()
        else:
            unscaled.rename(scratch / file.name)


def _in_steps(values: np.ndarray, per_unit: float, most: int, *, keep_positive: bool) -> np.ndarray:
    """Numbers as integers, at most `most`, of the shortest type that holds it; in chunks, which takes less memory."""
    flat, found = values.reshape(-1), np.empty(values.size, np.min_scalar_type(most))
    for part in chunks_of(flat.size):
        some = flat[part]
        steps = some * np.float32(per_unit)
        np.rint(steps, out=steps)
        if keep_positive:
            np.maximum(steps, some > 0, out=steps)
        found[part] = np.minimum(steps, most, out=steps)
    return found.reshape(values.shape)


class _Typed(np.ndarray):
    """An array that keeps its dtype when nnU-Net's writers cast a mask to unsigned integers."""

    def astype(self, *_args: Any, **_kwargs: Any) -> np.ndarray:
        return np.asarray(self)


def check_written(written: Path, file: Path) -> None:
    """Check a file that was just written, before it is moved to its place.

    Raises:
        InputError: If it is not complete; the message names `file`, its place.
    """
    try:
        check_file(written)
    except InputError as error:
        raise InputError(f"{file} cannot be written completely: is the disk full?") from error


def check_file(file: Path, *, finite: bool = False) -> None:
    """Check that an image file has the format of its ending, is complete, and holds its data itself.

    Compressed files (NIfTI, NRRD, MetaImage) are decompressed once, which compares their checksums. Endings that
    nnU-Net does not read pass.

    Args:
        file: The file.
        finite: Whether to refuse NaN and infinite numbers in NIfTI, which SimpleITK would read as 0.

    Raises:
        InputError: If it is missing or fails a check; the message names it.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing")
    name = file.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            fault = _nifti_fault(file, finite)
        else:
            fault = next((check(file) for ending, check in _CHECKS.items() if name.endswith(ending)), "")
    except Exception as error:  # each format has its own, such as zlib.error, TiffFileError, ITK's RuntimeError
        raise InputError(f"{file} cannot be read; is it complete? ({reason_of(error)})") from error
    if fault:
        raise InputError(f"{file} {fault}")


def itk_header(file: Path) -> sitk.ImageFileReader:
    """The header of an image file, without its voxels.

    Raises:
        RuntimeError: If ITK cannot read it, see :func:`reason_of`.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return reader


def read_itk(file: Path) -> sitk.Image:
    """An image file as ITK reads it.

    Raises:
        InputError: If it is missing, cut short or cannot be read; the message names it.
    """
    check_file(file)
    try:
        return sitk.ReadImage(str(file))
    except RuntimeError as error:
        raise InputError(f"{file} cannot be read: {reason_of(error)}") from error


def write_itk(image: sitk.Image, file: Path) -> None:
    """Write an image, compressed, and check that it is complete.

    Raises:
        OSError: If ITK cannot write it.
        InputError: If it is not complete.
    """
    try:
        sitk.WriteImage(image, str(file), True)
    except RuntimeError as error:
        raise OSError(f"{file} cannot be written: {reason_of(error)}") from error
    check_written(file, file)


def reason_of(error: Exception) -> str:
    """The line of an error that gives its cause, without the places in ITK's own source that precede it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if isinstance(error, RuntimeError) else lines[0])[:200] if lines else type(error).__name__


def _read(file: Path, read: Callable[[], tuple[np.ndarray, dict[str, Any]]]) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        return read()
    except Exception as error:  # readers fail in their own ways on a file that is cut short or of another kind
        raise InputError(f"{file} cannot be read; is it complete? ({reason_of(error)})") from error


def _nifti_fault(file: Path, finite: bool) -> str:
    is_compressed = file.name.lower().endswith(".gz")
    if is_compressed:
        with file.open("rb") as raw:  # compares the checksum of the gzip header, if it has one, as ITK does
            zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(raw.read(_GZIP_HEADER_BYTES), 1)
    with file.open("rb") as raw, gzip.GzipFile(fileobj=raw) if is_compressed else raw as stream:
        try:
            header = _nifti_header(stream)
            offset = 0 if header is None else int(header["vox_offset"])
        except Exception as error:  # nibabel's own kinds of error, and numpy's for impossible sizes
            if isinstance(error, OSError | EOFError | zlib.error):
                raise
            return f"is not a NIfTI file: {reason_of(error)}"
        if header is None or not 0 <= offset < _MAX_HEADER_BYTES:
            return "is not a NIfTI file that contains its own data"
        dtype = header.get_data_dtype()
        if dtype.kind == "c":
            return "contains complex numbers"
        size = int(np.prod(header.get_data_shape(), dtype=object)) * dtype.itemsize
        stream.seek(offset)
        remaining, chunk_bytes = size, _CHUNK_BYTES // dtype.itemsize * dtype.itemsize
        while remaining > 0:
            chunk = _read_exactly(stream, min(remaining, chunk_bytes))
            if len(chunk) < min(remaining, chunk_bytes):
                missing = remaining - len(chunk)
                return f"is incomplete: {missing} of {size} bytes of voxels are missing"
            if finite and dtype.kind == "f" and not np.isfinite(np.frombuffer(chunk, dtype)).all():
                return "contains numbers that are not finite"
            remaining -= len(chunk)
        # Reading to the end compares the checksum of a compressed file.
        if len(_read_exactly(stream, _MAX_TRAILING_BYTES + 1)) > _MAX_TRAILING_BYTES:
            return f"contains more than the {size} bytes of voxels of its header"
    return ""


def _nifti_header(stream: _Stream) -> Any:
    """The header of a single-file NIfTI-1 or -2, None for anything else."""
    block = _read_exactly(stream, 540)
    kinds: tuple[tuple[Any, int, bytes], ...] = (
        (nibabel.Nifti1Header, 344, b"n+1\0"),
        (nibabel.Nifti2Header, 4, b"n+2\0"),
    )
    for kind, magic_at, magic in kinds:
        length = kind.template_dtype.itemsize
        if block[magic_at : magic_at + 4] == magic and len(block) >= length:
            return kind(block[:length])
    if len(block) < 348:
        raise EOFError("the header is incomplete")
    return None


def _read_exactly(stream: _Stream, length: int) -> bytes:
    parts = []
    while length > 0 and (part := stream.read(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _gipl_fault(file: Path) -> str:
    with file.open("rb") as stream:
        header = stream.read(_GIPL_HEADER_BYTES)
    if header[-4:] not in _GIPL_MAGIC:
        return "is not a complete GIPL file"
    return _raw_fault(file, _GIPL_HEADER_BYTES)


def _nrrd_fault(file: Path) -> str:
    with file.open("rb") as stream:
        fields = dict(_header_fields(stream, b":"))
        if not any(key.startswith(b"nrrd000") for key in fields):
            return "is not an NRRD file"
        if b"datafile" in fields:
            return "refers to another file for its data"
        if fields.get(b"encoding") in (b"gzip", b"gz"):
            return _complex_fault(file) or _stream_fault(file, stream, zlib.MAX_WBITS | 16)
    return _complex_fault(file)


def _metaimage_fault(file: Path) -> str:
    with file.open("rb") as stream:
        fields = dict(_header_fields(stream, b"=", last=b"elementdatafile"))
        if b"elementdatafile" not in fields:
            return "is not a complete MetaImage file"
        if fields[b"elementdatafile"] != b"local":
            return "refers to another file for its data"
        if fields.get(b"compresseddata") == b"true":
            return _complex_fault(file) or _stream_fault(file, stream, zlib.MAX_WBITS)
        is_text = fields.get(b"binarydata") == b"false"
        # SimpleITK before 2.4 fills what is missing with what is in memory.
        return _complex_fault(file) or ("" if is_text else _raw_fault(file, stream.tell()))


def _raw_fault(file: Path, start: int) -> str:
    """Compare the size of a file with that of its uncompressed voxels, which begin at `start`."""
    information = itk_header(file)
    voxel = sitk.GetArrayFromImage(sitk.Image([1] * information.GetDimension(), information.GetPixelID()))
    number = int(np.prod(information.GetSize(), dtype=object)) * information.GetNumberOfComponents()
    expected, present = start + number * voxel.itemsize, file.stat().st_size
    return f"is incomplete: {expected - present} of {expected} bytes are missing" if present < expected else ""


def _header_fields(stream: IO[bytes], separator: bytes, last: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a text header, in lower case, up to an empty line or a last key; the data follow."""
    while stream.tell() < _MAX_HEADER_BYTES and (line := stream.readline(_MAX_HEADER_BYTES)).strip():
        key, _, value = line.lower().partition(separator)
        key = key.replace(b" ", b"").strip()
        yield key, value.strip()
        if key == last:
            return


def _complex_fault(file: Path) -> str:
    is_complex = itk_header(file).GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)
    return "contains complex numbers" if is_complex else ""


def _stream_fault(file: Path, stream: IO[bytes], wbits: int) -> str:
    """Decompress to the end, where the checksum is, but not more than the volume of the header."""
    information = itk_header(file)
    most = int(np.prod(information.GetSize(), dtype=object)) * information.GetNumberOfComponents() * _MAX_VOXEL_BYTES
    data, length = zlib.decompressobj(wbits), 0
    while not data.eof:
        chunk = data.unconsumed_tail or stream.read(_CHUNK_BYTES)
        if not chunk:
            return "is incomplete: its compressed data have no end"
        length += len(data.decompress(chunk, _CHUNK_BYTES))
        if length > most + _MAX_TRAILING_BYTES:
            return "contains more than the volume of its header"
    return ""


def _signature_fault(*signatures: bytes) -> Callable[[Path], str]:
    def fault(file: Path) -> str:
        with file.open("rb") as stream:
            start = stream.read(8)
        return "" if start.startswith(signatures) else f"is not a file of the format {file.suffix}"

    return fault


_TIFF = _signature_fault(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CHECKS: dict[str, Callable[[Path], str]] = {
    ".gipl": _gipl_fault,
    ".nrrd": _nrrd_fault,
    ".mha": _metaimage_fault,
    ".png": _signature_fault(b"\x89PNG\r\n\x1a\n"),
    ".bmp": _signature_fault(b"BM"),
    ".tif": _TIFF,
    ".tiff": _TIFF,
}
