"""Which versions of what made a figure or an adapter. No torch.

This package's own version is ``lorax_vlm.__version__``, written once in ``lorax_vlm/__init__.py``: it is known wherever
the package can be imported, installed or not.
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from lorax_vlm import __version__

NOT_INSTALLED = "not installed"
_OWN = "lorax-vlm"


def package_version(package: str) -> str:
    """Version of a package, ``not installed`` without it."""
    if package == _OWN:
        return __version__
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions by name of the package."""
    return {package: package_version(package) for package in packages}
