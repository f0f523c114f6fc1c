"""Computed tomography slices in DICOM files: Hounsfield units, windows, patients.

Needs pydicom (the extra ``dicom``), which is imported only when a file is read.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedmlic.errors import InputError, installing

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXEL_TAGS = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth")


class Window(NamedTuple):
    """The range of Hounsfield units that becomes 0 to 255."""

    centre: float
    width: float


class Origin(NamedTuple):
    """Whose slice it is."""

    patient: str
    study: str


def _pydicom() -> Any:  # noqa: ANN401  (pydicom is optional and has no types here)
    try:
        import pydicom
    except ImportError as error:
        msg = f"Expected pydicom to be installed to read DICOM files, got none. Run: {installing('dicom')}."
        raise InputError(msg) from error
    return pydicom


def _unreadable(error: Exception) -> InputError:
    reason = str(error) or type(error).__name__
    return InputError(f"Expected an undamaged DICOM file, got: {reason}. Download it again or leave the image out.")


def origin(path: Path) -> Origin:
    """Patient and study of a file, from its header alone; blank where it does not say.

    Raises:
        InputError: the file is no DICOM file.
    """
    pydicom = _pydicom()
    tags = ["PatientID", "StudyInstanceUID"]
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        return Origin(*(_word(header.get(tag)) for tag in tags))
    except Exception as error:  # pydicom raises exceptions of every type for damaged files
        raise _unreadable(error) from error


def origins(paths: Sequence[Path]) -> tuple[list[Origin | InputError], list[str]]:
    """The origin of each file, or what is wrong with it, and what pydicom warns of, in one line.

    The published files of some challenges break a rule of the standard in every header; a
    warning for each would hide everything else. Warnings are taken from the whole process, so
    nothing else may run meanwhile.
    """
    found: list[Origin | InputError] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for path in paths:
            try:
                found.append(origin(path))
            except InputError as error:
                found.append(error)
    if not caught:
        return found, []
    return found, [f"pydicom warned {len(caught):,} times about headers of the images, first: {caught[0].message}"]


def _word(value: Any) -> str:  # noqa: ANN401  (whatever an element holds)
    """The text of an element, blank where it holds none."""
    return "" if value is None else str(value).strip().strip("\0")


def hounsfield(path: Path, *, fix_intercept: bool) -> tuple[NDArray[np.float32], Window | None]:
    """float32 ``[height, width]`` in Hounsfield units, and the window that the header proposes.

    Args:
        path: an uncompressed monochrome file, or one that the installed pydicom can decode.
        fix_intercept: undo a known fault of some scanners' files: 12 unsigned bits whose
            intercept is above -100 hold values that were shifted by 1000 and wrapped at 4096.

    Raises:
        InputError: the file is damaged, has colours or several frames, cannot be decoded, or
            lacks slope or intercept, without which its values are no Hounsfield units.
    """
    pydicom = _pydicom()
    try:
        file = pydicom.dcmread(path)
        values = np.asarray(file.pixel_array)
        kind = str(file.PhotometricInterpretation)
        bits, signed = int(file.BitsStored), bool(file.PixelRepresentation)
        slope, intercept, centre, width = (_first(file.get(tag)) for tag in PIXEL_TAGS)
    except Exception as error:  # pydicom raises exceptions of every type for damaged files
        raise _unreadable(error) from error
    if values.ndim != 2 or kind != "MONOCHROME2":
        msg = f"Expected one frame of MONOCHROME2, got {kind} {list(values.shape)}. Leave the image out."
        raise InputError(msg)
    if slope is None or intercept is None or not math.isfinite(slope * intercept) or slope == 0:
        got = f"RescaleSlope {slope} and RescaleIntercept {intercept}"
        msg = f"Expected numbers that turn stored values into Hounsfield units, got {got}. Leave the image out."
        raise InputError(msg)
    values = values.astype(np.float32)
    if fix_intercept and bits == 12 and not signed and intercept > -100:
        values, intercept = (values + 1000) % 4096, -1000.0
    proposed = None if centre is None or width is None else Window(centre, width)
    return values * np.float32(slope) + np.float32(intercept), proposed


def _first(value: Any) -> float | None:  # noqa: ANN401  (whatever an element holds)
    """The number of an element that may hold none, one or several."""
    if value is None or value == "":
        return None
    several = hasattr(value, "__getitem__") and not isinstance(value, str)
    return float(value[0] if several else value)


def windowed(values: NDArray[np.float32], window: Window) -> NDArray[np.uint8]:
    """uint8, of the same shape: the window from black to white, everything outside cut.

    >>> windowed(np.array([[-100.0, 0.0, 40.0, 80.0, 999.0]], np.float32), Window(40, 80)).tolist()
    [[0, 0, 128, 255, 255]]
    """
    low = window.centre - window.width / 2
    shares = np.clip((values - low) / window.width, 0, 1)
    return np.asarray(np.round(shares * 255), dtype=np.uint8)
