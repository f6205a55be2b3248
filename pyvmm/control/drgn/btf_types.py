"""A kernel's BTF as drgn's types: a type finder, and an object finder for what BTF knows of objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import drgn
from drgn import Object, Program, Qualifiers, Type, TypeEnumerator, TypeKind, TypeKindSet

from pyvmm.control.drgn.btf import DEPTH, Btf, BtfError, BtfKind, BtfMember, BtfType

_KINDS: Final = {
    TypeKind.VOID: (), TypeKind.INT: (BtfKind.INT,), TypeKind.BOOL: (BtfKind.INT,), TypeKind.FLOAT: (BtfKind.FLOAT,),
    TypeKind.STRUCT: (BtfKind.STRUCT,), TypeKind.UNION: (BtfKind.UNION,),
    TypeKind.ENUM: (BtfKind.ENUM, BtfKind.ENUM64), TypeKind.TYPEDEF: (BtfKind.TYPEDEF,),
}  # fmt: skip
_QUALIFIERS: Final = {
    BtfKind.CONST: Qualifiers.CONST,
    BtfKind.VOLATILE: Qualifiers.VOLATILE,
    BtfKind.RESTRICT: Qualifiers.RESTRICT,
}


class BtfTypes:
    """The types of *btf* in *program*."""

    def __init__(self, program: Program, btf: Btf) -> None:
        self.btf = btf
        self._program = program
        self._made: dict[int, Type] = {}
        self._enumerators: dict[str, tuple[int, int]] | None = None
        """By name the number of its enumeration, and its value; None before somebody asks for one."""

    def find(self, kinds: TypeKindSet, name: str) -> Type | None:
        """A type of this *name* and one of these *kinds*; None where there is none. Raises BtfError."""
        for kind, of_btf in _KINDS.items():
            if kind in kinds:
                for number in self.btf.named(name, *of_btf):
                    made = self.type(number)
                    if made.kind == kind:
                        return made
        return None

    def enumerator(self, name: str) -> Object | None:
        """The constant of an enumeration."""
        if self._enumerators is None:
            self._enumerators = {}
            for number in range(1, len(self.btf)):
                found = self.btf[number]
                if found.kind in (BtfKind.ENUM, BtfKind.ENUM64):
                    for each, value in self.btf.enumerators(found):
                        self._enumerators.setdefault(each, (number, value))
        if name not in self._enumerators:
            return None
        number, value = self._enumerators[name]
        return Object(self._program, self.type(number), value)

    def declared(self, name: str, *kinds: BtfKind) -> Type | None:
        """The type of the variable (VAR) or function (FUNC) of this *name*."""
        number = next(self.btf.named(name, *kinds), None)
        return None if number is None else self.type(self.btf[number].size_or_type)

    def type(self, number: int, depth: int = 0) -> Type:
        """Type *number*; raises BtfError."""
        if number not in self._made:
            if depth > DEPTH:
                raise BtfError(f"type {number} refers to itself, or to too much")
            self.btf.check_nesting(number)
            self._made[number] = self._make(self.btf[number], depth + 1)
        return self._made[number]

    def _make(self, of: BtfType, depth: int) -> Type:
        program, btf = self._program, self.btf
        match of.kind:
            case BtfKind.VOID:
                return program.void_type()
            case BtfKind.INT:
                kind = btf.integer(of)
                if kind.boolean:
                    return program.bool_type(of.name, of.size_or_type)
                return program.int_type(of.name, of.size_or_type, kind.signed)
            case BtfKind.FLOAT:
                return program.float_type(of.name, of.size_or_type)
            case BtfKind.PTR:
                return program.pointer_type(self.type(of.size_or_type, depth))
            case BtfKind.ARRAY:
                element, count = btf.array(of)
                return program.array_type(self.type(element, depth), count or None)
            case BtfKind.STRUCT | BtfKind.UNION:
                make = program.struct_type if of.kind == BtfKind.STRUCT else program.union_type
                members = [self._member(member) for member in btf.members(of)]
                return make(of.name or None, of.size_or_type, members)
            case BtfKind.FWD:
                return self._forward(of, depth)
            case BtfKind.ENUM | BtfKind.ENUM64:
                return self._enumeration(of)
            case BtfKind.TYPEDEF:
                return program.typedef_type(of.name, self.type(of.size_or_type, depth))
            case BtfKind.FUNC:
                return self.type(of.size_or_type, depth)
            case BtfKind.FUNC_PROTO:
                return self._prototype(of, depth)
            case BtfKind.TYPE_TAG:
                return self.type(of.size_or_type, depth)
            case BtfKind.CONST | BtfKind.VOLATILE | BtfKind.RESTRICT:
                plain = self.type(of.size_or_type, depth)
                return plain.qualified(plain.qualifiers | _QUALIFIERS[of.kind])
        raise BtfError(f"a {of.kind.name} where a type is to be")

    def _member(self, member: BtfMember) -> drgn.TypeMember:
        return drgn.TypeMember(self._of_member(member), member.name or None, member.bit_offset)

    def _of_member(self, member: BtfMember) -> Callable[[], Object | Type]:
        """Made when drgn first asks: a kernel's structures lead to each other without end."""

        def make() -> Object | Type:
            made = self.type(member.type)
            return Object(self._program, made, bit_field_size=member.bits) if member.bits else made

        return make

    def _forward(self, of: BtfType, depth: int) -> Type:
        """The type itself, where it is elsewhere in the table."""
        kind = BtfKind.UNION if of.flag else BtfKind.STRUCT
        number = next(self.btf.named(of.name, kind), None)
        if number is not None:
            return self.type(number, depth)
        return self._program.union_type(of.name) if of.flag else self._program.struct_type(of.name)

    def _enumeration(self, of: BtfType) -> Type:
        if not of.vlen:
            return self._program.enum_type(of.name or None)
        found = list(self.btf.enumerators(of))
        signed = any(value < 0 for _, value in found)
        compatible = self._program.int_type("int" if signed else "unsigned int", of.size_or_type, signed)
        return self._program.enum_type(
            of.name or None, compatible, [TypeEnumerator(name, value) for name, value in found]
        )

    def _prototype(self, of: BtfType, depth: int) -> Type:
        parameters = list(self.btf.parameters(of))
        variadic = bool(parameters) and parameters[-1] == ("", 0)
        return self._program.function_type(
            self.type(of.size_or_type, depth),
            [
                drgn.TypeParameter(lambda number=number: self.type(number), name or None)
                for name, number in parameters[: len(parameters) - variadic]
            ],
            variadic,
        )
