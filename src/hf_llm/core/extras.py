"""Optional dependencies: which packages an extra of hf_llm needs, and a clear error where they are missing."""

from functools import cache
from importlib import metadata

from packaging.requirements import Requirement

from hf_llm.core.errors import UserError

DISTRIBUTION = "hf-llm"


def require_extras(*extras: str) -> None:
    """Raise UserError, naming everything that is missing at once, unless the packages of these extras are installed.

    The extras are declared in pyproject.toml; they are read from the metadata of the installed package.
    """
    missing = missing_packages(*extras)
    if missing:
        names = ",".join(extras)
        raise UserError(
            f"this needs packages that are not installed: {', '.join(missing)}. Install them with\n"
            f"  pip install '{DISTRIBUTION}[{names}]'"
        )


@cache  # readers ask once for each file
def missing_packages(*extras: str) -> list[str]:
    """Return the packages of these extras that are not installed, in the order of pyproject.toml."""
    missing = []
    for line in metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            continue  # a dependency of the core
        if not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if not is_installed(requirement.name) and requirement.name not in missing:
            missing.append(requirement.name)
    return missing


def is_installed(package: str) -> bool:
    """Whether a distribution of this name is installed, whatever its version."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
