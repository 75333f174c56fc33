"""What a compiled program costs, instruction by instruction: read from XLA's text of it.

The rules are those of XLA's own cost analysis: an element-wise operation is one FLOP an element
(exp, tanh and the like are counted apart by XLA, as transcendentals, and not here), a dot two for
each multiplication, the body of a loop counts once, and a fusion reads its operands once and writes
its result. What XLA has fused keeps its names, so a FLOP belongs to who wrote it, however the
program was cut; what a fusion reads belongs to the first who uses it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

_ELEMENTWISE = frozenset(
    "abs add and bitcast-convert ceil clamp compare complex convert count-leading-zeros divide "
    "floor imag is-finite maximum minimum multiply negate not or popcnt real reduce-precision "
    "remainder round-nearest-afz round-nearest-even select shift-left shift-right-arithmetic "
    "shift-right-logical sign subtract xor".split()
)
_FREE = frozenset(
    "after-all bitcast call conditional constant get-tuple-element opt-barrier parameter tuple "
    "while".split()
)
_SLICES = frozenset({"slice", "dynamic-slice", "gather"})
_LINE = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|\w+_computations?)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)


class Cost(NamedTuple):
    """What a part of a program costs."""

    scope: str  # the names that it was made under
    instruction: str  # the one of the schedule that it is in: what a profiler measures
    flops: float
    bytes: float
    runs: int  # how often it runs, where it is in a loop whose length XLA knows


class _Instruction:
    def __init__(self, found: re.Match[str]):
        root, self.name, self.type, self.opcode, rest = found.groups()
        self.is_root = bool(root)
        inside, self.rest = _split(rest)
        self.operands = re.findall(r"%([\w.\-]+)", inside)
        self.number = int(inside) if self.opcode == "parameter" else 0
        self.scope = _attribute(r'op_name="((?:[^"\\]|\\.)*)"', rest).replace("\\'", "'")
        self.called = {
            kind: re.findall(r"[\w.\-]+", several or one)
            for kind, several, one in _CALLED.findall(self.rest)
        }
        self.runs = int(_attribute(r'"known_trip_count":\{"n":"(\d+)"', rest) or 1)
        self.shapes = [
            (kind, [int(n) for n in dims.split(",") if n])
            for kind, dims in _SHAPE.findall(self.type)
        ]
        self.elements = sum(math.prod(dims) for _, dims in self.shapes)
        self.size = sum(math.prod(dims) * _width(kind) for kind, dims in self.shapes)


def _attribute(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def _numbers(pattern: str, text: str) -> list[int]:
    return [int(n) for n in re.findall(r"-?\d+", _attribute(pattern, text))]


def _split(text: str) -> tuple[str, str]:
    """(inside of the parenthesis that was opened before, what follows it)."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:i], text[i + 1 :]
    return text, ""


def _width(kind: str) -> float:
    """Bytes of an element of a type, as XLA writes it: `f32`, `f8e4m3fn`, `pred`."""
    bits = re.match(r"(?:bf|[a-z])(\d+)", kind)
    return int(bits[1]) / 8 if bits else float(kind == "pred")


