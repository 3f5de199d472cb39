"""Which pickler serves an object: the C pickler alone, or cloudpickle. Used by serialization and functions.

Both picklers here are C picklers whose ``reducer_override`` sees every object that is not of an exact
built-in type, however deep it is in a container; so nothing needs to be checked beforehand, and a cycle is
the memo's business.

* ``PlainPickler`` takes what pickle can express by itself: built-in values, arrays, instances of classes
  that a worker can import, and such classes and functions by reference. At the first thing beyond (a lambda,
  anything of ``__main__``, a module that workers cannot import, a bound method, …) it raises ``NeedsFull``.
* ``full_pickler_class()`` is cloudpickle's, made when first needed (cloudpickle takes 20 ms to import). What
  a worker could not import goes by value.

Both recognise ObjectRefs (``refs``, in order), rebuild exceptions without calling their ``__init__``, and
give large buffers out of band.

Invariant: a class or function goes by reference only if looking its name up gives that very object, and its
module is one that workers find.
"""

from __future__ import annotations

import copyreg
import gc
import importlib.machinery
import os
import pickle
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from minray.object_ref import ObjectRef

PROTOCOL = 5
TINY = 4096  # smaller buffers always stay in the pickle: a view of its own would cost more


class NeedsFull(Exception):
    """This value is beyond the plain pickler."""


# --- what workers can import ----------------------------------------------------------------------

_importable: dict[str, bool] = {}
_worker_path: Sequence[str] | None = None


def set_worker_path(path: Sequence[str] | None) -> None:
    """Workers look for modules on this path; None: on whatever ``sys.path`` is here at the time."""
    global _worker_path
    _worker_path = path
    _importable.clear()


def importable(name: str) -> bool:
    """Whether a worker that imports ``name`` gets the module that is loaded here under this name."""
    known = _importable.get(name)
    if known is None:
        known = _find_out(name)
        if name in sys.modules:
            _importable[name] = known
    return known


def _find_out(name: str) -> bool:
    if name == "__main__" or name == "__mp_main__":
        return False
    parent, _, _ = name.rpartition(".")
    if name.partition(".")[0] in sys.stdlib_module_names:
        return True
    if parent and not importable(parent):
        return False
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    search = getattr(sys.modules.get(parent), "__path__", None) if parent else _worker_path
    if parent and search is None:
        # Its parent's import put it into sys.modules (an extension's submodule), and will do so there.
        return not _is_source(file)
    found = _find_spec(name, search)
    if found is None:
        return bool(parent) and not _is_source(file)
    if file is None or found.origin is None:
        return file is None and module is not None and hasattr(module, "__path__")
    return _same_file(found.origin, file)


def _find_spec(name: str, path: Any) -> Any:
    found: Any = importlib.machinery.PathFinder.find_spec(name, path)
    for finder in sys.meta_path:
        if found is not None:
            break
        # Of the other finders, workers have those that an editable install adds when Python starts.
        if "editable" in getattr(finder, "__module__", "").lower():
            found = finder.find_spec(name, path if "." in name else None)
    return found


def _is_source(file: Any) -> bool:
    return isinstance(file, str) and file.endswith((".py", ".pyc"))


def _same_file(one: str, other: str) -> bool:
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def by_reference(obj: Any) -> bool:
    """Whether a class or function can be pickled as its name."""
    if id(obj) in _lasting:
        return True
    module_name, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if type(module_name) is not str or type(name) is not str:
        return False
    found: Any = sys.modules.get(module_name)
    if found is None:
        return False
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            return False
    if found is not obj or not importable(module_name) or _wanted_by_value(module_name):
        return False
    top = module_name.partition(".")[0]
    if top in _LASTING_PACKAGES or top in sys.stdlib_module_names:
        _lasting[id(obj)] = obj
    return True


def _wanted_by_value(module_name: str) -> bool:
    """Whether the user told cloudpickle to send this module, or a package around it, by value."""
    cloudpickle = sys.modules.get("cloudpickle")
    listed = getattr(cloudpickle, "list_registry_pickle_by_value", None)
    names = listed() if listed is not None else ()
    return bool(names) and any(module_name == name or module_name.startswith(name + ".") for name in names)


# Classes and functions of modules that nobody reloads or changes: looked up once. By id, since classes
# may define their own hash; the object beside it keeps the id from being used again.
_lasting: dict[int, Any] = {}
_LASTING_PACKAGES = frozenset(("minray", "numpy", "pandas"))


# --- which instances the C pickler can take -------------------------------------------------------

