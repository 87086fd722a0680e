"""Compact arrays behind the trie: ascending numbers in about a byte each; checking and sorting an item-code table.

Left out: what the arrays mean (``trie``) and how they are made from a table (``trie_build``).

Symbols: N items, L levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHIFT = 5
"""Numbers of a block of ``Ascending``, as a power of two: small blocks have small offsets."""


@dataclass(frozen=True, eq=False)
class Ascending:
    """Ascending integers below 2^31, as the first one of every block and each one's distance to it.

    The children of a trie's nodes start at such numbers; where a node has few, a distance takes one byte.
    """

    base: Tensor  # (blocks,) int32
    offset: Tensor  # (blocks << SHIFT,) uint8, int16 or int32, the least that holds them; padded with the last number
    length: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Ascending":
        """The numbers (n,) packed, n at least 1."""
        blocks = (len(values) + (1 << SHIFT) - 1) >> SHIFT
        padded = np.pad(values, (0, (blocks << SHIFT) - len(values)), mode="edge").reshape(blocks, 1 << SHIFT)
        offset = padded - padded[:, :1]
        dtype = numpy_of(smallest_dtype(int(offset[:, -1].max())))
        base = np.ascontiguousarray(padded[:, 0], dtype=np.int32)
        return cls(torch.from_numpy(base), torch.from_numpy(offset.astype(dtype).reshape(-1)), len(values))

    def at(self, index: Tensor) -> Tensor:
        """Numbers at places (...) int64: (...) int32."""
        return self.base[index >> SHIFT] + self.offset[index]

    def span(self, index: Tensor) -> Tensor:
        """Numbers at places (...) int64 and at the next ones: (2, ...) int32."""
        return self.at(torch.stack((index, index + 1)))

    def all(self, since: int = 0) -> Tensor:
        """All numbers less ``since``, (length,) int32."""
        # Widened before it is added: a sum of two dtypes takes three times as long.
        numbers = self.offset.view(-1, 1 << SHIFT).to(torch.int32, copy=True)
        return numbers.add_((self.base - since)[:, None]).view(-1)[: self.length]

    def owner(self, values: Tensor) -> Tensor:
        """Place of the last number that is at most each value, which lie from the first to below the last number:
        (...) int64 -> (...) int64. The numbers must differ."""
        flat = values.reshape(-1).int()
        if flat.device.type == "cpu":  # numpy gains from values in order, and they mostly are
            found = torch.from_numpy(np.searchsorted(self.base.numpy(), flat.numpy(), side="right"))
        else:
            found = torch.searchsorted(self.base, flat, right=True)
        block = found - 1
        beyond = (flat - self.base.index_select(0, block)).to(self.offset.dtype)
        place = block << SHIFT
        for power in reversed(range(SHIFT)):
            place.add_(self.offset.index_select(0, place + (1 << power)) <= beyond, alpha=1 << power)
        return place.view(values.shape)


def smallest_dtype(largest: int) -> torch.dtype:
    """The least of uint8, int16 and int32 that holds 0 to ``largest``."""
    return torch.uint8 if largest < 2**8 else torch.int16 if largest < 2**15 else torch.int32


def numpy_of(dtype: torch.dtype) -> np.dtype[Any]:
    """The same dtype for numpy."""
    return np.dtype({torch.uint8: "u1", torch.int16: "i2", torch.int32: "i4"}[dtype])


def moved(value: Any, device: torch.device | str) -> Any:
    """A tensor, or tensors inside tuples and dataclasses, on a device; everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(moved(part, device) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value)})
    return value


def bytes_of(value: Any) -> int:
    """Bytes of all tensors in it, a tensor that is named twice counted twice."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, tuple):
        return sum(bytes_of(part) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return sum(bytes_of(getattr(value, f.name)) for f in fields(value))
    return 0


def validate_codes(codes: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...]]:
    """An item-code table (N, L) of any integers and its sizes as plain ints; ``ValueError`` says what is wrong."""
    codes = np.asarray(codes)
    sizes = tuple(int(size) for size in sizes)
    if codes.ndim != 2 or codes.shape[0] == 0 or codes.shape[1] == 0:
        raise ValueError(f"codes: expected shape (N, L) with N and L at least 1, got {codes.shape}")
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes: expected integers, got dtype {codes.dtype}")
    if len(sizes) != codes.shape[1] or min(sizes) < 1:
        raise ValueError(f"sizes: expected {codes.shape[1]} positive numbers, one a level, got {sizes}")
    for level, size in enumerate(sizes):
        low, high = codes[:, level].min(), codes[:, level].max()
        if low < 0 or high >= size:
            raise ValueError(f"codes: level {level} expects codes in [0, {size}), got {low} to {high}")
    return codes, sizes


def check_codes(codes: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...]]:
    """An item-code table as int64 (N, L) and its sizes as plain ints; ``ValueError`` says what is wrong with them."""
    codes, sizes = validate_codes(codes, sizes)
    return codes.astype(np.int64, copy=False), sizes


def pack_rows(codes: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """One int64 key a row, (N,), that sorts as the rows do: equal keys are equal rows.

    The key is the row read as a mixed-radix number; a prefix is first replaced by its dense rank where the number
    would not fit 63 bits.
    """
    key = codes[:, 0].astype(np.int64)
    span = int(sizes[0])
    for level in range(1, len(sizes)):
        if span * int(sizes[level]) >= 2**63:
            distinct, key = np.unique(key, return_inverse=True)
            span = len(distinct)
        key = key * int(sizes[level]) + codes[:, level]
        span *= int(sizes[level])
    return key


def sort_rows(codes: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Order (N,) int32 that sorts the rows of (N, L) by level 0, 1, ..., and the sorted columns in their least dtype.

    Equal rows stay in their order. Codes and row number are packed into one 64-bit number and sorted by value, which
    takes a fraction of the time of sorting indirectly. Levels that do not fit are sorted in passes, the last levels
    first, as in a radix sort.
    """
    width = max(1, (len(codes) - 1).bit_length())
    bits = [(int(size) - 1).bit_length() for size in sizes]
    if max(bits) > 31:
        raise ValueError(f"codes: expected sizes of at most 2^31, got {tuple(sizes)}")
    dtype = numpy_of(smallest_dtype(max(sizes) - 1))
    order: np.ndarray | None = None
    end = len(bits)
    while end:
        first = end - 1
        while first and sum(bits[first - 1 : end]) + width <= 64:
            first -= 1
        key = np.zeros(len(codes), dtype=np.uint64)
        for level in range(first, end):
            key <<= np.uint64(bits[level])
            key |= (codes[:, level] if order is None else codes[order, level]).astype(np.uint64)
        key <<= np.uint64(width)
        key |= np.arange(len(codes), dtype=np.uint32)
        key.sort()
        place = (key & np.uint64((1 << width) - 1)).astype(np.int32)
        order, end = (place if order is None else order[place]), first
    assert order is not None
    if sum(bits) + width > 64:
        return order, [codes[order, level].astype(dtype) for level in range(len(bits))]
    columns, low = [], width
    for level in reversed(range(len(bits))):  # one pass: the sorted keys hold the columns
        columns.append(((key >> np.uint64(low)) & np.uint64((1 << bits[level]) - 1)).astype(dtype))
        low += bits[level]
    return order, columns[::-1]
