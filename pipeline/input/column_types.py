"""One type for each column of all shards, such that no value is lost; no I/O of its own.

Types that fit by themselves, such as int32 beside int64, need no look at the values. For others
(whole numbers beside fractions, timestamps of two units) the caller says whether the values of a
shard survive a cast.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError

# Whether all values of a column of a shard survive a cast: shard, column and type in; None if they
# do, otherwise the reason out.
Check = Callable[[str, str, pa.DataType], str | None]
Schemas = Iterable[tuple[str, pa.Schema]]
MAX_NAMED = 3


def plain(schema: pa.Schema) -> pa.Schema:
    """``schema`` without metadata, all columns nullable, and without types that few readers know.

    Views of text and lists (as DataFusion and Polars write them) become text and lists.
    """
    return pa.schema([pa.field(field.name, _without_views(field.type)) for field in schema])


def unify(schemas: Schemas, check: Check) -> tuple[pa.Schema, list[str]]:
    """The common schema of all shards, given as (name, `plain` schema), and notes for people.

    Each note says how a column is read whose types differ. Raises `InputError` for no shards, a
    column name that occurs twice, or a column for which no type keeps all values.
    """
    columns: dict[str, dict[pa.DataType, list[str]]] = {}
    for shard, schema in schemas:
        _refuse_repeated(shard, schema)
        for field in schema:
            columns.setdefault(field.name, {}).setdefault(field.type, []).append(shard)
    fields, notes = list[pa.Field](), list[str]()
    for name, shards in columns.items():
        type_, note = _common_type(name, shards, check)
        fields.append(pa.field(name, type_))
        notes += [note] if note else []
    return pa.schema(fields), notes


def fit(schemas: Schemas, fixed: pa.Schema, check: Check) -> list[str]:
    """Raise `InputError` unless all shards fit the schema ``fixed``; returns notes as `unify` does.

    They may lack columns, and have columns without a value that ``fixed`` lacks.
    """
    notes = []
    for shard, schema in schemas:
        _refuse_repeated(shard, schema)
        for field in schema:
            if pa.types.is_null(field.type):
                continue
            if field.name not in fixed.names:
                raise InputError(
                    f"{shard} has a column {field.name}, which the output does not have: the "
                    "shards that the run began with lack it. Remove the column from the file, or "
                    "choose another output.path"
                )
            target = fixed.field(field.name).type
            if reason := _misfit(shard, field.name, field.type, target, check):
                raise InputError(
                    f"column {field.name} is {field.type} in {shard}, and {target} in the output "
                    f"({reason}). Convert the column in that file, or choose "
                    "another output.path"
                )
            if not _always_fits(field.type, target):
                notes.append(
                    f"column {field.name} is {field.type} in {shard} and is read as {target}, as "
                    "in the rest of the output"
                )
    return notes


def _refuse_repeated(shard: str, schema: pa.Schema) -> None:
    if len(set(schema.names)) < len(schema.names):
        repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
        raise InputError(
            f"{shard} has several columns called {', '.join(repeated)}; rename all but one"
        )


def _common_type(
    name: str, shards: Mapping[pa.DataType, list[str]], check: Check
) -> tuple[pa.DataType, str]:
    """The type that keeps all values of a column, and a note if that is not obvious.

    ``shards``: names of the shards by the type that the column has there.
    """
    types = [type_ for type_ in shards if not pa.types.is_null(type_)]
    if len(types) < 2:
        return types[0] if types else pa.null(), ""
    having = "; ".join(f"{type_} in {_named(shards[type_])}" for type_ in types)
    try:
        candidates = _candidates(types)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"the columns of {shards[types[-1]][0]} do not fit the other shards: column {name} is "
            f"{having} ({error}); convert the files to one type"
        ) from None
    reasons = []
    for candidate in candidates:
        # The files of most types fit without a look, so the others decide soon.
        reason = next(
            (
                reason
                for type_, names in shards.items()
                for shard in names
                if (reason := _misfit(shard, name, type_, candidate, check))
            ),
            None,
        )
        if reason is None:
            obvious = all(_always_fits(type_, candidate) for type_ in types)
            return candidate, "" if obvious else _note(name, having, types, candidate)
        reasons.append(f"  as {candidate}: {reason}")
    raise InputError(
        f"no type keeps all values of the column {name}, which is {having}:\n"
        + "\n".join(reasons)
        + "\nconvert the column to one type in these files"
    )


def _note(name: str, having: str, types: Iterable[pa.DataType], chosen: pa.DataType) -> str:
    whole = pa.types.is_floating(chosen) and any(map(pa.types.is_integer, types))
    effect = "; whole numbers come out as 1.0" if whole else ""
    return f"column {name} is {having}: read as {chosen}{effect}"


def _named(shards: Sequence[str]) -> str:
    more = f" and {len(shards) - MAX_NAMED} more" if len(shards) > MAX_NAMED else ""
    return ", ".join(shards[:MAX_NAMED]) + more


def _candidates(types: Sequence[pa.DataType]) -> list[pa.DataType]:
    """The types to try, the best first; raises an Arrow error if the kinds do not go together."""
    plain_types = list(dict.fromkeys(map(_decoded, types)))
    wider = _wider(plain_types)
    whole = [t for t in plain_types if pa.types.is_integer(t)]
    text = [t for t in plain_types if pa.types.is_string(t) or pa.types.is_large_string(t)]
    if text:  # beside binary: text whose writer did not say so
        return [_wider(text)]
    # Numbers that came through pandas with a gap are fractions there; ids stay whole.
    first = [_wider(whole)] if whole and len(whole) < len(plain_types) else []
    # Nanoseconds end in 2262; microseconds hold all that most files mean.
    middle = [pa.timestamp("us", wider.tz)] if pa.types.is_timestamp(wider) else []
    return list(dict.fromkeys([*first, wider, *middle, *plain_types]))


def _wider(types: Sequence[pa.DataType]) -> Any:
    schemas = [pa.schema([("", type_)]) for type_ in types]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _misfit(
    shard: str, name: str, type_: pa.DataType, target: pa.DataType, check: Check
) -> str | None:
    """Why values of ``type_`` may not survive as ``target``; None if they all do."""
    if _always_fits(type_, target):
        return None
    try:
        _wider([_decoded(type_), _decoded(target)])  # text is no number, even if it reads as one
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return "the types do not go together"
    if loss := next(_losses(type_, target), None):
        return f"{shard}: {loss}"
    reason = check(shard, name, target)
    return None if reason is None else f"{shard}: {reason}"


def _without_views(type_: pa.DataType) -> pa.DataType:
    if type_ == pa.string_view():
        return pa.string()
    if type_ == pa.binary_view():
        return pa.binary()
    if pa.types.is_list_view(type_):
        return pa.list_(_child(type_.value_field, _without_views))
    if pa.types.is_large_list_view(type_):
        return pa.large_list(_child(type_.value_field, _without_views))
    return _rebuilt(type_, _without_views)


def _decoded(type_: pa.DataType) -> pa.DataType:
    """``type_`` with the values in place of dictionaries, at any depth."""
    if pa.types.is_dictionary(type_):
        return _decoded(type_.value_type)
    return _rebuilt(type_, _decoded)


def _rebuilt(type_: Any, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """``type_`` with ``change`` applied to the types in it; itself if nothing changes."""
    new = type_
    if pa.types.is_dictionary(type_):
        new = pa.dictionary(type_.index_type, change(type_.value_type), type_.ordered)
    elif pa.types.is_map(type_):
        fields = _child(type_.key_field, change), _child(type_.item_field, change)
        new = pa.map_(*fields, keys_sorted=type_.keys_sorted)
    elif pa.types.is_struct(type_):
        new = pa.struct([_child(field, change) for field in type_.fields])
    elif pa.types.is_fixed_size_list(type_):
        new = pa.list_(_child(type_.value_field, change), type_.list_size)
    elif pa.types.is_list(type_) or pa.types.is_large_list(type_):
        make = pa.list_ if pa.types.is_list(type_) else pa.large_list
        new = make(_child(type_.value_field, change))
    return type_ if new == type_ else new


def _child(field: pa.Field, change: Callable[[pa.DataType], pa.DataType]) -> pa.Field:
    return field.with_type(change(field.type))


def _losses(type_: Any, target: Any) -> Iterator[str]:
    """What a cast to ``target`` drops without an error, whatever the values are."""
    if pa.types.is_struct(type_) and pa.types.is_struct(target):
        there = {field.name: field.type for field in target.fields}
        for field in type_.fields:
            if field.name in there:
                yield from _losses(field.type, there[field.name])
            elif not pa.types.is_null(field.type):
                yield f"it has a field {field.name} more"
    elif pa.types.is_map(type_) and pa.types.is_map(target):
        yield from _losses(type_.item_type, target.item_type)
    elif hasattr(type_, "value_type") and hasattr(target, "value_type"):
        yield from _losses(type_.value_type, target.value_type)
    elif pa.types.is_floating(target) and _digits(type_) > _digits(target):
        yield f"a {type_} has more digits than a {target}"
    elif pa.types.is_floating(type_) and pa.types.is_decimal(target):
        yield f"a {target} rounds a {type_}"


def _digits(type_: Any) -> int:
    """The decimal digits of a fraction that a type keeps; 0 for other types."""
    if pa.types.is_decimal(type_):
        return int(type_.precision)
    return {pa.float16(): 3, pa.float32(): 6, pa.float64(): 15}.get(type_, 0)


def _always_fits(type_: Any, target: Any) -> bool:
    """Whether every possible value of ``type_`` survives a cast to ``target``."""
    if type_ == target or pa.types.is_null(type_):
        return True
    if pa.types.is_dictionary(type_):
        return _always_fits(type_.value_type, target)
    if pa.types.is_integer(type_):
        return _integer_fits(type_, target)
    if pa.types.is_floating(type_) and pa.types.is_floating(target):
        return bool(type_.bit_width <= target.bit_width)
    if pa.types.is_struct(type_) and pa.types.is_struct(target):
        there = {field.name: field.type for field in target.fields}
        return all(
            field.name in there and _always_fits(field.type, there[field.name])
            for field in type_.fields
        )
    if pa.types.is_list(type_) and (pa.types.is_list(target) or pa.types.is_large_list(target)):
        return _always_fits(type_.value_type, target.value_type)
    return (type_, target) in (
        (pa.string(), pa.large_string()), (pa.binary(), pa.large_binary()),
    )  # fmt: skip


def _integer_fits(type_: Any, target: Any) -> bool:
    signed = pa.types.is_signed_integer(type_)
    bits = type_.bit_width - signed
    if pa.types.is_integer(target):
        target_signed = pa.types.is_signed_integer(target)
        return bits <= target.bit_width - target_signed and (target_signed or not signed)
    exact = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}.get(target, 0)
    return bool(bits <= exact)
