"""Maps that are made of a label and stay beside it in the item."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple
from torch import Tensor


class BesideLabeld(MapTransform):
    """Base of the dictionary versions that write a map of each label to a key of its own.

    Args:
        keys: of the labels.
        name: what the class calls the new keys.
        new_keys: of the maps, one per label.
        transform: from a label to its map.
        allow_missing_keys: leave out a label that is not there.

    Raises:
        ValueError: another number of new keys than of keys, or the same key twice.
    """

    def __init__(
        self,
        keys: KeysCollection,
        name: str,
        new_keys: KeysCollection,
        transform: Callable[[NdarrayOrTensor], Tensor],
        allow_missing_keys: bool,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.new_keys = ensure_tuple(new_keys)
        every_key = (*self.keys, *self.new_keys)
        if len(self.new_keys) != len(self.keys) or len(set(every_key)) != len(every_key):
            raise ValueError(
                f"expected {len(self.keys)} {name}, one new key per label, got {self.new_keys} for {self.keys}; name "
                "each once."
            )
        self.transform = transform

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """The item with its maps."""
        item: dict[Hashable, Any] = dict(data)
        for key, new_key in self.key_iterator(item, self.new_keys):
            item[new_key] = self.transform(item[key])
        return item
