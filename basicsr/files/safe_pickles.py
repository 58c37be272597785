"""A pickle machine that knows plain values and what it is given names for, and nothing else of this process.

Python's unpickler imports and calls what a file names. torch's restricted one (`weights_only`) calls a list of
functions, but knows no limits of depth, time and memory. This machine reads the same instructions and keeps to limits.
It is the only one that reads such files here, so what was checked is what is loaded.
"""

from __future__ import annotations

import io
import pickletools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from basicsr.files.stored_zip import Refused

MAX_PICKLE_BYTES = 64 << 20
MAX_OPERATIONS = 2_000_000
MAX_DEPTH = 64
MAX_VALUES = 10_000_000
MAX_TUPLE_KEYS = 1000
_PLAIN = (str, bytes, int, float, bool, type(None))


class StrangeName(Refused):
    """A file names something that is not in its reader's vocabulary.

    Args:
        name: such as 'os.system'.
    """

    def __init__(self, name: str) -> None:
        what = f"Python objects other than tensors ({name[:100]!r}), which could run code; ask for a plain state dict"
        if name.startswith("torch._utils._rebuild_"):
            what = f"tensors that are not dense ({name[:100]!r}); ask for a plain state dict of dense ones"
        super().__init__(f"it holds {what}")


class Function(NamedTuple):
    """What a pickle may call by name: gets the arguments of the pickle, and raises Refused or any usual exception."""

    call: Callable[..., Any]


class Stranger:
    """Stands for whatever a tolerant machine does not know; accepts all that a pickle does to it, and does nothing."""

    __slots__ = ()


STRANGER = Stranger()
_MARK = object()


