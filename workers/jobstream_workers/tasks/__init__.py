"""The built-in tasks, one file each. They are examples: copy one, change it, and name its module in JOBSTREAM_TASKS."""

from jobstream_workers.tasks.fetch import fetch
from jobstream_workers.tasks.files import files
from jobstream_workers.tasks.primes import primes
from jobstream_workers.tasks.words import words

__all__ = ["fetch", "files", "primes", "words"]
