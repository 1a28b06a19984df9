"""Records that go to other people: no folders of this machine in them, no secrets of addresses. No torch."""

import re
from typing import Any

from lorax_vlm.foreign import shown_address

# A home or an absolute path, up to its last part: of "/home/alice/patients: 6 examples" the name "patients" stays.
_FOLDERS = re.compile(r"""(?<![\w/.:])(?:~[\w.-]*|[A-Za-z]:)?[/\\]{1,2}(?=[^\s/\\])(?:[^/\\:\n'"]+[/\\]+)+""")
_HOME = re.compile(r"(?<![\w/.:])~[\w.-]*[/\\](?=\S)")
_LAST_SLASH = re.compile(r"""(?<=[^\s/\\:])[/\\]+(?=$|['":\n])""")
_ADDRESS = re.compile(r"""[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s'"]+""")


def portable(value: Any) -> Any:
    """A value of a record without places: of paths their last part stays, of addresses what may be shown.

    >>> portable({"data": "/home/alice/patients: 6 examples", "from": "https://me:word@host/a?sig=1"})
    {'data': 'patients: 6 examples', 'from': 'https://host/a?...'}
    """
    if isinstance(value, str):
        return _portable_text(value)
    if isinstance(value, dict):
        return {_portable_text(key) if isinstance(key, str) else key: portable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [portable(part) for part in value]
    return value


def _portable_text(text: str) -> str:
    text = _ADDRESS.sub(lambda found: _of_file(shown_address(found[0])), text)
    return _HOME.sub("", _FOLDERS.sub("", _LAST_SLASH.sub("", text)))


def _of_file(address: str) -> str:
    """``file:`` addresses are paths; ``/x`` of them is left to be shortened like any other."""
    return address.removeprefix("file://") if address.startswith("file:///") else address
