"""Which archive brings what, and what a start needs of it (contract 06 §10, §11)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.specs import parsed
from trio_compute.errors import SpecError
from trio_compute.model.decode import decode, encode
from trio_compute.model.spec import RemoteExtSpec
from trio_compute.plan.remote_extensions import (
    Platform,
    UnknownExtension,
    control_files,
    is_allowed,
    library_name,
    pg_major,
    preload,
    resolve,
)

PLATFORM = Platform("release-1", "x86_64", 17)


def remote(**changes: Any) -> RemoteExtSpec:
    document = {
        "public_extensions": None,
        "custom_extensions": ["ext"],
        "library_index": {"extlib": "ext", "postgis-3": "postgis"},
        "extension_data": {"ext": {"control_data": {"ext.control": "comment = 'x'"}, "archive_path": "ignored/path"}},
        **changes,
    }
    return decode(encode(document), RemoteExtSpec)


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ("PostgreSQL 14.11", 14),
        ("PostgreSQL 17devel", 17),
        ("PostgreSQL 16beta2", 16),
        ("PostgreSQL 17rc1", 17),
        ("PostgreSQL 15.4 (Ubuntu 15.4-1.pgdg22.04+1)", 15),
        ("PostgreSQL 18.6", 18),
        ("PostgreSQL 14", None),
        ("PostgreSQL 13.1", None),
        ("PostgreSQL 140.1", None),
        ("PostgreSQL devel", None),
        ("", None),
    ],
)
def test_the_major_is_read_from_what_pg_config_says(text: str, major: int | None) -> None:
    """R-22: an unknown one is no error."""
    assert pg_major(text) == major


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("postgis-3.so", "postgis-3"),
        ("postgis-3.so.3", "postgis-3"),
        ("postgis-3.so.3.2.1", "postgis-3"),
        ("postgis-3", "postgis-3"),
        ("my.solver", "my.solver"),
        ("my.solver.so", "my.solver"),
        ("lib.so.x", "lib.so.x"),
        ("$libdir/pg_cron", "pg_cron"),
    ],
)
def test_only_a_trailing_suffix_of_a_library_is_cut(file: str, name: str) -> None:
    """R-23."""
    assert library_name(file) == name


def test_an_extension_has_a_path_of_its_own_and_archive_path_is_ignored() -> None:
    archive = resolve(remote(), "ext", PLATFORM, is_library=False)
    assert archive.path == "release-1/amd64/v17/extensions/ext.tar.zst"
    assert archive.filename == "ext.tar.zst"
    assert archive.sha256 is None


@pytest.mark.parametrize(("machine", "word"), [("aarch64", "arm64"), ("x86_64", "amd64"), ("riscv64", "riscv64")])
def test_architectures_have_the_names_of_the_gateway(machine: str, word: str) -> None:
    assert resolve(remote(), "ext", Platform("latest", machine, 14), is_library=False).path.split("/") == [
        *("latest", word, "v14", "extensions", "ext.tar.zst")
    ]


@pytest.mark.parametrize("file", ["extlib", "extlib.so", "extlib.so.3"])
def test_a_library_leads_to_its_extension(file: str) -> None:
    assert resolve(remote(), file, PLATFORM, is_library=True).extension == "ext"


@pytest.mark.parametrize(
    ("changes", "name", "is_library", "text"),
    [
        ({}, "nolib.so", True, "library nolib is not found"),
        ({"custom_extensions": None}, "ext", False, "extension ext is not found"),
        ({"custom_extensions": [], "public_extensions": []}, "ext", False, "extension ext is not found"),
        ({}, "postgis-3", True, "extension postgis is not found"),
        ({"public_extensions": ["other"]}, "other", False, "real_ext_name other is not found"),
    ],
)
def test_what_is_not_known_or_not_allowed_is_not_found(
    changes: dict[str, Any], name: str, is_library: bool, text: str
) -> None:
    with pytest.raises(UnknownExtension) as raised:
        resolve(remote(**changes), name, PLATFORM, is_library=is_library)
    assert str(raised.value) == text


@given(st.text(max_size=30), st.text(max_size=10))
def test_no_name_leads_outside_of_the_directory_of_extensions(name: str, tag: str) -> None:
    known = RemoteExtSpec(
        library_index={}, extension_data={name: remote().extension_data["ext"]}, public_extensions=[name]
    )
    words = resolve(known, name, Platform(tag, "x86_64", 17), is_library=False).path.split("/")
    assert words[1:4] == ["amd64", "v17", "extensions"]
    assert len(words) == 5
    assert words[4].endswith(".tar.zst")


@pytest.mark.parametrize(
    ("public", "custom", "allowed"),
    [
        (None, None, False),
        (["ext"], None, True),
        (None, ["ext"], True),
        ([], ["ext"], True),
        (["ext"], ["other"], True),
        (["other"], ["other"], False),
    ],
)
def test_one_rule_says_what_is_allowed(public: list[str] | None, custom: list[str] | None, allowed: bool) -> None:
    """R-21: a missing list allows nothing, in resolution as in control files."""
    spec = remote(public_extensions=public, custom_extensions=custom)
    assert is_allowed(spec, "ext") is allowed
    assert [name for name, _ in control_files(spec)] == (["ext.control"] if allowed else [])


@pytest.mark.parametrize(
    "name", ["../evil.control", "/etc/evil.control", "a/b.control", "ext.sql", "..", "", ".control", "x\0.control"]
)
def test_a_control_file_has_a_plain_name(name: str) -> None:
    """R-20."""
    spec = remote(extension_data={"ext": {"control_data": {name: ""}, "archive_path": ""}})
    with pytest.raises(SpecError, match="is not the name of a control file"):
        control_files(spec)


def test_an_extension_that_is_not_allowed_may_have_any_control_file() -> None:
    data = {"other": {"control_data": {"../x": ""}, "archive_path": ""}}
    assert control_files(remote(extension_data=data)) == []


def wanted(conf: str | None = None, setting: str | None = None, **changes: Any) -> tuple[list[str], tuple[str, ...]]:
    cluster: dict[str, Any] = {"roles": [], "databases": [], "postgresql_conf": conf}
    if setting is not None:
        cluster["settings"] = [{"name": "shared_preload_libraries", "value": setting, "vartype": "string"}]
    found = preload(parsed(cluster=cluster), remote(**changes), PLATFORM)
    return [archive.extension for archive in found.archives], found.warnings


@pytest.mark.parametrize(
    "conf",
    [
        "shared_preload_libraries='neon,extlib'",
        "shared_preload_libraries = 'neon, extlib'",
        "shared_preload_libraries = extlib",
        "shared_preload_libraries 'extlib.so'",
        "Shared_Preload_Libraries = '$libdir/extlib'  # why",
        "shared_preload_libraries = 'other'\nshared_preload_libraries = 'extlib'",
    ],
)
def test_every_form_of_the_setting_in_the_file_is_seen(conf: str) -> None:
    """R-24."""
    assert wanted(conf) == (["ext"], ())


@pytest.mark.parametrize(
    "conf",
    [
        "# shared_preload_libraries = 'extlib'",
        "shared_preload_libraries_x = 'extlib'",
        "shared_preload_libraries = 'extlib'\nshared_preload_libraries = 'other'",
        "shared_preload_libraries = 'local'",
        "",
    ],
)
def test_what_is_no_setting_is_not_seen(conf: str) -> None:
    """R-24."""
    assert wanted(conf) == ([], ())


def test_a_library_named_in_both_places_is_wanted_once() -> None:
    """R-16."""
    assert wanted("shared_preload_libraries='extlib,neon'", "neon, extlib.so") == (["ext"], ())


@pytest.mark.parametrize("library", ["neon", "databricks_auth"])
def test_what_comes_with_the_image_is_not_downloaded(library: str) -> None:
    assert wanted(setting=library, library_index={library: "ext"}) == ([], ())


def test_a_library_that_is_not_allowed_is_taken_for_a_local_one() -> None:
    """R-24: a warning, not the end of the start."""
    archives, warnings = wanted(setting="postgis-3,extlib")
    assert archives == ["ext"]
    assert warnings == ("library postgis-3 is preloaded, but extension postgis is not found; it must be there already",)
