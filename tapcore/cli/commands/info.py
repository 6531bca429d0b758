"""`tapdisk info`."""

from __future__ import annotations

import click

from tapcore.cli.eachimage import Answer, each_image
from tapcore.cli.imagefacts import print_images
from tapcore.cli.options import image_argument, json_option, opening_options, tap_command
from tapcore.cli.output import print_line
from tapcore.interface.access import Access
from tapcore.tools.info import image_info


@tap_command("info")
@image_argument("images", nargs=-1, required=True, metavar="IMAGE...")
@json_option
@click.option("--chain", is_flag=True, help="Its parents too, as a tree.")
@click.option(
    "--partitions",
    is_flag=True,
    help="What the disk is divided into, too; reads its content (tapcore[files]).",
)
@opening_options
def command(
    images: tuple[str, ...], as_json: bool, chain: bool, partitions: bool, access: Access
) -> int:
    """Tell what each IMAGE is, and with --chain its parents as a tree.

    Takes no lock, and opens no parent without --chain or --partitions. With several images --json
    is an array with what it would be for each; one that cannot be looked at has an "error" there.
    """

    def look(image: str) -> Answer:
        found = image_info(image, chain=chain, access=access)
        objects = [info.as_dict() for info in found]
        lines: list[str] = []
        if partitions:
            objects[0]["partitions"], lines = _partitions(image, access)
        if not as_json:
            print_images(found, chain=chain)
            for line in lines:
                print_line(line)
            return Answer()
        return Answer(objects if chain else objects[0])

    return each_image(images, look, as_json=as_json)


def _partitions(image: str, access: Access) -> tuple[list[dict[str, object]], list[str]]:
    """For a program, and the lines for a person."""
    from tapcore.cli.volumes import volume_as_dict, volume_lines
    from tapcore.tools.filesystems import list_volumes

    volumes = list_volumes(image, access)
    return [volume_as_dict(each) for each in volumes], volume_lines(volumes)