class Program:
    """A compiled program, from its text."""

    def __init__(self, text: str):
        self.name = _attribute(r"HloModule ([\w.\-]+)", text)
        self._computations: dict[str, dict[str, _Instruction]] = {}
        self._entry = here = ""
        for line in text.splitlines():
            if (found := _HEAD.match(line)) and "=" not in line.partition("(")[0]:
                here = found[2]
                self._computations[here] = {}
                self._entry = here if found[1] else self._entry
            elif here and (found := _LINE.match(line)):
                instruction = _Instruction(found)
                self._computations[here][instruction.name] = instruction
        for known in self._computations.values():
            for x in reversed(list(known.values())):  # what XLA made itself is for who uses it
                for name in x.operands:
                    if name in known and not known[name].scope:
                        known[name].scope = x.scope

    def costs(self) -> Iterator[Cost]:
        """Every part that costs something."""
        return self._costs(self._entry, "", 1)

    def _costs(self, computation: str, scope: str, runs: int) -> Iterator[Cost]:
        known = self._computations[computation]
        for x in known.values():
            at = x.scope or scope
            if x.opcode == "fusion":
                yield from self._of_fusion(x, known, at, runs)
                continue
            inner = [] if self._applies(x) else [name for of in x.called.values() for name in of]
            for name in inner:
                yield from self._costs(name, at, runs * x.runs)
            if x.opcode not in _FREE:
                flops = self._flops(x, known)
                yield Cost(at, x.name, flops, _bytes(x, known), runs)

    def _of_fusion(
        self, fusion: _Instruction, known: dict[str, _Instruction], scope: str, runs: int
    ) -> Iterator[Cost]:
        (name,) = fusion.called["calls"]
        inside = self._computations[name]
        written = fusion.size
        for x in inside.values():
            at = x.scope or scope
            uses = [y for y in inside.values() if x.name in y.operands]
            if x.opcode == "fusion":
                yield from (
                    cost._replace(instruction=fusion.name, bytes=0.0)
                    for cost in self._of_fusion(x, inside, at, runs)
                )
            elif x.opcode == "parameter" and uses:
                read = known[fusion.operands[x.number]].size
                if all(use.opcode in _SLICES and use.operands[0] == x.name for use in uses):
                    read = sum(use.size for use in uses)
                elif all(_updates(use, x.name) for use in uses):
                    read = 0.0
                by = next((use.scope for use in uses if use.scope), scope)
                yield Cost(by, fusion.name, 0.0, read, runs)
            else:
                yield Cost(at, fusion.name, self._flops(x, inside), 0.0, runs)
            if x.is_root and x.opcode == "dynamic-update-slice":
                written = inside[x.operands[1]].size
        yield Cost(scope, fusion.name, 0.0, written, runs)

    def _applies(self, x: _Instruction) -> bool:
        """Whether what it calls is applied to elements."""
        return "to_apply" in x.called and x.opcode not in ("call", "async-start")

    def _flops(self, x: _Instruction, known: dict[str, _Instruction]) -> float:
        operands = [known[name] for name in x.operands if name in known]
        if x.opcode in _ELEMENTWISE:
            return x.elements
        if x.opcode == "dot":
            contracted = _numbers(r"lhs_contracting_dims=\{([\d,]*)\}", x.rest)
            sizes = operands[0].shapes[0][1]
            return 2 * x.elements * math.prod(sizes[i] for i in contracted)
        if x.opcode == "convolution":
            return _of_convolution(x, operands[0], operands[1])
        if not self._applies(x):
            return 0.0
        body = self._computations[x.called["to_apply"][0]]
        each = sum(self._flops(y, body) for y in body.values())
        if x.opcode == "reduce":
            return each * (operands[0].elements - x.elements // len(x.shapes))
        if x.opcode == "reduce-window":
            size = _numbers(r"window=\{size=([\dx]*)", x.rest)
            return each * x.elements // len(x.shapes) * (math.prod(size) - 1)
        if x.opcode == "sort":
            return x.elements * max(operands[0].elements - 1, 1).bit_length()
        if x.opcode == "scatter":
            return each * operands[-1].elements
        return each * x.elements

    def peak(self) -> dict[str, float]:
        """By scope, the bytes of intermediate values when there are most of them."""
        return self._peak(self._entry)

    def _peak(self, computation: str) -> dict[str, float]:
        known = list(self._computations[computation].values())
        holds: dict[str, set[str]] = {}  # the buffers that a value is made of
        last: dict[str, int] = {}
        for i, x in enumerate(known):
            held = set().union(*(holds.get(name, set()) for name in x.operands))
            for name in held:
                last[name] = len(known) if x.is_root else i
            holds[x.name] = held if x.opcode in _FREE else {x.name}
        live: dict[str, _Instruction] = {}
        best: dict[str, float] = {}
        for i, x in enumerate(known):
            if x.opcode not in _FREE and last.get(x.name, len(known)) < len(known):
                live[x.name] = x
            now: dict[str, float] = defaultdict(float)
            if x.opcode in ("while", "call", "conditional"):
                for name in [n for kind, of in x.called.items() if kind != "condition" for n in of]:
                    for scope, size in self._peak(name).items():
                        now[scope] += size
            for y in live.values():
                now[y.scope] += y.size
            if sum(now.values()) > sum(best.values()):
                best = now
            live = {name: y for name, y in live.items() if last[name] > i}
        return best

    def is_container(self, instruction: str) -> bool:
        """Whether what a profiler measures of it is that of other instructions, too."""
        found = [
            known[instruction] for known in self._computations.values() if instruction in known
        ]
        return not found or found[0].opcode in _FREE


def _bytes(x: _Instruction, known: dict[str, _Instruction]) -> float:
    operands = [known[name].size for name in x.operands if name in known]
    if x.opcode in ("slice", "dynamic-slice", "gather"):
        return 2 * x.size + sum(operands[1:])
    if x.opcode == "dynamic-update-slice":
        return 2 * operands[1] + sum(operands[2:])
    return x.size + sum(operands)


def _updates(x: _Instruction, name: str) -> bool:
    return x.opcode == "dynamic-update-slice" and x.operands[0] == name


def _of_convolution(x: _Instruction, image: _Instruction, kernel: _Instruction) -> float:
    """Two FLOPs for each multiplication of an element that is there, not of padding."""
    labels = _attribute(r"dim_labels=(\S+?)[,\s]", x.rest + " ")
    of_image, of_kernel, of_out = re.split(r"_|->", labels)
    (_, ins), (_, sizes), (_, outs) = image.shapes[0], kernel.shapes[0], x.shapes[0]
    given = re.findall(r"(\w+)=([\d_x\-]+)", _attribute(r"window=\{(.*?)\}", x.rest))
    window = {key: re.findall(r"-?\d+(?:_-?\d+)?", values) for key, values in given}
    total = math.prod(sizes) / sizes[of_kernel.index("o")] * 2
    total *= outs[of_out.index("b")] * outs[of_out.index("f")]
    for i, label in enumerate(sorted(set(of_image) - set("bf"))):
        n, k = ins[of_image.index(label)], sizes[of_kernel.index(label)]
        out = outs[of_out.index(label)]
        low = int(window["pad"][i].split("_")[0]) if "pad" in window else 0
        stride, spread, apart = (int(window[key][i]) if key in window else 1
                                 for key in ("stride", "lhs_dilate", "rhs_dilate"))  # fmt: skip
        there = [(o * stride + j * apart - low, spread) for o in range(out) for j in range(k)]
        total *= sum(at % s == 0 and 0 <= at // s < n for at, s in there) / k
    return total
