"""The arq process: claims jobs, runs them, writes their records."""
