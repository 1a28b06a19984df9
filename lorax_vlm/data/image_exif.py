"""How a picture is to be turned, from EXIF that may be damaged. No torch.

Only this one entry is read. A general reader follows every pointer, and a file can make that cost any amount.
"""

import struct

_ORIENTATION = 0x0112
_TYPES = {1: "B", 3: "H", 4: "I"}


def orientation_of(exif: bytes | None) -> int:
    """EXIF's orientation, 1 to 8; 1 when it has none or is damaged, because the picture is sound all the same.

    Args:
        exif: As it lies in a file, with or without ``Exif`` before it.
    """
    if not exif:
        return 1
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(f"{order}HHI", exif, place)
            if tag == _ORIENTATION and kind in _TYPES and values == 1:
                (turn,) = struct.unpack_from(order + _TYPES[kind], exif, place + 8)
                return turn if 1 <= turn <= 8 else 1
    except struct.error:
        return 1
    return 1
