"""torchvision's base class of weight enums, with the types that torchvision does not declare."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import enum
    import functools
    from typing import Any

    from .transforms import ImageClassification

    class WeightsEnum(enum.Enum):
        """What type checkers see; without it, every member of every enum would be `Any` to them."""

        @classmethod
        def verify(cls, obj: Any) -> Any: ...

        def get_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]: ...

        @property
        def url(self) -> str: ...

        @property
        def transforms(self) -> functools.partial[ImageClassification]: ...

        @property
        def meta(self) -> dict[str, Any]: ...
else:
    from torchvision.models import WeightsEnum

__all__ = ["WeightsEnum"]