class PickleMachine:
    """Carries out pickles.

    Args:
        names: what 'module.name' means: a Function, or a value that cannot be changed.
        persistent: makes an object of a persistent id, a tuple; raises Refused.
        tolerant: put STRANGER in the place of unknown names instead of refusing them.
    """

    def __init__(
        self, names: Mapping[str, object], persistent: Callable[[tuple[Any, ...]], object], *, tolerant: bool = False
    ) -> None:
        self._names, self._persistent, self._tolerant = names, persistent, tolerant
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._operations = self._tuple_keys = self._read = 0
        self._copied = [0, 0]  # entries of containers; letters and bytes
        self._names = {**names, **self._builtin()}
        self._handlers = self._table()

    def load(self, stream: io.BytesIO) -> object:
        """Carries out the pickle that begins at the stream's position, and leaves the stream behind it.

        Args:
            stream: in memory: lengths that a pickle announces are asked of it.

        Raises:
            Refused: the pickle asks for what is not in the vocabulary, or goes beyond a limit.
            Exception: of any kind, where it is damaged.
        """
        self._stack, self._memo = [], {}
        self._read += len(stream.getbuffer())
        handlers = self._handlers
        for operation, argument, _ in pickletools.genops(stream):
            self._operations += 1
            if self._operations > MAX_OPERATIONS:
                raise Refused(f"its pickle has more than {MAX_OPERATIONS} instructions")
            handlers[operation.name](argument)
        return self._pop()

    # What a pickle does. A handler gets the instruction's argument.

    def _table(self) -> dict[str, Callable[[Any], object]]:
        push = self._push
        table: dict[str, Callable[[Any], object]] = {
            "NONE": lambda _: push(None),
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "MARK": lambda _: push(_MARK),
            "EMPTY_DICT": lambda _: push({}),
            "EMPTY_LIST": lambda _: push([]),
            "EMPTY_SET": lambda _: push(set()),
            "EMPTY_TUPLE": lambda _: push(()),
        }
        usual = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "BINBYTES")
        text = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES8")
        table |= dict.fromkeys((*usual, *text), push)
        table |= dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), self._text_of_python_2)
        table |= dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._put)
        table |= dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda number: push(self._memo[number]))
        table |= dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _: None)
        return table | {
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "LONG4": self._long,
            "BYTEARRAY8": lambda value: push(bytearray(value)),
            "POP": lambda _: self._pop(),
            "POP_MARK": lambda _: self._to_mark(),
            "DUP": lambda _: push(self._stack[-1]),
            "TUPLE": lambda _: push(tuple(self._to_mark())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "LIST": lambda _: push(self._to_mark()),
            "DICT": lambda _: self._set_items(self._to_mark(), push({})),
            "APPEND": lambda _: self._extend([self._pop()]),
            "APPENDS": lambda _: self._extend(self._to_mark()),
            "SETITEM": lambda _: self._set_items([self._pop(), self._pop()][::-1]),
            "SETITEMS": lambda _: self._set_items(self._to_mark()),
            "ADDITEMS": lambda _: self._extend(self._to_mark()),
            "FROZENSET": lambda _: push(self._set(self._to_mark())),
            "GLOBAL": lambda name: push(self._named(*name.split(" ", 1))),
            "STACK_GLOBAL": lambda _: push(self._named(*[self._pop(), self._pop()][::-1])),
            "REDUCE": lambda _: self._call([self._pop(), self._pop()][::-1]),
            "NEWOBJ": lambda _: self._call([self._pop(), self._pop()][::-1]),
            "NEWOBJ_EX": lambda _: self._call([self._pop(), self._pop(), self._pop()][::-1]),
            "INST": lambda name: self._call([self._named(*name.split(" ", 1)), tuple(self._to_mark())]),
            "OBJ": lambda _: self._object(self._to_mark()),
            "BUILD": lambda _: self._build(self._pop()),
            "PERSID": lambda _: self._refuse("a persistent id that is text"),
            "BINPERSID": lambda _: self._persist(self._pop()),
            **dict.fromkeys(("EXT1", "EXT2", "EXT4"), self._extension),
            **dict.fromkeys(("NEXT_BUFFER", "READONLY_BUFFER"), lambda _: self._refuse("a buffer beside it")),
        }

    def _push(self, value: Any) -> Any:
        self._stack.append(value)
        return value

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise Refused("it is damaged or no checkpoint (its pickle has a mark for a value)")
        return value

    def _to_mark(self) -> list[Any]:
        stack = self._stack
        for at in range(len(stack) - 1, -1, -1):
            if stack[at] is _MARK:
                taken = stack[at + 1 :]
                del stack[at:]
                return taken
        raise Refused("it is damaged or no checkpoint (its pickle lacks a mark)")

    def _tuple(self, length: int) -> None:
        if len(self._stack) < length or any(value is _MARK for value in self._stack[-length:]):
            raise Refused("it is damaged or no checkpoint (its pickle lacks a value)")
        self._stack[-length:] = [tuple(self._stack[-length:])]

    def _put(self, number: int) -> None:
        if self._stack[-1] is _MARK:
            raise Refused("it is damaged or no checkpoint (its pickle has a mark for a value)")
        self._memo[number] = self._stack[-1]

    def _text_of_python_2(self, value: str) -> None:
        # pickletools reads these bytes as Latin-1 or, where a repr, as ASCII.
        self._push(value.encode("latin-1", "replace").decode("utf-8", "replace"))

    def _long(self, value: int) -> None:
        if value.bit_length() > 8 * 255:
            self._refuse("an integer of more than 255 bytes")
        self._push(value)

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(values)
        elif type(target) is set:
            target |= self._set(values)
        elif target is not STRANGER:
            self._refuse(f"something added to a {type(target).__name__}")

    def _set_items(self, flat: list[Any], target: Any = None) -> None:
        target = self._stack[-1] if target is None else target
        if len(flat) % 2 or not isinstance(target, (dict, Stranger)):
            self._refuse(f"keys set in a {type(target).__name__}")
        if isinstance(target, dict):
            for key, value in zip(flat[::2], flat[1::2], strict=True):
                target[self._key(key)] = value

    def _set(self, values: list[Any]) -> set[Any]:
        return {self._key(value) for value in values}

    def _key(self, key: Any) -> Any:
        """A key that is hashed in no time, whatever else is in the dict; STRANGER for others where tolerant."""
        problem = None
        if type(key) is int and not -(1 << 63) <= key < 1 << 63:  # many of these could share one hash
            problem = "a key that is an integer of more than 64 bits"
        elif type(key) is tuple and all(type(part) in _PLAIN for part in key):
            self._tuple_keys += 1  # likewise
            if self._tuple_keys > MAX_TUPLE_KEYS or len(key) > MAX_DEPTH:
                problem = "too many keys that are tuples"
        elif type(key) not in _PLAIN and key is not STRANGER:
            problem = f"a key that is a {type(key).__name__}"
        if problem and not self._tolerant:
            self._refuse(problem)
        return STRANGER if problem else key

    def _named(self, module: Any, name: Any) -> object:
        if not (isinstance(module, str) and isinstance(name, str)):
            self._refuse("a name that is no text")
        full = f"{_NEW_MODULES.get(module, module)}.{name}"
        if full in self._names:
            return self._names[full]
        if self._tolerant:
            return STRANGER
        raise StrangeName(full)

    def _call(self, called: list[Any]) -> None:
        function, arguments = called[:2]
        if function is STRANGER or (self._tolerant and not isinstance(function, Function)):
            self._push(STRANGER)
        elif not isinstance(function, Function) or not isinstance(arguments, tuple) or len(called) > 2:
            self._refuse(f"a call of a {type(function).__name__}")
        else:
            self._push(function.call(*arguments))

    def _object(self, parts: list[Any]) -> None:
        if not parts:
            self._refuse("an object of no class")
        self._call([parts[0], tuple(parts[1:])])

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        if type(target) is OrderedDict:
            # state_dict() leaves the versions of its modules here. Other attributes could hide a dict's methods.
            if isinstance(state, dict) and isinstance(state.get("_metadata"), dict):
                target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        elif target is not STRANGER:
            self._refuse(f"a state for a {type(target).__name__}")

    def _persist(self, name: Any) -> None:
        if not isinstance(name, tuple):
            self._refuse("a persistent id that is no tuple")
        self._push(self._persistent(name))

    def _extension(self, code: int) -> None:
        self._refuse(f"the unregistered extension code {code}")

    def _refuse(self, what: str) -> None:
        raise Refused(f"it is damaged or no checkpoint (its pickle has {what})")

    # What every pickle may call: plain values that have no instruction of their own in old protocols.

    def _builtin(self) -> dict[str, object]:
        return {
            "collections.OrderedDict": Function(self._ordered),
            "collections.Counter": Function(lambda content=(): Counter(self._ordered(content))),
            "builtins.set": Function(lambda content=(): self._set(self._copy(content, list))),
            "builtins.complex": Function(lambda real, imaginary: complex(float(real), float(imaginary))),
            "builtins.bytearray": Function(self._bytearray),
            "_codecs.encode": Function(self._encode),
        }

    def _copy(self, content: Any, kind: type | tuple[type, ...]) -> Any:
        """`content`, if it is of this kind, and if copies of it are no way to fill the memory with a small file."""
        if not isinstance(content, kind):
            self._refuse(f"a copy of a {type(content).__name__}")
        is_text = isinstance(content, (str, bytes))
        self._copied[is_text] += len(content)
        if self._copied[is_text] > (self._read if is_text else self._operations):
            self._refuse("too many copies of its own parts")
        return content

    def _ordered(self, content: Any = ()) -> OrderedDict[Any, Any]:
        pairs = self._copy(content, (dict, list, tuple))
        if isinstance(pairs, dict):
            pairs = pairs.items()
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            self._refuse("an OrderedDict of what are no pairs")
        return OrderedDict((self._key(key), value) for key, value in pairs)

    def _bytearray(self, content: Any = b"", encoding: Any = None) -> bytearray:
        return bytearray(self._encode(content, encoding) if encoding is not None else self._copy(content, bytes))

    def _encode(self, content: Any, encoding: Any) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            self._refuse("text in another encoding than Latin-1")
        text: str = self._copy(content, str)
        return text.encode("latin-1")


# Protocol 2 writes the names of Python 2.
_NEW_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def check_nesting(value: object) -> None:
    """Refuses what a walk over the value would not come to the end of, though it takes little memory.

    Raises:
        Refused: it holds itself, is nested deeper than MAX_DEPTH, or has more than MAX_VALUES entries if each is
            counted as often as it is reached.
    """
    done: dict[int, tuple[int, int]] = {}  # depth and number of values of finished containers
    waiting: list[tuple[Any, Iterator[Any]]] = [(value, iter(_inside(value)))]
    open_now = {id(value)}
    while waiting:
        container, rest = waiting[-1]
        below = next((part for part in rest if id(part) not in done and _is_container(part)), None)
        if below is not None:
            if id(below) in open_now:
                raise Refused("it is damaged or no checkpoint (a part of it holds itself)")
            if len(waiting) >= MAX_DEPTH:
                raise Refused(f"it is damaged or no checkpoint (its parts are nested deeper than {MAX_DEPTH})")
            open_now.add(id(below))
            waiting.append((below, iter(_inside(below))))
            continue
        waiting.pop()
        open_now.discard(id(container))
        sizes = [done.get(id(part), (0, 1)) for part in _inside(container)]
        depth, count = 1 + max((size[0] for size in sizes), default=0), 1 + sum(size[1] for size in sizes)
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise Refused(f"it is damaged or no checkpoint (nested {depth} deep, with {count} values)")
        done[id(container)] = (depth, count)


def _is_container(value: object) -> bool:
    return isinstance(value, (dict, list, tuple))


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.values(), *vars(value).values()] if type(value) is OrderedDict else list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []
