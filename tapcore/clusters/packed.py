"""Reading compressed clusters: in threads, several at a time, the last ones kept.

To hand work to a thread and to hear of its end costs as much as to inflate a cluster, so those that
are asked for together go together: they are read from the file together, where they lie together,
and unpacked straight to where they are wanted.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from tapcore.clusters.map import Unpacker
from tapcore.clusters.runs import AnswerPart, Run
from tapcore.errors import ImageFormatError, TapError
from tapcore.files import ImageFile
from tapcore.formats.deflate import inflate
from tapcore.interface.answer import Then

KEPT_BYTES: Final = 4 << 20
"""Content to keep: a client that reads on in small steps unpacks each cluster only once."""

TOGETHER_BYTES: Final = 512 << 10
"""So much, or one cluster, is unpacked by one thread in one go."""

AT_ONCE_BYTES: Final = 8 << 10
"""Clusters up to this size are inflated at once if the page cache holds them."""

_GAP: Final = 32 << 10
"""Clusters are read from the file together where no more bytes than these lie between them."""

Take: TypeAlias = Callable[[bytes | Exception], int]
"""Gets the content of a cluster, or why there is none; returns how many requests that finished."""

Failed: TypeAlias = Callable[[Exception, Run, memoryview, AnswerPart], int]
"""Gets why there is no content, and what was wanted; answers, and returns the same."""

Wanted: TypeAlias = tuple[Run, memoryview, AnswerPart, Failed]
"""A whole cluster, where its content goes, who is to be told, and who is when it fails."""


class PackedContent:
    """The compressed clusters of one image, each told by its token.

    Args:
        file: whose threads do the work.
        unpacker: the format's.
        cluster_bytes: size of a cluster.
        counted: counts what is in flight.
    """

    def __init__(
        self,
        file: ImageFile,
        unpacker: Unpacker,
        cluster_bytes: int,
        counted: Callable[[Then], Then],
    ) -> None:
        self._file = file
        self._unpacker = unpacker
        self._counted = counted
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._most = max(KEPT_BYTES // cluster_bytes, 2)
        self._together = max(TOGETHER_BYTES // cluster_bytes, 1)
        self._at_once = cluster_bytes <= AT_ONCE_BYTES
        self._wanted: dict[int, list[Take]] = {}
        self._partly: set[int] = set()  # of these: more of them may be wanted next
        self._task: tuple[list[int], Callable[[], int], Then] | None = None
        self._whole: tuple[list[Wanted], Callable[[], int], Then] | None = None

    def read_whole(
        self, run: Run, buf: memoryview, answer: AnswerPart, failed: Failed
    ) -> int | None:
        """Unpack a whole cluster to where it is wanted, later: its content is not kept.

        Args:
            run: PACKED, a whole cluster.
            buf: gets its content.
            answer: for parts of a request; clusters that follow each other are answered together.
            failed: answers where there is no content.

        Returns:
            0; None: `fetch` has it, or gets it, at less cost.
        """
        token = run.where
        if self._at_once or token in self._kept or token in self._wanted:
            return None
        if self._whole is None:
            self._whole = self._begin_whole()
        wanted = self._whole[0]
        wanted.append((run, buf, answer, failed))
        if len(wanted) == self._together:
            self._submit_whole()
        return 0

    def _begin_whole(self) -> tuple[list[Wanted], Callable[[], int], Then]:
        """As `_begin`, for whole clusters."""
        wanted: list[Wanted] = []
        failures: dict[int, Exception] = {}

        def work() -> int:
            tokens = [run.where for run, _, _, _ in wanted]
            found = self._unpack_into(tokens, [buf for _, buf, _, _ in wanted])
            failures.update((number, why) for number, why in enumerate(found) if why is not None)
            return 0

        def unpacked(res: int) -> int:
            if res:
                failures.update(dict.fromkeys(range(len(wanted)), OSError(-res, os.strerror(-res))))
            return _answer_joined(wanted, failures)

        return wanted, work, self._counted(unpacked)

    def _submit_whole(self) -> None:
        if self._whole is not None:
            (_, work, then), self._whole = self._whole, None
            self._file.queue_packing(work, then)

    def fetch(self, token: int, take: Take, *, whole: bool) -> int:
        """Call `take` with the content of a cluster, now or later.

        Args:
            token: of a PACKED run.
            take: gets all of the cluster.
            whole: all of it is of use, and so it need not be kept.

        Returns:
            What `take` returned, if it was called already.
        """
        content = self._kept.get(token)
        if content is not None:
            self._kept.move_to_end(token)
            return take(content)
        if not whole:
            self._partly.add(token)
        if token in self._wanted:
            self._wanted[token].append(take)
            return 0
        content = self._unpacker.unpack_now(token)
        if content is not None:
            self._arrived(token, content)
            return take(content)
        self._wanted[token] = [take]
        self._collect(token)
        return 0

    def _collect(self, token: int) -> None:
        if self._task is None:
            self._task = self._begin()
        self._task[0].append(token)
        if len(self._task[0]) == self._together:
            self.submit()

    def submit(self) -> None:
        """Hand what was collected to a thread."""
        self._submit_whole()
        if self._task is not None:
            (_, work, then), self._task = self._task, None
            self._file.queue_packing(work, then)

    def _begin(self) -> tuple[list[int], Callable[[], int], Then]:
        """A task for clusters that are still to be collected.

        It counts as in flight from now on: what is collected may be given up before it is read.
        """
        tokens: list[int] = []
        found: list[bytes | Exception] = []

        def work() -> int:
            found.extend(self._unpack_many(tokens))
            return 0

        def unpacked(res: int) -> int:
            contents = found if not res else [OSError(-res, os.strerror(-res))] * len(tokens)
            return sum(map(self._give, tokens, contents))

        return tokens, work, self._counted(unpacked)

    def _unpack_many(self, tokens: Sequence[int]) -> Iterator[bytes | Exception]:
        """In a thread: the contents, or why there is none."""
        together = getattr(self._unpacker, "unpack_many", None)
        if together is not None:
            return iter(together(tokens))
        return (unpack_one(self._unpacker, token) for token in tokens)

    def _unpack_into(
        self, tokens: Sequence[int], views: Sequence[memoryview]
    ) -> Iterator[Exception | None]:
        """In a thread: put the contents where they are wanted, or say why there is none."""
        straight = getattr(self._unpacker, "unpack_into", None)
        if straight is not None:
            return iter(straight(tokens, views))
        found = self._unpack_many(tokens)
        return (put(content, view) for content, view in zip(found, views, strict=True))

    def _give(self, token: int, found: bytes | Exception) -> int:
        wanted = self._wanted.pop(token)
        self._arrived(token, found)
        return sum(take(found) for take in wanted)

    def _arrived(self, token: int, found: bytes | Exception) -> None:
        partly = token in self._partly
        self._partly.discard(token)
        if partly and not isinstance(found, Exception):
            self._kept[token] = found
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def forget(self, token: int | None = None) -> None:
        """Other content has this token now; None: so may all have."""
        if token is None:
            self._kept.clear()
        else:
            self._kept.pop(token, None)


def unpack_one(unpacker: Unpacker, token: int) -> bytes | Exception:
    """In a thread: the content of a cluster, or why there is none."""
    try:
        return unpacker.unpack(token)
    except (TapError, OSError) as exc:
        return exc


def put(content: bytes | Exception, view: memoryview) -> Exception | None:
    """Put a cluster's content where it is wanted; returns why there is none."""
    if isinstance(content, Exception):
        return content
    view[:] = content
    return None


