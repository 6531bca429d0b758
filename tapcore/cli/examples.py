"""Examples of every command: shown by `--help` and in the man pages, from this one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import click


class Example(NamedTuple):
    """One command line.

    Attributes:
        text: what it is for, without a full stop.
        line: to be typed, on one line.
    """

    text: str
    line: str


def _examples(*pairs: tuple[str, str]) -> tuple[Example, ...]:
    return tuple(Example(*pair) for pair in pairs)


EXAMPLES: Final[Mapping[str, tuple[Example, ...]]] = {
    "": _examples(
        ("A new disk, served to a virtual machine", "tapdisk create disk.qcow2 20G"),
        ("", "tapdisk serve disk.qcow2 --socket /tmp/disk.sock"),
        ("An appliance for another hypervisor", "tapdisk convert appliance.vmdk disk.qcow2"),
    ),
    "formats": _examples(
        ("What is installed, and what it can do", "tapdisk formats"),
        ("All about one of them", "tapdisk formats --long qcow2"),
        ("For a program", "tapdisk formats --json"),
    ),
    "info": _examples(
        ("What an image is", "tapdisk info disk.qcow2"),
        ("With all its parents, as a tree", "tapdisk info child.qcow2 --chain"),
        ("For a program", "tapdisk info disk.qcow2 --json"),
    ),
    "inspect": _examples(
        ("Is it safe to open? (exit status 0: yes)", "tapdisk inspect stranger.qcow2"),
        (
            "A parent may lie in that directory as well",
            "tapdisk inspect stranger.qcow2 --parents /srv/templates",
        ),
    ),
    "create": _examples(
        ("An image of 20 GiB that grows as it is written to", "tapdisk create disk.qcow2 20G"),
        ("A child that holds only what differs", "tapdisk create child.qcow2 -b base.qcow2"),
        (
            "With options; '-o help' lists them",
            "tapdisk create disk.qcow2 20G -o cluster_size=128K,lazy_refcounts=on",
        ),
    ),
    "convert": _examples(
        ("An appliance to qcow2, compressed", "tapdisk convert -c appliance.vmdk disk.qcow2"),
        (
            "What is left of a damaged image (exit status 3: not all)",
            "tapdisk convert --salvage damaged.qcow2 rescued.qcow2",
        ),
        (
            "What an internal snapshot holds, as a raw image",
            "tapdisk convert --snapshot before-upgrade disk.qcow2 old.img",
        ),
    ),
    "map": _examples(
        ("What lies where, as a table", "tapdisk map disk.qcow2"),
        ("Drawn on the terminal", "tapdisk map disk.qcow2 --picture"),
        ("A whole chain, for a browser", "tapdisk map child.qcow2 --svg chain.svg"),
    ),
    "check": _examples(
        ("Is the metadata consistent?", "tapdisk check disk.qcow2"),
        ("Give lost clusters back", "tapdisk check disk.qcow2 --repair leaks"),
        ("Repair all that can be (copy it first)", "tapdisk check disk.qcow2 --repair all"),
    ),
    "compare": _examples(
        ("Do both disks read the same?", "tapdisk compare disk.qcow2 copy.img"),
        ("And are they allocated the same?", "tapdisk compare --strict disk.qcow2 copy.qcow2"),
    ),
    "resize": _examples(
        ("To 30 GiB", "tapdisk resize disk.qcow2 30G"),
        ("5 GiB more", "tapdisk resize disk.qcow2 +5G"),
        ("Cut the last GiB off, with what it holds", "tapdisk resize disk.qcow2 --shrink -1G"),
    ),
    "snapshot": _examples(
        ("Keep the present state", "tapdisk snapshot create disk.qcow2 before-upgrade"),
        ("The states that there are", "tapdisk snapshot list disk.qcow2"),
        ("Go back to one", "tapdisk snapshot apply disk.qcow2 before-upgrade"),
    ),
    "bitmap": _examples(
        ("Record from now on what changes", "tapdisk bitmap add disk.qcow2 monday"),
        ("Which there are", "tapdisk bitmap list disk.qcow2"),
        (
            "Let one call changed what another does, too",
            "tapdisk bitmap merge disk.qcow2 week monday",
        ),
    ),
    "commit": _examples(
        ("Fold what the child holds into its parent", "tapdisk commit child.qcow2"),
        (
            "The parent lies elsewhere",
            "tapdisk commit child.qcow2 --parents /srv/templates",
        ),
    ),
    "rebase": _examples(
        ("Another parent; the content stays", "tapdisk rebase child.qcow2 -b newbase.qcow2"),
        ("Let it stand alone", "tapdisk rebase child.qcow2 -b ''"),
        (
            "The parent was moved: only record where it is",
            "tapdisk rebase child.qcow2 -b moved/base.qcow2 --unsafe",
        ),
    ),
    "amend": _examples(
        ("For programs that know only version 2", "tapdisk amend disk.qcow2 -o compat=0.10"),
        ("Several options at once", "tapdisk amend disk.qcow2 -o compat=1.1,lazy_refcounts=on"),
    ),
    "measure": _examples(
        ("How large would this be as qcow2?", "tapdisk measure disk.img -O qcow2"),
        ("And for a program", "tapdisk measure disk.img -O qcow2 --json"),
    ),
    "ls": _examples(
        ("The partitions, or the files of the only one", "tapdisk ls disk.qcow2"),
        ("A folder of the second partition", "tapdisk ls -l disk.qcow2:2 /etc"),
    ),
    "cat": _examples(
        ("A file of the first partition", "tapdisk cat disk.qcow2:1 /etc/hostname"),
        ("Two files of a disk without partitions", "tapdisk cat disk.img /etc/passwd /etc/group"),
    ),
    "extract": _examples(
        ("A folder, into another", "tapdisk extract disk.vmdk:1 /home/user -d rescued"),
        ("Everything", "tapdisk extract disk.qcow2:1 -d all"),
    ),
    "tree": _examples(
        ("All files", "tapdisk tree disk.qcow2:1"),
        ("Two folders deep", "tapdisk tree disk.qcow2:1 /etc --levels 2"),
    ),
    "serve": _examples(
        (
            "On a Unix socket, for this user only",
            "tapdisk serve disk.qcow2 --socket /tmp/disk.sock",
        ),
        (
            "Two images on TCP, read-only",
            "tapdisk serve --read-only base.qcow2 data.img --bind 127.0.0.1 --port 10809",
        ),
        (
            "An encrypted image",
            "tapdisk serve secret.qcow2 --key-file passphrase.txt --socket /tmp/disk.sock",
        ),
    ),
    "daemon": _examples(
        (
            "Until Ctrl-C, with its sockets in a directory of its own",
            "tapdisk daemon --run-dir run",
        ),
        (
            "In the background, with the disks of last time",
            "tapdisk daemon --fork --restore --state /var/lib/tapcore/state.json",
        ),
        ("Another version takes over, and disks go on", "tapdisk daemon --stop --keep-disks"),
    ),
    "attach": _examples(
        ("A disk for a virtual machine; prints the URI", "tapdisk attach disk.qcow2 --name vm1"),
        ("On a Unix socket of one's own", "tapdisk attach disk.qcow2 --nbd /run/vm1.sock"),
        ("On a TCP port of this machine, for reading", "tapdisk attach base.vmdk -r --nbd 10810"),
    ),
    "detach": _examples(
        ("When nobody uses it any more", "tapdisk detach vm1"),
        ("Whoever uses it", "tapdisk detach vm1 --force"),
    ),
    "list": _examples(
        ("Which disks there are, and how they are", "tapdisk list"),
        ("For a program", "tapdisk list --json"),
    ),
    "stats": _examples(
        ("Of all disks", "tapdisk stats"),
        ("Again and again, of one by its operations", "tapdisk stats vm1 --watch"),
        ("Of one, for a program", "tapdisk stats vm1 --json"),
    ),
    "dump-ring": _examples(
        ("Indices, events, slots in use", "tapdisk dump-ring vm1"),
        ("For a program", "tapdisk dump-ring vm1 --json"),
    ),
    "pause": _examples(
        ("Clients wait from now on", "tapdisk pause vm1"),
        ("For a program", "tapdisk pause vm1 --json"),
    ),
    "resume-io": _examples(
        ("And go on", "tapdisk resume-io vm1"),
        ("For a program", "tapdisk resume-io vm1 --json"),
    ),
    "snapshot-live": _examples(
        ("What it holds now stays in the old image", "tapdisk snapshot-live vm1 monday.qcow2"),
        (
            "Of a format, with an option of it",
            "tapdisk snapshot-live vm1 qcow2:monday.img -o cluster_size=128K",
        ),
    ),
    "commit-live": _examples(
        ("Into the parent, which is served then", "tapdisk commit-live vm1"),
        ("How far it is, for a program", "tapdisk commit-live vm1 --status --json"),
        ("Rather not", "tapdisk commit-live vm1 --cancel"),
    ),
    "swap": _examples(
        ("A copy of it, made while it was paused", "tapdisk swap vm1 copy.qcow2"),
        ("For a program", "tapdisk swap vm1 qcow2:copy.img --json"),
    ),
    "resize-live": _examples(
        ("10 GiB more", "tapdisk resize-live vm1 +10G"),
        ("Smaller, which cuts its end off", "tapdisk resize-live vm1 5G --shrink"),
    ),
    "reload": _examples(
        ("After pip install tap-...", "tapdisk reload"),
        ("And all drivers, for a program", "tapdisk reload --json"),
    ),
    "log-level": _examples(
        ("Tell more", "tapdisk log-level info"),
        ("Only one disk", "tapdisk log-level debug vm1"),
    ),
    "bench": _examples(
        ("4 KiB reads at random places, 32 in flight", "tapdisk bench disk.qcow2"),
        (
            "Large reads in order, past the page cache",
            "tapdisk bench disk.qcow2 --rw read --bs 1M --depth 8 --cache none",
        ),
        (
            "Writes, of a disk in memory (of a file they need --force)",
            "tapdisk bench ram:1G --rw randwrite",
        ),
    ),
    "plugins": _examples(
        ("What is installed", "tapdisk plugins list"),
        ("What does not work, and why", "tapdisk plugins doctor"),
        ("What a file needs to be opened", "tapdisk plugins doctor disk.qcow2"),
    ),
    "new-plugin": _examples(
        ("A format as a class with a few methods", "tapdisk new-plugin foo"),
        ("A format with tables, read alone", "tapdisk new-plugin foo --map --read-only"),
    ),
    "completion": _examples(
        (
            "bash, for this user",
            "tapdisk completion bash > ~/.local/share/bash-completion/completions/tapdisk",
        ),
        ("zsh, a directory of $fpath", "tapdisk completion zsh > ~/.zfunc/_tapdisk"),
        ("fish", "tapdisk completion fish > ~/.config/fish/completions/tapdisk.fish"),
    ),
    "man": _examples(
        ("The page of a command", "tapdisk man convert"),
        ("All pages, where man(1) finds them", "tapdisk man --write ~/.local/share/man/man1"),
    ),
    "help": _examples(
        ("What a command does", "tapdisk help convert"),
        ("All commands", "tapdisk help"),
    ),
}
"""By command; "" is `tapdisk` itself. An example without a text goes on with the one before."""


def write_examples(command: str, formatter: click.HelpFormatter) -> None:
    """The examples of a command, as a section of its help."""
    if command not in EXAMPLES:
        return
    with formatter.section("Examples"):
        for example in EXAMPLES[command]:
            if example.text:
                formatter.write_text(f"{example.text}:")
            formatter.write(f"{'':{formatter.current_indent + 4}}{example.line}\n")
