"""What nat rules do to the first packet of a TCP connection: an evaluator of iptables-save's text, for tests."""

from __future__ import annotations

import ipaddress
import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection, and the user of the process that sends it."""

    dst: str
    dport: int
    src: str = "10.0.0.1"
    out: str = ""  # interface; "" where it is not sent but received
    into: str = ""
    uid: int = 0
    gid: int = 0


def _is_in(address: str, network: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(network)


#: Each match that Istio's rules use: whether it holds.
_MATCHES = {
    "-p": lambda _packet, value: value == "tcp",
    "-s": lambda packet, value: _is_in(packet.src, value),
    "-d": lambda packet, value: _is_in(packet.dst, value),
    "-o": lambda packet, value: packet.out == value,
    "-i": lambda packet, value: packet.into == value,
    "--dport": lambda packet, value: packet.dport == int(value),
    "--uid-owner": lambda packet, value: packet.uid == int(value),
    "--gid-owner": lambda packet, value: packet.gid == int(value),
}


class Nat:
    """The nat table of an iptables-save text. An option that it does not know is an error, never a guess."""

    def __init__(self, text: str) -> None:
        table = text.partition("*nat\n")[2].partition("COMMIT")[0]
        self.chains: dict[str, list[list[str]]] = {}
        for line in table.splitlines():
            if line.startswith(":"):
                self.chains.setdefault(line[1:].split()[0], [])
            elif line.startswith("-A "):
                _, chain, *rest = shlex.split(line)
                self.chains[chain].append(rest)

    def port(self, hook: str, packet: Packet) -> int | None:
        """Return the port that a connection is redirected to from OUTPUT or PREROUTING; None if it is left alone."""
        verdict = self._walk(hook, packet)
        return verdict if isinstance(verdict, int) else None

    def _walk(self, chain: str, packet: Packet) -> int | str | None:
        for rule in self.chains[chain]:
            target, holds = self._read(rule, packet)
            if not holds:
                continue
            if target[0] == "REDIRECT":
                assert target[1] == "--to-ports", rule
                return int(target[2])
            if target[0] == "ACCEPT":
                return "accept"
            if target[0] == "RETURN":
                return None
            if (verdict := self._walk(target[0], packet)) is not None:
                return verdict
        return None

    @staticmethod
    def _read(rule: list[str], packet: Packet) -> tuple[list[str], bool]:
        words, holds, negated = list(rule), True, False
        while words:
            word = words.pop(0)
            if word == "!":
                negated = True
            elif word == "-m":
                words.pop(0)
            elif word == "-j":
                return words, holds
            else:
                holds = holds and _MATCHES[word](packet, words.pop(0)) != negated
                negated = False
        raise AssertionError(f"a rule without a target: {rule}")
