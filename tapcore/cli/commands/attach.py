"""`tapdisk attach`."""

from __future__ import annotations

import click

from tapcore.cli.ofdaemon import daemon_client, run_dir_option
from tapcore.cli.options import (
    cache_option,
    completes,
    filter_option,
    image_argument,
    json_option,
    ring_option,
    tap_command,
)
from tapcore.cli.output import print_json
from tapcore.cli.sizes import metadata_cache_option
from tapcore.interface.options import CacheMode


@tap_command("attach")
@image_argument()
@click.option(
    "--name", metavar="NAME", help="Of the disk, and of its export.  [default: the image's]"
)
@click.option("--read-only", "-r", is_flag=True, help="Refuse writes.")
@click.option(
    "--nbd",
    metavar="SOCKET|PORT",
    default="",
    shell_complete=completes("file"),
    help="Serve it on this Unix socket, or on this TCP port ([ADDR:]PORT; of 127.0.0.1, if nothing "
    "else is said).  [default: a socket in the run directory]",
)
@ring_option
@filter_option
@cache_option
@metadata_cache_option
@click.option(
    "--parents",
    multiple=True,
    shell_complete=completes("parents"),
    metavar="DIR|any|none",
    help="Where a file that an image names (parent, data file, extent) may lie, besides the "
    "directory tree of the image itself; HANDLE: allows a parent that is no file. Repeatable.",
)
@click.option(
    "--key-file",
    "key_files",
    multiple=True,
    shell_complete=completes("key_file"),
    metavar="[IMAGE=]FILE",
    help="The passphrase of encrypted images, or of one IMAGE of the chain: the content of FILE "
    "without a newline at its end. Repeatable.",
)
@click.option(
    "--fixed",
    is_flag=True,
    help="No live changes: it is not paused, and no other image takes its place.",
)
@run_dir_option
@json_option
def command(
    image: str,
    name: str | None,
    read_only: bool,
    nbd: str,
    ring: str,
    filters: tuple[str, ...],
    cache: CacheMode,
    metadata_cache: int | None,
    parents: tuple[str, ...],
    key_files: tuple[str, ...],
    fixed: bool,
    run_dir: str | None,
    as_json: bool,
) -> None:
    """Let the daemon serve an image over NBD, in a process of its own; prints the NBD URI."""
    from tapcore.cli.settings import parents_set

    with daemon_client(run_dir) as client:
        disk = client.attach(
            image,
            name=name,
            nbd=nbd,
            ring=ring,
            readonly=read_only,
            filters=filters,
            cache=cache,
            metadata_cache=metadata_cache,
            parents=parents or parents_set(),
            key_files=key_files,
            fixed=fixed,
        )
    if disk["unrecognised"]:  # the disk's process has told only the daemon's log
        from tapcore.tools.unrecognised import tell_of_unrecognised

        tell_of_unrecognised(image)
    if as_json:
        print_json(disk)
    else:
        click.echo(disk["uri"])
