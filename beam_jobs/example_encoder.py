"""Ragged int64 features -> framed `tf.train.Example` records, many at a time.

Building protos in Python costs some 25 µs a record. Here every feature of all records becomes one
varint stream, every length field is a varint of fixed width (padded with zeros, which the protocol buffer
encoding allows; large values are padded alike), and a record is a join of slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_jobs.arrays import Int64

_LENGTH_WIDTH = 4
"""Bytes of a length field: up to 2**28 - 1."""

_TABLE_BITS = 21
"""Numbers below 2 ** this have their varints, of at most three bytes, in a table."""

_LARGEST = (1 << 56) - 1
"""The bits of a varint of 8 bytes, which is made as one integer."""

_BYTES_1 = b"\x0a"  # field 1, length-delimited: Example.features, Features.feature, map key, Int64List.value
_BYTES_2 = b"\x12"  # field 2, length-delimited: map value
_BYTES_3 = b"\x1a"  # field 3, length-delimited: Feature.int64_list


@dataclass(frozen=True)
class Ragged:
    """Rows back to back: row r is the next `lengths[r]` of `values`, which are int64 and not negative."""

    values: Int64
    lengths: Int64

    @classmethod
    def scalars(cls, values: Int64) -> Ragged:
        """One value a row."""
        return cls(values, np.ones(len(values), np.int64))


def encode_examples(features: Mapping[str, Ragged]) -> bytes:
    """TFRecord framing of one Example a row.

    Raises:
        ValueError: the features differ in their number of rows, or a value is negative or above 2**56 - 1.
    """
    sizes = {name: len(feature.lengths) for name, feature in features.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"every feature of an Example needs the same number of rows; got {sizes}")
    num_rows = next(iter(sizes.values()))
    columns: list[list[bytes]] = []
    total = np.zeros(num_rows, np.int64)
    for name, feature in features.items():
        header, payload, length = _feature_entry(name, feature)
        columns += [header, payload]
        total += length
    example_header = _rows(np.concatenate([_constant(_BYTES_1, num_rows), _fixed_varint(total)], axis=1))
    return _frame([b"".join(parts) for parts in zip(example_header, *columns, strict=True)])


def _feature_entry(name: str, feature: Ragged) -> tuple[list[bytes], list[bytes], Int64]:
    """Per row: the bytes before a feature's values, the values, and the length of both together."""
    if len(feature.values) and feature.values.min() < 0:
        raise ValueError(f"feature {name!r} holds the negative value {feature.values.min()}; only ids and counts fit")
    if len(feature.values) and feature.values.max() > _LARGEST:
        raise ValueError(f"feature {name!r} holds {feature.values.max()}; only values up to {_LARGEST} fit")
    stream, value_offsets = _varint_stream(feature.values)
    offsets = value_offsets[np.concatenate([[0], np.cumsum(feature.lengths)])]
    size = np.diff(offsets)
    field = 1 + _LENGTH_WIDTH
    key = _BYTES_1 + bytes([len(name)]) + name.encode()
    feature_size = 2 * field + size
    entry_size = len(key) + field + feature_size
    num_rows = len(feature.lengths)
    header = np.concatenate(
        [
            _constant(_BYTES_1, num_rows),
            _fixed_varint(entry_size),
            _constant(key + _BYTES_2, num_rows),
            _fixed_varint(feature_size),
            _constant(_BYTES_3, num_rows),
            _fixed_varint(field + size),
            _constant(_BYTES_1, num_rows),
            _fixed_varint(size),
        ],
        axis=1,
    )
    bounds = offsets.tolist()
    payload = [stream[start:stop] for start, stop in pairwise(bounds)]
    return _rows(header), payload, field + entry_size


def _varint_stream(values: Int64) -> tuple[bytes, Int64]:
    """Varints of all values back to back, and the [num_values + 1] offsets.

    A value of up to seven bits (groups, levels) is its varint. Other small ones, nearly all there are, are looked up in
    a table, three times faster than to work their bits out; large ones (times) all get the width of the largest.
    """
    bits = int(values.max(initial=0)).bit_length()
    if bits <= 7:
        return values.astype(np.uint8).tobytes(), np.arange(len(values) + 1)
    if bits <= _TABLE_BITS:
        _, offsets, stream = _varint_table(bits).take(pa.array(values)).buffers()
        return stream.to_pybytes() if stream else b"", np.frombuffer(offsets, np.int64)[: len(values) + 1]
    width = -(-bits // 7)
    return _fixed_varint(values, width).tobytes(), np.arange(len(values) + 1) * width


@lru_cache(maxsize=_TABLE_BITS + 1)
def _varint_table(bits: int) -> pa.LargeBinaryArray:
    """[2 ** bits] the shortest varint of each number."""
    numbers = np.arange(1 << bits)
    width = 1 + (numbers >= 1 << 7) + (numbers >= 1 << 14)
    stream = b"".join(_fixed_varint(numbers[width == w], w).tobytes() for w in (1, 2, 3))
    offsets = np.concatenate([[0], np.cumsum(width)])
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(numbers), [None, pa.py_buffer(offsets), pa.py_buffer(stream)]
    )


def _fixed_varint(values: Int64, width: int = _LENGTH_WIDTH) -> npt.NDArray[np.uint8]:
    """[num_rows] of at most 7 * width bits -> [num_rows, width], width <= 8: zero-padded varints."""
    spread = np.full(len(values), int.from_bytes([0x80] * (width - 1), "little"), np.int64)
    for byte in range(width):
        spread |= (values & (0x7F << 7 * byte)) << byte
    return spread.astype("<i8", copy=False).view(np.uint8).reshape(-1, 8)[:, :width]


def _constant(text: bytes, num_rows: int) -> npt.NDArray[np.uint8]:
    return np.broadcast_to(np.frombuffer(text, np.uint8), (num_rows, len(text)))


def _rows(matrix: npt.NDArray[np.uint8]) -> list[bytes]:
    """Each row's bytes: as one value of NumPy's opaque type, which costs a third of a slice."""
    return np.ascontiguousarray(matrix).view(f"V{matrix.shape[1]}").ravel().tolist()


def _frame(records: list[bytes]) -> bytes:
    """uint64 length, masked CRC of the length, record, masked CRC of the record; little-endian."""
    lengths = np.fromiter(map(len, records), np.uint64, len(records))
    length_bytes = _rows(lengths[:, None].astype("<u8").view(np.uint8))
    length_crcs = _masked_crcs(length_bytes)
    pieces = zip(length_bytes, length_crcs, records, _masked_crcs(records), strict=True)
    return b"".join(chain.from_iterable(pieces))


def _masked_crcs(chunks: list[bytes]) -> list[bytes]:
    crc = np.fromiter(map(google_crc32c.value, chunks), np.uint32, len(chunks)).astype(np.uint64)
    rotated = ((crc >> np.uint64(15)) | (crc << np.uint64(17))) & np.uint64(0xFFFFFFFF)
    masked = (rotated + np.uint64(0xA282EAD8)) & np.uint64(0xFFFFFFFF)
    return _rows(masked[:, None].astype("<u4").view(np.uint8))
