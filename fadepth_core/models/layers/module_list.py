"""`nn.ModuleList` with the type of its items, for the type checker. torch declares items as `Module` without attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Generic, TypeVar

    M = TypeVar("M", bound=nn.Module)

    class ModuleList(nn.ModuleList, Generic[M]):
        def __init__(self, modules: Iterable[M] = ()) -> None: ...

        def __iter__(self) -> Iterator[M]: ...

        def __getitem__(self, index: int) -> M: ...  # type: ignore[override]  # slices are not used
else:
    ModuleList = nn.ModuleList
