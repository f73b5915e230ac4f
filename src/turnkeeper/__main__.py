"""`python -m turnkeeper` is `turnkeeper`."""

from turnkeeper.cli import main

main()
