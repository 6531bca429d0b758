"""`tapdisk bench`."""

from __future__ import annotations

import attrs
import click

from tapcore.cli.options import (
    cache_option,
    filter_option,
    image_argument,
    json_option,
    opening_options,
    progress_option,
    quiet_option,
    tap_command,
)
from tapcore.cli.output import can_show, print_json, print_pairs
from tapcore.cli.progress import Style, progress
from tapcore.cli.sizes import Size, metadata_cache_option
from tapcore.errors import UsageError
from tapcore.interface.access import Access
from tapcore.interface.options import CacheMode
from tapcore.interface.registry import default_registry
from tapcore.opening.names import split_name
from tapcore.sizes import format_size
from tapcore.tools.bench import PATTERNS, BenchResult, Pattern, Workload, bench_disk
from tapcore.tools.openimage import open_image


@tap_command("bench")
@image_argument()
@click.option(
    "--rw", type=click.Choice(PATTERNS), default="randread", show_default=True, help="What to do."
)
@click.option("--bs", type=Size(), default="4K", show_default=True, help="Bytes a request.")
@click.option(
    "--depth",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="Requests in flight.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01),
    default=5,
    show_default=True,
    help="How long, at most.",
)
@click.option("--size", type=Size(), help="How many bytes to move, at most.")
@click.option("--force", is_flag=True, help="Write, and destroy what the image holds.")
@filter_option
@cache_option
@metadata_cache_option
@json_option
@opening_options
@progress_option
@quiet_option
def command(
    image: str,
    rw: Pattern,
    bs: int,
    depth: int,
    seconds: float,
    size: int | None,
    force: bool,
    filters: tuple[str, ...],
    cache: CacheMode,
    metadata_cache: int | None,
    as_json: bool,
    access: Access,
    progress_style: Style,
    quiet: bool,
) -> None:
    """Drive IMAGE in-process, through the driver interface and without a server.

    Writing destroys what an image holds, so it needs --force besides --rw write or randwrite; a
    disk in memory (ram:64M) does not.
    """
    work = Workload(rw, bs, depth, seconds, size)
    if work.writes and not force:
        _refuse_to_destroy(image)
    with (
        open_image(
            image,
            writing=work.writes,
            access=attrs.evolve(access, metadata_cache=metadata_cache, filters=filters),
            cache=cache,
        ) as disk,
        progress("running", quiet=quiet, style=progress_style, in_bytes=False) as tell,
    ):
        result = bench_disk(disk, work, progress=tell)
    if as_json:
        print_json(result.as_dict())
    else:
        _print(result)


def _refuse_to_destroy(image: str) -> None:
    registry = default_registry()
    handle = split_name(image, registry).drivertype
    if handle and not registry.get(handle).lasts:
        return
    raise UsageError("writing destroys what the image holds; --force allows it", image=image)


def _print(result: BenchResult) -> None:
    work = result.workload
    percentiles = ", ".join(f"{p:g}% {_time(us)}" for p, us in result.percentiles)
    moved = format_size(result.requests * work.block_size)
    print_pairs(
        [
            (
                "workload",
                f"{work.pattern}, {format_size(work.block_size)} a request, depth {work.depth}",
            ),
            ("done", f"{result.requests} requests, {moved} in {result.seconds:.2f} s"),
            ("IOPS", f"{result.iops:.0f}"),
            ("throughput", f"{result.bytes_per_second / 1e6:.1f} MB/s"),
            (
                "latency",
                f"mean {_time(result.mean)}, {percentiles}, max {_time(result.longest)}",
            ),
            (
                "CPU",
                f"{result.cpu_seconds * 1e6 / max(result.requests, 1):.1f} {_unit()} a request",
            ),
        ]
    )


def _time(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.1f} {_unit()}"
    return f"{microseconds / 1000:.2f} ms"


def _unit() -> str:
    return "µs" if can_show("µ") else "us"