# cloudpickle has reducers for some types of these modules; only those named here need none.
_SPECIAL_MODULES = frozenset(
    ("abc", "builtins", "cloudpickle.cloudpickle", "dataclasses", "_io", "io", "logging", "types", "typing",
     "weakref", "_weakrefset")
)  # fmt: skip
_PLAIN_BUILTINS: tuple[type, ...] = (
    complex, bytearray, range, slice, enumerate, zip, reversed, types.BuiltinFunctionType, type(...),
    type(NotImplemented), pickle.PickleBuffer,
)  # fmt: skip
_plain: set[type] = set(_PLAIN_BUILTINS)


def _is_plain(cls: type) -> bool:
    """Whether instances of ``cls`` reduce by themselves, and the class goes by reference."""
    if cls.__module__ in _SPECIAL_MODULES:
        return issubclass(cls, BaseException) and by_reference(cls)
    return by_reference(cls)


def _custom_reducers() -> Any:
    """Types for which somebody registered a reducer with cloudpickle (``util.register_serializer``)."""
    cloudpickle = sys.modules.get("cloudpickle")
    pickler = getattr(cloudpickle, "Pickler", None)  # None also while cloudpickle is being imported
    return () if pickler is None else pickler.dispatch_table.maps[0]


# --- what both picklers do ------------------------------------------------------------------------


def load_ref(index: int) -> Any:
    """Stands in a pickle for a nested ObjectRef; ``serialization.deserialize`` puts the real one there."""
    raise pickle.UnpicklingError(f"nested reference {index} in a value that was not loaded by the runtime")


def load_array(buffer: Any, dtype: str, shape: tuple[int, ...], order: str) -> Any:
    """The array over ``buffer`` that ``_Collector`` took apart."""
    import numpy

    reshape: Any = numpy.frombuffer(buffer, dtype).reshape
    return reshape(shape, order=order)


class _Sink:
    """What a C pickler writes to."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[Any], object]) -> None:
        self.write = write


class _Collector:
    """What a pickler collects beside the bytes: references and large buffers."""

    __slots__ = ("buffers", "chunks", "inline_limit", "inline_used", "refs")

    def __init__(self, inline_limit: int) -> None:
        self.chunks: list[bytes] = []
        self.buffers: list[memoryview] = []
        self.refs: list[ObjectRef[Any]] = []
        self.inline_limit = inline_limit
        self.inline_used = 0

    def on_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """True keeps it in the pickle. Small ones stay, as long as all of them together are small."""
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous: pickle says so better
            return True
        size = raw.nbytes
        if size < TINY or self.inline_used + size <= self.inline_limit:
            self.inline_used += size
            return True
        self.buffers.append(raw)
        return False

    def reduce_special(self, obj: Any, cls: type) -> Any:
        """The reduction of references, arrays and exceptions; None for everything else."""
        if cls is ObjectRef:
            self.refs.append(obj)
            return load_ref, (len(self.refs) - 1,)
        numpy = sys.modules.get("numpy")
        if numpy is not None and cls is getattr(numpy, "ndarray", None):
            return self._reduce_array(numpy, obj)
        if issubclass(cls, BaseException):
            return _reduce_exception(obj, cls)
        return None

    def _reduce_array(self, numpy: Any, array: Any) -> Any:
        dtype = array.dtype
        if dtype.hasobject:
            return NotImplemented
        if not array.flags.forc:  # one copy here instead of two in the pickle, and out of band if large
            array = numpy.ascontiguousarray(array)
        elif not array.flags.writeable and array.nbytes <= self.inline_limit:
            # A piece of a stored, read-only array: it travels as a copy, so it arrives writable.
            array = array.copy(order="A")
        if dtype.kind not in "biufcSUMm" or array.size == 0 or dtype.metadata or not dtype.itemsize:
            return array.__reduce_ex__(PROTOCOL)
        # As numpy's own reduction, with fewer objects for the pickler to look at.
        order = "C" if array.flags.c_contiguous else "F"
        plain = array.view("i8") if dtype.kind in "Mm" else array  # dates have no buffer protocol
        return load_array, (pickle.PickleBuffer(plain), dtype.str, array.shape, order)


class PlainPickler(pickle.Pickler):
    """The C pickler, for what needs nothing else. After a ``dump`` that succeeded, ``clear_memo`` and the
    caller's emptying ``collected`` make it ready for the next."""

    def __init__(self, inline_limit: int) -> None:
        self.collected = _Collector(inline_limit)
        super().__init__(
            _Sink(self.collected.chunks.append), PROTOCOL, buffer_callback=self.collected.on_buffer
        )

    def reducer_override(self, obj: Any) -> Any:
        """See the module. Raises NeedsFull."""
        cls = type(obj)
        if cls is ObjectRef:
            refs = self.collected.refs
            refs.append(obj)
            return load_ref, (len(refs) - 1,)
        if issubclass(cls, type) or cls is types.FunctionType:
            if by_reference(obj):
                return NotImplemented
            raise NeedsFull
        if cls in _custom_reducers():
            raise NeedsFull
        if cls not in _plain:
            if not _is_plain(cls):
                raise NeedsFull
            # The class itself is looked up again, when the pickler comes to it.
            _plain.add(cls)
        special = self.collected.reduce_special(obj, cls)
        return NotImplemented if special is None else special


