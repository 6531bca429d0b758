"""`tapdisk ls`."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import click

from tapcore.cli.options import image_argument, json_option, opening_options, tap_command
from tapcore.cli.output import print_json, print_line, print_table
from tapcore.interface.access import Access
from tapcore.sizes import format_size
from tapcore.tools.filesystems import FileSystems, open_file_systems

if TYPE_CHECKING:
    from fs_explorer import Entry


@tap_command("ls")
@image_argument(metavar="IMAGE[:PARTITION]")
@click.argument("path", default="/")
@click.option("--long", "-l", is_flag=True, help="With mode, owner, size and time.")
@click.option("--recursive", "-R", is_flag=True, help="Folders below too, with whole paths.")
@json_option
@opening_options
def command(
    image: str, path: str, long: bool, recursive: bool, as_json: bool, access: Access
) -> None:
    """List the files inside IMAGE: what a folder has.

    Needs no root and mounts nothing. Without PARTITION a disk that has several shows them; files
    are below /p1, /p2 and so on then.
    """
    with open_file_systems(image, access) as found:
        if not as_json and path == "/" and not recursive and not _has_root(found):
            _print_volumes(found)
            return
        entries = list(found.entries(path, depth=-1 if recursive else 0))
        if as_json:
            print_json([_as_dict(found, entry) for entry in entries])
        elif long:
            _print_long(found, entries, recursive)
        else:
            for entry in entries:
                print_line(found.shown(entry) if recursive else entry.name)


def _has_root(found: FileSystems) -> bool:
    return len(found.volumes) < 2 or bool(found.home)


def _print_volumes(found: FileSystems) -> None:
    rows = [
        (volume.folder, format_size(volume.size), volume.format or "-", volume.label or "-")
        for volume in found.volumes
    ]
    print_table(("FOLDER", "SIZE", "FORMAT", "LABEL"), rows)


def _print_long(found: FileSystems, entries: list[Entry], recursive: bool) -> None:
    rows = [
        (
            stat.filemode(entry.mode) if entry.mode is not None else entry.type.letter,
            "-" if entry.uid is None else str(entry.uid),
            "-" if entry.gid is None else str(entry.gid),
            "-" if entry.size is None else str(entry.size),
            "-" if entry.mtime is None else f"{entry.mtime:%Y-%m-%d %H:%M}",
            _name(found, entry, recursive),
        )
        for entry in entries
    ]
    if rows:
        print_table(("MODE", "UID", "GID", "SIZE", "TIME (UTC)", "NAME"), rows)


def _name(found: FileSystems, entry: Entry, recursive: bool) -> str:
    name = found.shown(entry) if recursive else entry.name
    if entry.link_target is not None:
        name += f" -> {entry.link_target}"
    return f"{name} ({entry.error})" if entry.error else name


def _as_dict(found: FileSystems, entry: Entry) -> dict[str, object]:
    return {
        "path": found.shown(entry),
        "type": entry.type.value,
        "size": entry.size,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
        "link_target": entry.link_target,
        "error": entry.error,
    }
