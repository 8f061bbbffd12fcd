"""Sends requests that no well-behaved client sends, and compares the errors with NBD's proto.md.

libnbd's checks are switched off (strict mode 0), so that everything reaches the server. usage: illegal.py URI
"""

import errno
import sys

try:
    import nbd
except ImportError:
    sys.exit("libnbd's Python module is missing: apt-get install python3-libnbd")


def connect(export, structured):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_export_name(export)
    h.set_request_structured_replies(structured)
    h.add_meta_context("base:allocation")
    h.connect_uri(uri_of(export))
    assert h.get_structured_replies_negotiated() == structured
    return h


def uri_of(export):
    scheme, rest = sys.argv[1].split("://", 1)
    place, _, query = rest.partition("?")
    host = place.split("/")[0]
    return f"{scheme}://{host}/{export}" + (f"?{query}" if query else "")


def expect(number, call, *args):
    try:
        call(*args)
        got = 0
    except nbd.Error as error:
        got = error.errnum
    name = {0: "success"} | errno.errorcode
    assert got == number, f"{call.__name__}{args[1:] if call.__name__ == 'pwrite' else args}: " \
        f"{name.get(got, got)} instead of {name[number]}"


SIZE = 1 << 26
EXTENTS = lambda *_: 0

for structured in (True, False):
    h = connect("disk", structured)
    assert h.get_size() == SIZE
    for at in (SIZE, SIZE - 511, 1 << 63, (1 << 64) - 512):
        expect(errno.EINVAL, h.pread, 512, at)
        expect(errno.ENOSPC, h.pwrite, b"x" * 512, at)
        expect(errno.EINVAL, h.trim, 512, at)
        expect(errno.ENOSPC, h.zero, 512, at)
        expect(errno.EINVAL, h.cache, 512, at)
    expect(0, h.pwrite, b"x" * 512, SIZE - 512)
    assert h.pread(512, SIZE - 512) == b"x" * 512

    # Nothing at all.
    expect(errno.EINVAL, h.pread, 0, 0)
    expect(errno.EINVAL, h.pwrite, b"", 0)
    expect(errno.EINVAL, h.trim, 0, 0)
    expect(errno.EINVAL, h.zero, 0, 0)
    expect(errno.EINVAL, h.cache, 0, 0)

    # Longer than the maximum payload of 32 MiB; the payload is there all the same.
    expect(errno.EOVERFLOW if structured else errno.EINVAL, h.pread, (32 << 20) + 1, 0)
    expect(errno.EINVAL, h.pwrite, bytes((32 << 20) + 1), 0)
    expect(0, h.pread, 32 << 20, 0)
    expect(0, h.pwrite, bytes(32 << 20), 0)

    # Flags: unknown ones, and ones of other commands. FUA goes with everything.
    FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
    for flags in (NO_HOLE, REQ_ONE, FAST_ZERO, 32, 1 << 15):
        expect(errno.EINVAL, h.pread, 512, 0, flags)
    expect(0 if structured else errno.EINVAL, h.pread, 512, 0, DF)
    expect(0, h.pread, 512, 0, FUA)
    for flags in (NO_HOLE, DF, REQ_ONE, FAST_ZERO, 32):
        expect(errno.EINVAL, h.pwrite, b"x" * 512, 0, flags)
        expect(errno.EINVAL, h.flush, flags)
    for flags in (NO_HOLE, DF, REQ_ONE, FAST_ZERO):
        expect(errno.EINVAL, h.trim, 512, 0, flags)
        expect(errno.EINVAL, h.cache, 512, 0, flags)
    for flags in (DF, REQ_ONE, 32):
        expect(errno.EINVAL, h.zero, 512, 0, flags)
    expect(0, h.flush)
    expect(0, h.flush, FUA)

    # The memory device writes zeros fast only where it may free space.
    expect(0, h.zero, 65536, 0, FAST_ZERO)
    expect(errno.ENOTSUP, h.zero, 65536, 0, FAST_ZERO | NO_HOLE)
    expect(0, h.zero, 65536, 0, NO_HOLE | FUA)

    if structured:
        for at in (SIZE, SIZE - 511, (1 << 64) - 512):
            expect(errno.EINVAL, h.block_status, 512, at, EXTENTS)
        expect(errno.EINVAL, h.block_status, 0, 0, EXTENTS)
        expect(errno.EINVAL, h.block_status, 512, 0, EXTENTS, DF)
        seen = []
        h.block_status(SIZE, 0, lambda context, at, entries, err: seen.append((context, at, entries)) or 0)
        [(context, at, entries)] = seen
        assert (context, at, sum(entries[::2])) == ("base:allocation", 0, SIZE), seen
        seen.clear()
        h.block_status(70000, 1, lambda context, at, entries, err: seen.append(entries) or 0, REQ_ONE)
        assert len(seen[0]) == 2 and seen[0][0] <= 70000, seen
    else:
        expect(errno.EINVAL, h.block_status, 512, 0, EXTENTS)

    # The connection has survived all of it.
    assert h.pread(512, SIZE - 512) == b"x" * 512
    h.shutdown()

    h = connect("read-only", structured)
    assert h.is_read_only()
    expect(0, h.pread, 512, 0)
    expect(errno.EPERM, h.pwrite, b"x" * 512, 0)
    expect(errno.EPERM, h.trim, 512, 0)
    expect(errno.EPERM, h.zero, 512, 0)
    h.shutdown()

    h = connect("bare", structured)
    expect(errno.EINVAL, h.flush)
    expect(errno.EINVAL, h.trim, 512, 0)
    expect(errno.EINVAL, h.zero, 512, 0)
    expect(errno.EINVAL, h.pwrite, b"x" * 512, 0, FUA)
    expect(errno.EINVAL, h.pread, 511, 0)
    expect(errno.EINVAL, h.pwrite, b"x" * 512, 1)
    expect(0, h.pwrite, b"x" * 512, 512)
    h.shutdown()

    try:
        connect("nowhere", structured)
        sys.exit("an export that is not there was found")
    except nbd.Error:
        pass

print("all as expected")
