"""Which arguments a call takes: a picture of a signature in built-in values only.

Owns the check behind "a wrong signature is a TypeError at ``.remote()``, in the caller". A ``CallShape`` is
made once per function or method, when it is decorated, and travels inside actor handles; so it holds names
and counts, never default values (which may be large, or impossible to pickle).

Called by the public face on each ``.remote()``. The hot path reads ``low`` and ``high`` itself: without
keywords, a number of arguments between the two is right, and nothing here runs.

Invariants: ``check`` accepts exactly what a call of the function accepts, and says no in the words of
``inspect.Signature.bind``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

_P = inspect.Parameter
NO_LIMIT = 1 << 62  # ``high`` of a function that takes *args
NEVER_FITS = 1 << 62  # ``low`` where a required keyword sends every call to ``check``


class CallShape:
    """The arguments of one callable. Immutable; compares by value; pickles as a tuple of built-ins."""

    __slots__ = ("_kinds", "high", "low", "names")

    names: tuple[str, ...]  # positional parameters in order
    low: int  # least number of positional arguments of a call without keywords
    high: int  # greatest number of them

    def __init__(
        self,
        names: tuple[str, ...],
        only: int,
        required: int,
        star: bool,
        keywords: tuple[tuple[str, bool], ...],
        star_star: bool,
    ) -> None:
        """``only`` of ``names`` are positional-only, the first ``required`` have no default; ``keywords`` are
        the keyword-only parameters, each with whether it is required."""
        self.names = names
        self._kinds = (only, required, star, keywords, star_star)
        needs_keyword = any(needed for _, needed in keywords)
        self.low = NEVER_FITS if needs_keyword else required
        self.high = NO_LIMIT if star else len(names)

    @classmethod
    def of(cls, function: Callable[..., Any], *, skip_self: bool = False) -> CallShape:
        """The shape of ``function``; ``skip_self`` leaves its first positional parameter out.

        A callable that tells no signature (some built-ins) takes anything here: its own call will judge.
        """
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (ValueError, TypeError):
            return ANYTHING
        if skip_self and parameters and parameters[0].kind in (_P.POSITIONAL_ONLY, _P.POSITIONAL_OR_KEYWORD):
            parameters = parameters[1:]
        positional = [p for p in parameters if p.kind in (_P.POSITIONAL_ONLY, _P.POSITIONAL_OR_KEYWORD)]
        return cls(
            names=tuple(p.name for p in positional),
            only=sum(p.kind is _P.POSITIONAL_ONLY for p in positional),
            required=sum(p.default is _P.empty for p in positional),
            star=any(p.kind is _P.VAR_POSITIONAL for p in parameters),
            keywords=tuple((p.name, p.default is _P.empty) for p in parameters if p.kind is _P.KEYWORD_ONLY),
            star_star=any(p.kind is _P.VAR_KEYWORD for p in parameters),
        )

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise TypeError, worded as ``inspect.Signature.bind`` does, if the call does not fit."""
        only, required, star, keywords, star_star = self._kinds
        names, count = self.names, len(args)
        if count > len(names) and not star:
            raise TypeError("too many positional arguments")
        used = 0
        for index, name in enumerate(names):
            if name in kwargs and index >= only:
                used += 1
                if index < count:
                    raise TypeError(f"multiple values for argument {name!r}")
            elif index >= count and index < required:
                if name in kwargs and not star_star:
                    raise TypeError(f"{name!r} parameter is positional only, but was passed as a keyword")
                raise TypeError(f"missing a required argument: {name!r}")
        for name, needed in keywords:
            if name in kwargs:
                used += 1
            elif needed:
                raise TypeError(f"missing a required argument: {name!r}")
        if used < len(kwargs) and not star_star:
            known = {*names[only:], *(name for name, _ in keywords)}
            stranger = next(name for name in kwargs if name not in known)
            raise TypeError(f"got an unexpected keyword argument {stranger!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        only, required, star, keywords, star_star = self._kinds
        return CallShape, (self.names, only, required, star, keywords, star_star)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CallShape):
            return NotImplemented
        return self.names == other.names and self._kinds == other._kinds

    def __hash__(self) -> int:
        return hash((self.names, self._kinds))

    def __repr__(self) -> str:
        return f"CallShape(names={self.names!r}, low={self.low}, high={self.high})"


ANYTHING = CallShape((), 0, 0, True, (), True)
