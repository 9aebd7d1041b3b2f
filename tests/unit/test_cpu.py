"""How busy the machine's processors are, from what the kernel tells."""

import os

import pytest

from merbridge_lab.adapters import cpu


def test_interrupts_are_nobodys_work(monkeypatch):
    monkeypatch.setattr(cpu, "read_text", lambda _: "cpu  1000 200 30 9999 9999 700 800 4 50 60\ncpu0 1 2 3\n")
    assert cpu.busy_seconds() == pytest.approx((1000 + 200 + 30 + 4) / os.sysconf("SC_CLK_TCK"))
