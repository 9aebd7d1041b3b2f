"""`python -m merbridge_lab.cli`."""

from merbridge_lab.isolated import main

main()
