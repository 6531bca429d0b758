"""What whoever opens an image allows it, and gives it: one thing, handed on as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from tapcore.interface.keys import Keys
from tapcore.interface.policy import Parents, ReferencePolicy
from tapcore.interface.registry import Registry, default_registry

if TYPE_CHECKING:
    from tapcore.interface.filters.filter import Filter


@attrs.frozen(eq=False, repr=False, init=False)
class Access:
    """With what an image, its parents and its files are opened.

    Attributes:
        references: which files an image may name, as a policy or as `Parents`.
        keys: passphrases of encrypted images; None: none.
        metadata_cache: bytes for the tables of each image; None: the driver's own default.
        registry: the drivers; None: the installed ones.
        filters: around the drivers of each disk; see `Registry.make_filters`.
    """

    references: ReferencePolicy
    keys: Keys
    metadata_cache: int | None
    registry: Registry
    filters: tuple[str | Filter, ...]

    # By hand: for fields with converters attrs looks at signatures, a fifth of a short command.
    def __init__(
        self,
        references: Parents | None = None,
        keys: Keys | None = None,
        metadata_cache: int | None = None,
        registry: Registry | None = None,
        filters: tuple[str | Filter, ...] = (),
    ) -> None:
        self.__attrs_init__(
            ReferencePolicy.of(references),
            Keys() if keys is None else keys,
            metadata_cache,
            default_registry() if registry is None else registry,
            filters,
        )

    def without_filters(self) -> Access:
        """The same, for images that no filter is to be around."""
        return attrs.evolve(self, filters=()) if self.filters else self

    def with_tree(self, folder: str) -> Access:
        """The same, that allows files of one more directory tree."""
        return attrs.evolve(self, references=self.references.and_tree(folder))

    def with_home_of(self, image: str) -> Access:
        """The same, that allows what lies beside an image (its path)."""
        return attrs.evolve(self, references=self.references.and_home_of(image))
