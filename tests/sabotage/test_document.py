"""docs/sabotage.md has the rows of the suite, and names the commit that they were measured on."""

import re

import suite  # noqa: F401 - registers all sabotages
from document import DOCUMENT
from saboteur import ALL
from table import identities, identity


def test_the_document_has_the_rows_of_the_suite():
    wanted, there = {identity(each) for each in ALL}, identities(DOCUMENT.read_text())
    assert len(there) == len(set(there))
    assert wanted - set(there) == set(), "missing from docs/sabotage.md: make sabotage"
    assert set(there) - wanted == set(), "no longer in the suite: make sabotage"


def test_it_names_the_commit_it_was_made_from():
    assert re.search(
        r"from commit [0-9a-f]{12}(?: \(\d+ rows\)(?: and [0-9a-f]{12} \(\d+ rows\))*)?,", DOCUMENT.read_text()
    )
