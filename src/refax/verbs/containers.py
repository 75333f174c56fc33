"""`nnx.List` and `nnx.Dict`: containers that are Modules.

A plain `list` or `dict` in an attribute is part of the object graph too, but it has no methods of a
Module, and nothing tells refax of a change in it. These are what programs for Flax hold their
layers in. Their items are attributes: of a List under the ints 0, 1, …, of a Dict under its keys;
so the trace guard, marks, plans and paths are those of any object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from functools import partial
from operator import index as as_index
from typing import Any, overload

from ..objects.at_once import at_once
from ..objects.errors import suggest
from ..objects.marks import Mark
from ..objects.node import set_object_marks
from ..objects.representation import Form
from ..objects.type_names import T
from .module import Module

_NOTHING: Any = ()  # of any type: an empty List takes everything


class List(MutableSequence[T], Module):
    """A list of modules, Variables or anything else, as a Module.

    Has the methods of a `list`; slices and iteration give plain lists and items, `==` compares with
    lists by content. What becomes data follows from each value, as for attributes; `nnx.data` and
    `nnx.static` overrule it.

    Args:
        items: what it holds at first.

    Example:
        >>> from refax import nnx
        >>> blocks: nnx.List = nnx.List(nnx.Linear(2, 2, rngs=nnx.Rngs(i)) for i in range(3))
        >>> blocks.append(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
        >>> blocks.eval()
        >>> len(blocks), blocks[-1].deterministic
        (4, True)
    """

    __slots__ = ()
    __dict__: dict[Any, Any]
    __hash__ = Module.__hash__

    def __init__(self, items: Iterable[T] = _NOTHING, /):
        self.extend(items)

    def _marked(self) -> list[Any]:
        """The items, with their marks around them."""
        marks = self._refax_marks or {}
        return [Mark(marks[i], item) if i in marks else item for i, item in enumerate(self)]

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: Any) -> Any:
        return list(self)[index] if isinstance(index, slice) else self.__dict__[self._at(index)]

    def _at(self, index: Any) -> int:
        number, count = as_index(index), len(self)
        if not -count <= number < count:
            raise IndexError(
                f"List has {count} items, so there is none at {number}.\n"
                "Cure: append it, or take an index within."
            )
        return number % count

    def __setitem__(self, index: Any, value: Any) -> None:
        if not isinstance(index, slice):
            at = self._at(index)
            self.__dict__[at] = self._refax_prepare(at, value)
            return
        items = self._marked()
        items[index] = value
        self._refax_change("change the items of")
        # A subclass may have attributes beside the items.
        others = {k: v for k, v in self.__dict__.items() if type(k) is not int}
        marks = {k: v for k, v in (self._refax_marks or {}).items() if type(k) is not int}
        marks |= {i: item.kind for i, item in enumerate(items) if type(item) is Mark}
        held = [item.value if type(item) is Mark else item for item in items]
        put = partial(self.__dict__.update, others | dict(enumerate(held)))
        at_once([self.__dict__.clear, put, partial(set_object_marks, self, marks or None)])

    def __delitem__(self, index: Any) -> None:
        keep = self._marked()
        del keep[index if isinstance(index, slice) else self._at(index)]
        self[:] = keep

    def __len__(self) -> int:
        return sum([type(key) is int for key in self.__dict__])

    def __iter__(self) -> Iterator[T]:
        return iter([item for key, item in self.__dict__.items() if type(key) is int])

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if isinstance(name, str)]

    def insert(self, index: int, value: T) -> None:
        self[index:index] = [value]

    def extend(self, values: Iterable[T]) -> None:
        self[len(self) :] = values

    def clear(self) -> None:
        self[:] = []

    def reverse(self) -> None:
        self[:] = self._marked()[::-1]

    def sort(self, *, key: Callable[[T], Any] | None = None, reverse: bool = False) -> None:
        by: Any = key or (lambda item: item)
        pairs = zip(self, self._marked(), strict=True)
        self[:] = [m for _, m in sorted(pairs, key=lambda pair: by(pair[0]), reverse=reverse)]

    def copy(self) -> List[T]:
        return type(self)(self._marked())

    def __add__(self, other: Iterable[T]) -> List[T]:
        return List([*self, *other])

    def __radd__(self, other: Iterable[T]) -> List[T]:
        return List([*other, *self])

    def __mul__(self, times: int) -> List[T]:
        return List(list(self) * times)

    __rmul__ = __mul__

    def __imul__(self, times: int) -> List[T]:
        self[:] = self._marked() * times
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (list, List)) and list(self) == list(other)

    def _refax_form(self) -> Form:
        return Form("List([", [(None, item) for item in self], "", "])")

    def __treescope_repr__(self, path: Any, subtree_renderer: Any) -> Any:
        return subtree_renderer(list(self), path=path)


class Dict(MutableMapping[str, T], Module):
    """A dict as a Module, with access by attribute: `blocks.first` is `blocks['first']`.

    Has the methods of a `dict`; `==` compares with dicts by content. An entry under the name of a
    method hides the method.

    Args:
        *args, **items: as for `dict`.

    Example:
        >>> from refax import nnx
        >>> heads = nnx.Dict(a=nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> heads["b"] = nnx.Linear(2, 4, rngs=nnx.Rngs(1))
        >>> [head.out_features for head in heads.values()], heads.b is heads["b"]
        ([3, 4], True)
    """

    __slots__ = ()
    __dict__: dict[Any, Any]
    __hash__ = Module.__hash__  # type: ignore[assignment]

    def __init__(self, *args: Mapping[str, T] | Iterable[tuple[str, T]], **items: T):
        for key, value in dict(*args, **items).items():
            self[key] = value

    def __getitem__(self, key: Any) -> T:
        return self.__dict__[key]

    def __setitem__(self, key: Any, value: T) -> None:
        self.__dict__[key] = self._refax_prepare(key, value)

    def __delitem__(self, key: Any) -> None:
        self._refax_change(f"delete the entry {key!r} of")
        del self.__dict__[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        return len(self.__dict__)

    def __getattr__(self, name: str) -> T:
        raise self._no_entry(name)

    def __delattr__(self, name: str) -> None:
        if name not in self.__dict__:
            raise self._no_entry(name)
        super().__delattr__(name)

    def _no_entry(self, name: str) -> AttributeError:
        return AttributeError(
            f"Dict has no entry {name!r}; it has {list(self)}.{suggest(name, self)}\n"
            f"Cure: set it first, or ask for it with `get({name!r})`."
        )

    def popitem(self) -> tuple[str, T]:
        key, value = dict(self.__dict__).popitem()
        del self[key]
        return key, value

    @classmethod
    def fromkeys(cls, keys: Iterable[str], value: Any = None) -> Dict[Any]:
        return cls({key: value for key in keys})

    def copy(self) -> Dict[T]:
        return type(self)(self.__dict__)

    def __or__(self, other: Mapping[str, T]) -> Dict[T]:
        return Dict({**self, **other})

    def __ror__(self, other: Mapping[str, T]) -> Dict[T]:
        return Dict({**other, **self})

    def __ior__(self, other: Mapping[str, T]) -> Dict[T]:
        MutableMapping.update(self, other)
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self.__dict__) == dict(other)

    def _refax_form(self) -> Form:
        return Form("Dict({", self.__dict__.items(), ": ", "})")
