"""All that merlab may say, in one list that a person can read: golden/messages.txt."""

import re

from messages_in_source import messages
from tests import golden_files

#: What house.md has other words for.
BANNED = re.compile(
    r"\b(anew|at work|by which|of before|the very|whose it was|to be had|stands? in|comes? to its end|knows no"
    r"|a defect of merlab|the proof is void|stands no longer)\b"
)


def test_the_list_is_that_of_the_source():
    """Whoever changes a message reads the list's difference, and with it the message on its own."""
    golden_files.check("messages.txt", "\n".join(messages()) + "\n")


def test_no_message_has_a_word_that_is_read_twice():
    assert [each for each in messages() if BANNED.search(each)] == []
