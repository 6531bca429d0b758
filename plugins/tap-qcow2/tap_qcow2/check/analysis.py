"""A look at all of an image: what refers to its clusters, and the refcounts beside that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from tap_qcow2.check.comparison import Comparison
from tap_qcow2.check.referencecounts import TooFarApartError
from tap_qcow2.check.report import Report
from tap_qcow2.check.walk import GivenUpError, Walk
from tapcore import ImageFormatError, describe_error

if TYPE_CHECKING:
    from tap_qcow2.image import Image


@attrs.define
class Analysis:
    """A look at all of an image.

    Attributes:
        report: what was found.
        walk: the references.
        comparison: the refcounts beside them.
    """

    report: Report
    walk: Walk
    comparison: Comparison

    @property
    def clean(self) -> bool:
        """There is nothing to be said against the image."""
        found = self.report.result
        return not (found.leaks or found.corruptions or found.check_errors)

    @property
    def tables_damaged(self) -> bool:
        """L1 or L2 tables are not what they should be, besides their COPIED flags."""
        walk = self.walk
        return bool(walk.l1_damaged or walk.l2_damaged or walk.crowded)


def analyse(image: Image) -> Analysis:
    """Look at an image: nothing is changed, and nothing may be waiting to be written."""
    report = Report()
    walk = Walk(image, report)
    comparison = Comparison(image, walk, report)
    report.result.total_clusters = image.geometry.clusters(image.header.size)
    try:
        walk.run()
        comparison.count_structures()
        comparison.compare()
        comparison.check_flags()
        report.result.image_end_offset = comparison.end << image.cluster_bits
    except ImageFormatError as exc:
        report.failed(f"it {exc.message}")
    except OSError as exc:
        report.failed(f"a table cannot be read: {describe_error(exc)}")
    except GivenUpError:
        report.failed("its tables overlap so much that they cannot be checked in bounded time")
    except TooFarApartError:
        report.failed("it refers to places so far apart that checking it would take all memory")
    return Analysis(report, walk, comparison)
