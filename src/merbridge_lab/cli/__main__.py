"""`python -m merbridge_lab.cli`."""

from merbridge_lab.cli import main

main()
