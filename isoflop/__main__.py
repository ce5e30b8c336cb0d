"""`python -m isoflop` is the command `isoflop`."""

from isoflop.cli.main import main

main()
