"""Reads messages as docs/WIRE.md describes them and prints what they say, as JSON.

A second, independent reader: written from that page alone, sharing nothing with the crate. Usage: decode.py MESSAGE...
The messages are read in order by one reader, as those of one producer and epoch. Layout ids are printed, not computed.
"""

import json
import struct
import sys

import zstandard

NONE = -(2**63)
STALE = 0x7FF0000000000002
TYPES = ["unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset"]
STATES = ["present", "absent", "histogram"]
HINTS = ["unknown", "reset", "not_reset", "gauge"]


class Corrupt(Exception):
    pass


class NoBase(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Corrupt(what)


def wrap(number):
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number


def unzigzag(number):
    return number >> 1 if number & 1 == 0 else -((number + 1) >> 1)


class Reader:
    def __init__(self, data):
        self.data = data
        self.at = 0

    def left(self):
        return len(self.data) - self.at

    def take(self, length):
        need(length <= self.left(), "ends early")
        self.at += length
        return self.data[self.at - length : self.at]

    def u8(self):
        return self.take(1)[0]

    def u64(self):
        return struct.unpack("<Q", self.take(8))[0]

    def varint(self):
        number = 0
        for at in range(10):
            byte = self.u8()
            need(at < 9 or byte <= 1, "varint")
            number |= (byte & 0x7F) << (7 * at)
            if byte < 0x80:
                return number
        raise Corrupt("varint")

    def signed(self):
        return unzigzag(self.varint())

    def count(self):
        number = self.varint()
        need(number <= self.left(), "count")
        return number

    def str(self):
        return self.take(self.count()).decode("utf-8")

    def pairs(self):
        count = self.count()
        need(count <= 1024, "pairs")
        return [[self.str(), self.str()] for _ in range(count)]


def inflate(packed, length, limit):
    need(length <= limit, "too large")
    raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=length) if length else b""
    need(len(raw) == length, "length")
    return raw


def frames(payload):
    message = Reader(payload)
    need(message.u8() == 1, "version")
    codec = message.u8()
    need(codec in (0, 1), "codec")
    if codec == 1:
        length = message.varint()
        message = Reader(inflate(message.take(message.left()), length, 16 << 20))
    while message.left():
        yield message.take(message.varint())


class Base:
    """What deltas relate to."""

    def __init__(self, series):
        self.key = 0
        self.origin = None
        self.layout_id = 0
        self.layout = []
        self.groups = []
        self.group_count = 0
        self.values, self.states, self.starts = [], [], []
        self.extend(series)

    def extend(self, series):
        more = series - len(self.values)
        self.values += [0] * more
        self.states += [0] * more
        self.starts += [NONE] * more


def read_layout(body):
    block = Reader(body.take(body.varint()))
    layout_id = block.u64()
    series = []
    for _ in range(block.count()):
        series += read_segment(Reader(block.take(block.varint())))
    need(block.left() == 0, "layout end")
    return layout_id, series


def read_segment(segment):
    lengths = [segment.varint() for _ in range(segment.count())]
    symbols = [segment.take(length).decode("utf-8") for length in lengths]
    families = []
    for _ in range(segment.count()):
        name, kind = symbols[segment.varint()], TYPES[segment.u8()]
        families.append([name, kind, symbols[segment.varint()], symbols[segment.varint()]])
    shapes = [[symbols[segment.varint()] for _ in range(segment.count())] for _ in range(segment.count())]
    for shape in shapes:
        need(all(a.encode() < b.encode() for a, b in zip(shape, shape[1:])), "label order")
    count, series = segment.varint(), []
    while len(series) < count:
        family, name, shape = families[segment.varint()], symbols[segment.varint()], shapes[segment.varint()]
        run = segment.varint()
        need(0 < run <= count - len(series), "run")
        columns = []
        for _ in shape:
            at, column = 0, []
            for _ in range(run):
                at += segment.signed()
                need(0 <= at < len(symbols), "symbol")
                column.append(symbols[at])
            columns.append(column)
        for row in range(run):
            labels = [[label, column[row]] for label, column in zip(shape, columns)]
            series.append({"family": family, "name": name, "labels": labels})
    need(segment.left() == 0, "segment end")
    return series


