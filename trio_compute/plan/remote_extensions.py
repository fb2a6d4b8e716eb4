"""Which extensions may be downloaded, from where, and which of them a start needs (contract 06 §10, §11)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

from msgspec import Struct

from trio_compute.errors import SpecError
from trio_compute.model.parsed import ParsedSpec
from trio_compute.model.spec import ComputeSpec, RemoteExtSpec
from trio_compute.plan.conf_syntax import effective_settings, fold, split_list

MAJORS = range(14, 19)
PRELOAD_SETTING = "shared_preload_libraries"
# These come with the image of a compute, whatever an index says.
NEVER_DOWNLOADED = frozenset({"neon", "databricks_auth"})
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

# At least one more character must follow the digits, as in `17devel` and `15.4 (Ubuntu…)`.
_VERSION = re.compile(r"PostgreSQL (\d+)[^\d\n].*")
_LIBRARY_SUFFIX = re.compile(r"\.so(?:\.[0-9]+)*\Z")
_LIBRARY_DIRECTORY = "$libdir/"
_LONGEST_FILE_NAME_BYTES = 255


class UnknownExtension(SpecError):
    """Report a library or an extension that the spec does not allow or does not know."""


class Platform(Struct, frozen=True):
    """Say for what an archive must be built: release of Neon, architecture and major version of Postgres."""

    build_tag: str
    architecture: str
    major: int


class Archive(Struct, frozen=True):
    """Name one archive: `path` is relative to the gateway's base URL, `sha256` is hex or None when not known."""

    extension: str
    path: str
    sha256: str | None = None

    @property
    def filename(self) -> str:
        """Return the name of the file, as metrics label it."""
        return f"{self.extension}.tar.zst"


class Preload(Struct, frozen=True):
    """Hold the archives that must be there before Postgres starts, and what a person should know about the others."""

    archives: tuple[Archive, ...] = ()
    warnings: tuple[str, ...] = ()


def pg_major(version: str) -> int | None:
    """Return the major of what `pg_config --version` says, or None if it is not one that archives exist for (R-22)."""
    match = _VERSION.match(version)
    major = int(match[1]) if match else 0
    return major if major in MAJORS else None


def library_name(file: str) -> str:
    """Return the name under which a library is indexed: without `$libdir/` and a trailing `.so` or `.so.1.2` (R-23)."""
    return _LIBRARY_SUFFIX.sub("", file.removeprefix(_LIBRARY_DIRECTORY))


def is_allowed(remote: RemoteExtSpec, extension: str) -> bool:
    """Tell whether an extension may be used: listed as public or as custom, where no list is an empty one (R-21)."""
    return extension in (remote.public_extensions or ()) or extension in (remote.custom_extensions or ())


def resolve(remote: RemoteExtSpec, name: str, platform: Platform, *, is_library: bool) -> Archive:
    """Return the archive that brings an extension or a library; raise UnknownExtension (06 §10.2)."""
    extension = name
    if is_library:
        library = library_name(name)
        if library not in remote.library_index:
            raise UnknownExtension(f"library {library} is not found")
        extension = remote.library_index[library]
    if not is_allowed(remote, extension):
        raise UnknownExtension(f"extension {extension} is not found")
    if extension not in remote.extension_data:
        raise UnknownExtension(f"real_ext_name {extension} is not found")
    return Archive(extension, _path(extension, platform), remote.extension_data[extension].archive_sha256)


def _path(extension: str, platform: Platform) -> str:
    architecture = ARCHITECTURES.get(platform.architecture, platform.architecture)
    # No name of the spec may become another path: a slash in it is escaped, and with the suffix it cannot be `..`.
    words = (platform.build_tag, architecture, f"v{platform.major}", "extensions", f"{extension}.tar.zst")
    return "/".join(quote(word, safe="", errors="replace") for word in words)


def control_files(remote: RemoteExtSpec) -> list[tuple[str, str]]:
    """Return name and text of the control files of all allowed extensions, each name once, the first one counting.

    Raises SpecError for a name that is not that of a plain file ending in `.control` (R-20).
    """
    files: dict[str, str] = {}
    for extension, data in remote.extension_data.items():
        if is_allowed(remote, extension):
            for name, text in data.control_data.items():
                if not _is_control_file(name):
                    path = f"remote_extensions.extension_data.{extension}.control_data"
                    raise SpecError(f"{name[:100]!r} is not the name of a control file", path=path)
                files.setdefault(name, text)
    return list(files.items())


def _is_control_file(name: str) -> bool:
    if not name.endswith(".control") or name.startswith(".") or set(name) & set("/\0"):
        return False
    return len(name.encode(errors="replace")) <= _LONGEST_FILE_NAME_BYTES


def preload(parsed: ParsedSpec, remote: RemoteExtSpec, platform: Platform) -> Preload:
    """Return what the preloaded libraries need (06 §11); libraries that are not indexed are taken for local ones.

    One that is indexed but not allowed is a warning and taken for a local one too (R-24).
    """
    archives: dict[str, Archive] = {}
    warnings = []
    for library in dict.fromkeys(map(library_name, _preload_libraries(parsed.spec))):
        if library in NEVER_DOWNLOADED or library not in remote.library_index:
            continue
        try:
            archive = resolve(remote, library, platform, is_library=True)
        except UnknownExtension as error:
            warnings.append(f"library {library} is preloaded, but {error}; it must be there already")
        else:
            archives[archive.path] = archive
    return Preload(tuple(archives.values()), tuple(warnings))


def _preload_libraries(spec: ComputeSpec) -> Iterator[str]:
    for option in spec.cluster.settings or ():
        if fold(option.name) == PRELOAD_SETTING:
            yield from split_list(option.value or "")
    if spec.cluster.postgresql_conf is not None:
        yield from split_list(effective_settings(spec.cluster.postgresql_conf).get(PRELOAD_SETTING, ""))