def _answer_joined(wanted: Sequence[Wanted], failures: dict[int, Exception]) -> int:
    """Answer for whole clusters, for those that follow each other at once; returns as they do."""
    finished, begun = 0, -1
    for number, (run, buf, answer, failed) in enumerate(wanted):
        if number in failures:
            finished += failed(failures[number], run, buf, answer)
            continue
        if begun < 0:
            begun = run.sector
        last = number + 1 == len(wanted) or number + 1 in failures
        if last or wanted[number + 1][2] is not answer or wanted[number + 1][0].sector != run.end:
            finished += answer(0, begun, run.end - begun)
            begun = -1
    return finished


class DeflatedClusters:
    """An `Unpacker` for clusters of which the token says place and length in the file.

    Args:
        file: that holds them.
        cluster_bytes: size of a cluster.
        place_of: from a token to a host offset and a length, both bytes; the stream may end before.
        inflate: from a stream, and the size of a cluster, to content; raises ImageFormatError.
        inflate_into: from a stream to where a cluster's content is wanted, without a copy on the
            way; False: it could not, and `inflate` tells why.
    """

    def __init__(
        self,
        file: ImageFile,
        cluster_bytes: int,
        place_of: Callable[[int], tuple[int, int]],
        inflate: Callable[[bytes, int], bytes] = inflate,
        inflate_into: Callable[[bytes, memoryview], bool] | None = None,
    ) -> None:
        self._file = file
        self._size = cluster_bytes
        self._place_of = place_of
        self._inflate = inflate
        self._inflate_into = inflate_into

    def missing(self, token: int) -> bool:
        """Whether it begins past the end of the file."""
        offset, _ = self._place_of(token)
        return offset >= self._file.size and offset >= self._file.look_again()

    def unpack_now(self, token: int) -> bytes | None:
        """Small ones that the page cache holds."""
        if self._size > AT_ONCE_BYTES:
            return None
        offset, length = self._place_of(token)
        there = min(length, self._file.size - offset)  # zeroes behind it could pass for a stream
        stream = self._file.metadata_now(offset, there) if there > 0 else None
        try:
            return None if stream is None else self._content(stream)
        except ImageFormatError:
            return None  # the thread comes to the same result, and reports it

    def unpack(self, token: int) -> bytes:
        """See `Unpacker`."""
        offset, length = self._place_of(token)
        there = min(length, self._file.size - offset)
        if there < length:
            there = min(length, self._file.look_again() - offset)
        if there <= 0:
            text = f"its compressed cluster, at offset {offset:#x}, lies past the end of the file"
            raise ImageFormatError(text, errno=errno.EIO)
        try:
            return self._content(self._file.read_metadata(offset, there))
        except ImageFormatError as exc:
            text = f"{exc.message}, at offset {offset:#x} of the file"
            raise ImageFormatError(text, errno=errno.EIO) from None

    def unpack_many(self, tokens: Sequence[int]) -> Iterator[bytes | Exception]:
        """The contents of clusters, or why one has none; read together where they lie together."""
        for token, stream in zip(tokens, self._streams(tokens), strict=True):
            if stream:
                try:
                    yield self._content(stream)
                    continue
                except ImageFormatError:
                    pass  # is found, and told, once more
            yield unpack_one(self, token)

    def unpack_into(
        self, tokens: Sequence[int], views: Sequence[memoryview]
    ) -> Iterator[Exception | None]:
        """As `unpack_many`, straight to where each is wanted: None where it is there."""
        for token, stream, view in zip(tokens, self._streams(tokens), views, strict=True):
            if stream and self._filled(stream, view):
                yield None
            else:
                yield put(unpack_one(self, token), view)

    def _filled(self, stream: bytes, view: memoryview) -> bool:
        if self._inflate_into is not None:
            return self._inflate_into(stream, view)
        try:
            view[:] = self._content(stream)
        except ImageFormatError:
            return False
        return True

    def _streams(self, tokens: Sequence[int]) -> list[bytes]:
        """What the file holds of each cluster; b"" where something is wrong with that."""
        places = [self._place_of(token) for token in tokens]
        found = [b""] * len(places)
        near: list[int] = []
        end = 0
        for number in sorted(range(len(places)), key=places.__getitem__):
            offset, length = places[number]
            if near and offset > end + _GAP:
                self._read_near(near, places, found)
                near = []
            near.append(number)
            end = max(end, offset + length)
        self._read_near(near, places, found)
        return found

    def _read_near(
        self, near: Sequence[int], places: Sequence[tuple[int, int]], found: list[bytes]
    ) -> None:
        """By one call: the clusters of these numbers, which are in the order of their places."""
        start = places[near[0]][0]
        end = max(sum(places[number]) for number in near)
        if end > self._file.size:
            return
        try:
            content = self._file.read_metadata(start, end - start)
        except OSError:
            return
        for number in near:
            offset, length = places[number]
            found[number] = content[offset - start : offset - start + length]

    def _content(self, stream: bytes) -> bytes:
        content = self._inflate(stream, self._size)
        if len(content) != self._size:
            raise ImageFormatError("its compressed cluster is too short")
        return content