def planes(body, count):
    numbers = [0] * count
    if count:
        mask = body.u8()
        for bit in range(7, -1, -1):
            if mask >> bit & 1:
                for at, byte in enumerate(body.take(count)):
                    numbers[at] |= byte << (8 * bit)
    return iter(numbers)


def to_float(bits):
    return struct.unpack("<d", struct.pack("<Q", bits))[0]


def to_bits(value):
    return struct.unpack("<Q", struct.pack("<d", value))[0]


def mantissa(bits, digits):
    scaled = to_float(bits) * float(10**digits)
    return round(scaled) if abs(scaled) <= 2.0**53 else 0


def moved(bits, number, digits):
    whole = mantissa(bits, digits) + unzigzag(number)
    need(abs(whole) <= 2**53, "difference")
    return to_bits(float(whole) / float(10**digits))


def read_values(body, values, states):
    count = len(values)
    packed = body.take((count + 3) // 4)
    classes = [packed[at // 4] >> (2 * (at % 4)) & 3 for at in range(4 * len(packed))]
    need(not any(classes[count:]), "classes")
    specials = body.take(classes.count(3))
    xors = planes(body, classes.count(2))
    differences = planes(body, classes.count(1) + sum(special > 2 for special in specials))
    specials = iter(specials)
    for at in range(count):
        kind = classes[at]
        if kind == 1:
            values[at], states[at] = moved(values[at], next(differences), 0), 0
        elif kind == 2:
            values[at], states[at] = values[at] ^ next(xors), 0
        elif kind == 3:
            special = next(specials)
            need(special <= 14, "special")
            if special == 0:
                values[at], states[at] = 0, 1
            elif special == 1:
                values[at], states[at] = STALE, 0
            elif special == 2:
                values[at], states[at] = 0, 2
            else:
                values[at], states[at] = moved(values[at], next(differences), special - 2), 0


def read_table(section, slot, count):
    table, time = [], slot
    for _ in range(count):
        time = wrap(time + section.signed())
        table.append(time)
    return table


def by_gap(section, count):
    at = -1
    for _ in range(section.count()):
        at += 1 + section.varint()
        need(at < count, "gap")
        yield at


def read_times(section, slot, base, count):
    form = section.u8()
    if form == 0:
        table = read_table(section, slot, section.count())
        groups = [section.varint() for _ in range(count)]
        need(all(group <= len(table) for group in groups), "group")
        return [table[group - 1] if group else NONE for group in groups], (groups, len(table))
    need(form == 1 and base.groups, "groups")
    table = read_table(section, slot, base.group_count)
    times = [table[group - 1] if group else NONE for group in base.groups]
    times += [NONE] * (count - len(times))
    for at in by_gap(section, count):
        times[at] = wrap(slot + section.signed())
    return times, None


def read_starts(section, slot, starts):
    start = slot
    for at in by_gap(section, len(starts)):
        start = wrap(start + section.signed())
        starts[at] = start


def by_index(section, count):
    at = 0
    for _ in range(section.count()):
        at += section.signed()
        need(0 <= at < count, "series index")
        yield at


def read_exemplars(section, slot, count):
    exemplars = []
    for at in by_index(section, count):
        labels, value, timed = section.pairs(), section.u64(), section.u8()
        need(timed <= 1, "exemplar")
        time = wrap(slot + section.signed()) if timed else None
        exemplars.append({"series": at, "labels": labels, "value": f"{value:016x}", "timestamp": time})
    return exemplars


def read_counts(section, count, floats):
    if floats:
        return [section.u64() for _ in range(count)]
    counts, number = [], 0
    for _ in range(count):
        number = (number + section.signed()) % 2**64
        counts.append(number)
    return counts


def read_histogram(section):
    head = section.u8()
    need(head <= 7, "histogram head")
    floats = head >= 4
    read = {"reset_hint": HINTS[head & 3], "floats": floats, "schema": section.signed()}
    read["zero_threshold"], read["sum"] = f"{section.u64():016x}", f"{section.u64():016x}"
    read["count"], read["zero_count"] = read_counts(section, 2, floats)
    for side in ("positive", "negative"):
        read[side + "_spans"] = [[section.signed(), section.varint()] for _ in range(section.count())]
        read[side] = read_counts(section, section.count(), floats)
    read["custom_bounds"] = [f"{section.u64():016x}" for _ in range(section.count())]
    return read


def read_columns(body, slot, base, count):
    """Values and sections against a base; gives them, and the frame's own time groups."""
    values, states, starts = base.values[:count], base.states[:count], base.starts[:count]
    values += [0] * (count - len(values))
    states += [0] * (count - len(states))
    starts += [NONE] * (count - len(starts))
    read_values(body, values, states)
    times, own, exemplars, histograms, last = [NONE] * count, None, [], [], 0
    while body.left():
        section_id = body.varint()
        need(section_id > last, "section order")
        last, section = section_id, Reader(body.take(body.varint()))
        if section_id == 1:
            times, own = read_times(section, slot, base, count)
        elif section_id == 2:
            read_starts(section, slot, starts)
        elif section_id == 3:
            exemplars = read_exemplars(section, slot, count)
        elif section_id == 4:
            histograms = [{"series": at, **read_histogram(section)} for at in by_index(section, count)]
        else:
            need(section_id >= 64, "unknown section")
            continue
        need(section.left() == 0, "section end")
    for at in range(count):
        if states[at] == 1:
            times[at] = starts[at] = NONE
    return {"values": values, "states": states, "timestamps": times, "starts": starts,
            "exemplars": exemplars, "histograms": histograms}, own


def read_frame(data, bases):
    frame = Reader(data)
    kind, flags, target = frame.u8(), frame.u8(), frame.u64()
    need(kind <= 2, "kind")
    slot, part, parts, key = frame.signed(), frame.varint(), frame.varint(), frame.varint()
    number = frame.varint() if kind == 1 else key
    samples, count, codec, length = frame.varint(), frame.varint(), frame.u8(), frame.varint()
    need(part < parts and samples <= count <= 1 << 20 and codec <= 1, "header")
    need(kind == 0 or not flags & 2, "pushed")
    packed = frame.take(frame.left())
    base = Base(count) if kind == 0 else bases.get((target, part))
    if base is None or (kind != 0 and base.key != number):
        raise NoBase
    need(codec == 1 or len(packed) == length, "length")
    body = Reader(inflate(packed, length, 32 << 20) if codec == 1 else packed)
    layout_id, layout, known = base.layout_id, base.layout, len(base.layout)
    if kind == 0:
        base.origin = {"labels": body.pairs(), "attributes": body.pairs()}
    if kind != 2:
        layout_id, more = read_layout(body)
        layout = layout + more
    need(len(layout) == count, "series count")
    columns, own = read_columns(body, slot, base, count)
    need(sum(state != 1 for state in columns["states"]) == samples, "samples")
    if kind != 2:
        base.extend(count)
        base.key, base.layout_id, base.layout = key, layout_id, layout
        for name in ("values", "states", "starts"):
            getattr(base, name)[known:] = columns[name][known:]
    if kind == 0 and own:
        base.groups, base.group_count = own
    if kind == 0 and not flags & 2:
        bases[target, part] = base
    if flags & 4:
        bases.pop((target, part), None)
    columns["values"] = [f"{value:016x}" for value in columns["values"]]
    columns["states"] = [STATES[state] for state in columns["states"]]
    for name in ("timestamps", "starts"):
        columns[name] = [None if time == NONE else time for time in columns[name]]
    return {"kind": ["key", "patch", "delta"][kind], "flags": flags, "target": f"{target:016x}", "slot": slot,
            "part": part, "parts": parts, "key": key, "base": number, "samples": samples,
            "origin": base.origin, "layout_id": f"{layout_id:016x}", "series": layout, **columns}


def main():
    bases, read = {}, []
    for path in sys.argv[1:]:
        with open(path, "rb") as file:
            payload = file.read()
        for data in frames(payload):
            try:
                read.append(read_frame(data, bases))
            except NoBase:
                read.append({"error": "no base"})
            except (Corrupt, IndexError, UnicodeDecodeError):
                read.append({"error": "corrupt"})
    json.dump(read, sys.stdout, indent=1, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
