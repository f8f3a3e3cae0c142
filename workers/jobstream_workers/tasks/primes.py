"""primes: counts prime numbers. A task that keeps a CPU busy: it runs in a process of its own."""

from __future__ import annotations

from itertools import compress
from math import isqrt
from typing import Annotated

from pydantic import BaseModel, Field

from jobstream import JobContext, task

SEGMENT = 1 << 20
"""Odd numbers sieved at a time, a byte each: with the primes up to the limit's root, all the memory that is needed."""

REPORTS = 10
"""How often the job tells what it has found so far."""


class Primes(BaseModel):
    """The primes up to a limit."""

    limit: int
    count: int
    largest: int
    twin_pairs: int = Field(description="Pairs of primes that are 2 apart")


@task(executor="process")
def primes(job: JobContext, limit: Annotated[int, Field(ge=2, le=1_000_000_000)]) -> Primes:
    """Count the primes up to a limit, and the twins among them, with a segmented sieve of Eratosthenes."""
    small = odd_primes(isqrt(limit))
    found = Primes(limit=limit, count=1, largest=2, twin_pairs=0)
    told = 0
    for low in range(1, limit + 1, 2 * SEGMENT):
        size = min(SEGMENT, (limit - low) // 2 + 1)
        add_segment(found, low, sieve(low, size, small))
        done = min(low + 2 * size - 1, limit)
        job.progress(done, limit, f"{found.count:,} primes up to {done:,}")  # raises JobCancelled: the way to stop
        if done * REPORTS // limit > told:
            told = done * REPORTS // limit
            job.log(f"{found.count:,} primes up to {done:,}")
            job.chunk({"up_to": done, "count": found.count})
    return found


def sieve(low: int, size: int, small: list[int]) -> bytearray:
    """A flag for each of the `size` odd numbers from `low` on: 1 for a prime.

    `low` is odd; `small` are the odd primes up to the root of the last number, in order.
    """
    flags = bytearray(b"\1") * size
    if low == 1:
        flags[0] = 0
    for prime in small:
        # the prime's square, or in later segments its first odd multiple; what is below has a smaller factor
        start = max((prime * prime - low) // 2, (prime - low) // 2 % prime)
        if start < size:
            flags[start::prime] = bytes(len(range(start, size, prime)))
    return flags


def odd_primes(limit: int) -> list[int]:
    """The odd primes up to `limit`, in order."""
    small = odd_primes(isqrt(limit)) if limit >= 9 else []
    return list(compress(range(1, limit + 1, 2), sieve(1, (limit + 1) // 2, small)))


def add_segment(found: Primes, low: int, flags: bytearray) -> None:
    """Add what is flagged. Twins on both sides of a border are seen from the segment above it."""
    first, last = flags.find(1), flags.rfind(1)
    if last < 0:
        return
    bits = int.from_bytes(flags, "little")
    found.twin_pairs += (bits & bits >> 8).bit_count() + (low + 2 * first - found.largest == 2)
    found.count += flags.count(1)
    found.largest = low + 2 * last
