"""The HTTP process: takes jobs, answers polls, fans events out."""
