"""Rules that iptables does not show: captured from `nft list chains`, nftables 1.0.6."""

from __future__ import annotations

from merbridge_lab.adapters import rules_agreement

OURS = """table ip nat {
\tchain PREROUTING {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t}
\tchain OUTPUT {
\t\ttype nat hook output priority -100; policy accept;
\t}
\tchain ISTIO_OUTPUT {
\t}
}
table ip filter {
\tchain INPUT {
\t\ttype filter hook input priority filter; policy accept;
\t}
}
"""
HIDDEN = """table ip nat {
\tchain quiet_output {
\t\ttype nat hook output priority -110; policy accept;
\t}
}
"""
NATIVE = """table inet detour {
\tchain output {
\t\ttype nat hook output priority -110; policy accept;
\t}
}
"""


def test_what_iptables_makes_is_not_native():
    assert rules_agreement.native_in(OURS) == ()
    assert rules_agreement.native_in("") == ()


def test_a_table_of_its_own():
    assert rules_agreement.native_in(OURS + NATIVE) == ("table inet detour",)


def test_a_base_chain_in_a_table_of_iptables():
    assert rules_agreement.native_in(OURS + HIDDEN) == ("chain ip nat quiet_output",)


def test_a_table_that_iptables_left_out():
    saved = "# Table `nat' contains incompatible base-chains, use 'nft' tool to list them.\n*filter\nCOMMIT\n"
    assert rules_agreement.left_out(saved) == ("table ip nat",)
    assert rules_agreement.left_out("# Table `nat' is incompatible, use 'nft' tool.\n") == ("table ip nat",)
    assert rules_agreement.left_out("*nat\nCOMMIT\n# Completed\n") == ()
