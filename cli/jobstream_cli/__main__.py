"""`python -m jobstream_cli`: the command line of this very interpreter."""

from jobstream_cli.main import main

main()
