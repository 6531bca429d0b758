"""What whoever opens an image allows it, and gives it: one thing, handed on as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from tapcore.interface.keys import Keys
from tapcore.interface.policy import Parents, ReferencePolicy
from tapcore.interface.registry import Registry, default_registry

if TYPE_CHECKING:
    from tapcore.interface.filters.filter import Filter


def _policy(given: Parents | None) -> ReferencePolicy:
    return ReferencePolicy.of(given)


def _keys(given: Keys | None) -> Keys:
    return Keys() if given is None else given


def _registry(given: Registry | None) -> Registry:
    return default_registry() if given is None else given


@attrs.frozen
class Access:
    """With what an image, its parents and its files are opened.

    Attributes:
        references: which files an image may name, as a policy or as `Parents`.
        keys: passphrases of encrypted images; None: none.
        metadata_cache: bytes for the tables of each image; None: the driver's own default.
        registry: the drivers; None: the installed ones.
        filters: around the drivers of each disk; see `Registry.make_filters`.
    """

    references: ReferencePolicy = attrs.field(default=None, converter=_policy)
    keys: Keys = attrs.field(default=None, converter=_keys)
    metadata_cache: int | None = None
    registry: Registry = attrs.field(default=None, converter=_registry)
    filters: tuple[str | Filter, ...] = ()

    def without_filters(self) -> Access:
        """The same, for images that no filter is to be around."""
        return attrs.evolve(self, filters=()) if self.filters else self

    def with_tree(self, folder: str) -> Access:
        """The same, that allows files of one more directory tree."""
        return attrs.evolve(self, references=self.references.and_tree(folder))

    def with_home_of(self, image: str) -> Access:
        """The same, that allows what lies beside an image (its path)."""
        return attrs.evolve(self, references=self.references.and_home_of(image))
