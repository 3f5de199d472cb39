"""CallShape accepts what a call accepts, and refuses in the words of inspect.Signature.bind."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minray.worker.call_shape import ANYTHING, CallShape

P = inspect.Parameter
NAMES = ["a", "b", "c", "d"]


@st.composite
def signatures(draw: st.DrawFn) -> inspect.Signature:
    count = draw(st.integers(0, 3))
    only = draw(st.integers(0, count))
    required = draw(st.integers(0, count))
    parameters = [
        P(
            NAMES[i],
            P.POSITIONAL_ONLY if i < only else P.POSITIONAL_OR_KEYWORD,
            default=P.empty if i < required else None,
        )
        for i in range(count)
    ]
    if draw(st.booleans()):
        parameters.append(P("args", P.VAR_POSITIONAL))
    if draw(st.booleans()):
        parameters.append(P("k", P.KEYWORD_ONLY, default=draw(st.sampled_from([P.empty, None]))))
    if draw(st.booleans()):
        parameters.append(P("kwargs", P.VAR_KEYWORD))
    return inspect.Signature(parameters)


def function_of(signature: inspect.Signature) -> Any:
    namespace: dict[str, Any] = {}
    exec(f"def function{signature}: pass", namespace)
    return namespace["function"]


def verdict(call: Any) -> str:
    try:
        call()
    except TypeError as error:
        return str(error)
    return "fits"


@given(signatures(), st.integers(0, 5), st.sets(st.sampled_from([*NAMES, "k", "x"])))
def test_it_judges_as_a_call_does(signature: inspect.Signature, count: int, keywords: set[str]) -> None:
    args, kwargs = tuple(range(count)), dict.fromkeys(sorted(keywords))
    function = function_of(signature)
    shape = CallShape.of(function)
    ours = verdict(lambda: shape.check(args, kwargs))
    theirs = verdict(lambda: function(*args, **kwargs))
    assert (ours == "fits") == (theirs == "fits"), (ours, theirs)
    if not kwargs and shape.low <= count <= shape.high:
        assert theirs == "fits", "the hot path would have let this through"


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "missing a required argument: 'x'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"q": 2}, "got an unexpected keyword argument 'q'"),
        ((1,), {"x": 2}, "multiple values for argument 'x'"),
    ],
)
def test_the_words(args: tuple[int, ...], kwargs: dict[str, int], text: str) -> None:
    def f(x: int, y: int = 1, *, z: int = 2) -> None: ...

    assert verdict(lambda: CallShape.of(f).check(args, kwargs)) == text


def test_it_holds_no_default_values_and_pickles() -> None:
    def f(x: object = lambda: None, *, y: object = lambda: None) -> None: ...

    shape = CallShape.of(f)
    again = pickle.loads(pickle.dumps(shape))
    assert again == shape and hash(again) == hash(shape) and again.high == 1


def test_self_is_left_out_on_request() -> None:
    class A:
        def m(self, x: int) -> None: ...

        def star(*args: int) -> None: ...

    assert CallShape.of(A.m, skip_self=True).names == ("x",)
    assert CallShape.of(A.star, skip_self=True).low == 0


def test_what_tells_no_signature_takes_anything() -> None:
    assert CallShape.of(dict.fromkeys) == CallShape.of(dict.fromkeys)
    ANYTHING.check((1, 2), {"x": 3})