_full: Any = None


def _load_cloudpickle() -> None:
    """The collector rests meanwhile: a ``__del__`` that it runs in the middle could need half a module."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        import cloudpickle  # noqa: F401
    finally:
        if enabled:
            gc.enable()


def full_pickler_class() -> Any:
    """cloudpickle's pickler with our recognitions. ``collected`` None: references go out of band."""
    global _full
    if _full is None:
        _load_cloudpickle()
        import cloudpickle

        reduce_code = cloudpickle.Pickler.reducer_override  # for classes and functions; else NotImplemented
        custom = cloudpickle.Pickler.dispatch_table.maps[0]

        class FullPickler(cloudpickle.Pickler):  # type: ignore[misc]
            def __init__(self, collected: _Collector | None, chunks: list[bytes]) -> None:
                self.collected = collected
                callback = None if collected is None else collected.on_buffer
                super().__init__(_Sink(chunks.append), PROTOCOL, buffer_callback=callback)

            def reducer_override(self, obj: Any) -> Any:
                cls = type(obj)
                if issubclass(cls, type) or cls is types.FunctionType:
                    if by_reference(obj):
                        return NotImplemented
                    _send_by_value(cloudpickle, getattr(obj, "__module__", None))
                    return reduce_code(self, obj)
                if cls is types.ModuleType:
                    _send_by_value(cloudpickle, obj.__name__)
                elif cls not in custom:
                    if self.collected is not None:
                        special = self.collected.reduce_special(obj, cls)
                    elif issubclass(cls, BaseException):
                        special = _reduce_exception(obj, cls)
                    else:
                        special = None
                    return NotImplemented if special is None else special
                return NotImplemented

        _full = FullPickler
    return _full


def collect(inline_limit: int) -> _Collector:
    """An empty collector for a full pickler."""
    return _Collector(inline_limit)


def _send_by_value(cloudpickle: Any, module_name: Any) -> None:
    """Make cloudpickle send what is in this module by value, unless workers can import it."""
    if type(module_name) is str and module_name != "__main__" and not importable(module_name):
        module = sys.modules.get(module_name)
        if isinstance(module, types.ModuleType) and module.__name__ in sys.modules:
            cloudpickle.register_pickle_by_value(module)


# --- exceptions -----------------------------------------------------------------------------------


def _reduce_exception(error: BaseException, cls: type) -> Any:
    """Rebuild without ``__init__``: pickle's way calls it with ``args``, which need not be its arguments.

    Only for classes written in Python that do not say themselves how they reduce.
    """
    if cls in copyreg.dispatch_table or not _python_attributes(cls) & {"__init__", "__new__"}:
        return NotImplemented
    for base in cls.__mro__:
        if "__reduce__" in base.__dict__ or "__reduce_ex__" in base.__dict__:
            if base.__module__ != "builtins":
                return NotImplemented
            break
    reduced = error.__reduce__()
    if not isinstance(reduced, tuple) or len(reduced) < 2 or reduced[0] is not cls:
        return NotImplemented
    state = reduced[2] if len(reduced) > 2 else None
    if "__setstate__" in _python_attributes(cls):
        return make_exception, (cls, reduced[1]), state
    slots = {name: getattr(error, name) for name in copyreg._slotnames(cls) if hasattr(error, name)}  # type: ignore[attr-defined]
    return make_exception, (cls, reduced[1], state, slots)


def _python_attributes(cls: type) -> set[str]:
    return {name for base in cls.__mro__ if base.__module__ != "builtins" for name in base.__dict__}


def make_exception(
    cls: type[BaseException], args: tuple[Any, ...], state: Any = None, slots: dict[str, Any] | None = None
) -> BaseException:
    """The inverse of ``_reduce_exception``."""
    builtin: Any = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    try:
        error: BaseException = builtin.__new__(cls, *args)
        builtin.__init__(error, *args)
    except (TypeError, ValueError):  # its C part refuses these arguments: keep them without it
        error = BaseException.__new__(cls, *args)
        error.args = args
    if isinstance(state, dict):
        vars(error).update(state)
    for name, value in (slots or {}).items():
        object.__setattr__(error, name, value)
    return error
