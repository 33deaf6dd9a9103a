"""Which requirements of a distribution's extra are not installed, read from its own metadata."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def has_extra(distribution: str, extra: str) -> bool:
    """Whether the installed distribution declares this extra."""
    declared = metadata.metadata(distribution).get_all("Provides-Extra") or []
    return canonicalize_name(extra) in {canonicalize_name(name) for name in declared}


def missing_requirements(distribution: str, extra: str) -> list[str]:
    """Say what an extra still needs.

    Args:
        distribution: an installed distribution.
        extra: one of its extras.

    Returns:
        One text a missing or too old package: "rdkit>=2023.9", "pandas<3 (3.0.1 is installed)".
    """
    missing = []
    for line in metadata.requires(distribution) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        # Without a marker, or true without the extra, it is a plain dependency: the installer's business.
        if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": extra}):
            continue
        if canonicalize_name(requirement.name) == canonicalize_name(distribution):
            for inner in requirement.extras:  # an extra made of other extras
                missing += missing_requirements(distribution, inner)
            continue
        lack = _lack(requirement)
        if lack:
            missing.append(lack)
    return list(dict.fromkeys(missing))


def _lack(requirement: Requirement) -> str | None:
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return wanted
    if requirement.specifier.contains(installed, prereleases=True):
        return None
    return f"{wanted} ({installed} is installed)"
